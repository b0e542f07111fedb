#!/bin/sh
# Client of the gateway with curl: latest weight, commit, live events, statistics.
#
#     sh client.sh latest [SCALE]
#     sh client.sh commit CYLINDER_NO SHIP|RETURN
#     sh client.sh follow TOPIC,TOPIC...
#     sh client.sh means MACHINE hour|day|month|year START END
#
# CYNOW_URL is the gateway's URL, CYNOW_TOKEN a token if the gateway asks for one.
set -eu
url=${CYNOW_URL:-http://127.0.0.1:8080}

# A request, with the token if there is one.
ask() {
    if [ -n "${CYNOW_TOKEN:-}" ]; then
        # From standard input: the list of processes shows arguments to every user.
        printf 'header = "Authorization: Bearer %s"\n' "$CYNOW_TOKEN" | curl --silent --show-error --config - "$@"
    else
        curl --silent --show-error "$@"
    fi
}

# Written once, however often it is sent: every attempt has the same key. curl repeats after 408, 429, 500, 502, 503, 504
# and lost connections, and waits as Retry-After says.
commit() {
    key=$(cat /proc/sys/kernel/random/uuid)
    # A file: curl empties it before each attempt.
    answer=$(mktemp)
    trap 'rm -f "$answer"' EXIT
    ask --output "$answer" --retry 10 --retry-connrefused --retry-all-errors --max-time 10 --retry-max-time 300 \
        --header "Idempotency-Key: $key" --header 'Content-Type: application/json' \
        --data "{\"cylinder_no\": \"$1\", \"event_type\": \"$2\"}" "$url/api/scale-gateway/commit/"
    cat "$answer"
    echo
    # The function's status.
    grep -q '^{"ok": *true' "$answer"
}

# Server-sent events without a gap: after a lost connection, from the last id on.
follow() {
    last=$(mktemp)
    trap 'rm -f "$last"' EXIT
    while :; do
        ask --fail --no-buffer --header "Last-Event-ID: $(cat "$last")" "$url/events?topics=$1" |
            while IFS= read -r line; do
                case $line in
                "id: "*) id=${line#id: } ;;
                "data: "*)
                    printf '%s\n' "${line#data: }"
                    printf '%s' "${id:-}" >"$last"
                    ;;
                esac
            done
        sleep 1
    done
}

case ${1:-} in
latest) ask --fail-with-body --get ${2:+--data-urlencode "scale_id=$2"} "$url/api/scale-gateway/latest/" && echo ;;
commit) commit "$2" "$3" ;;
follow) follow "$2" ;;
means)
    ask --fail-with-body --header 'Accept: text/csv' --get --data-urlencode "machine=$2" \
        --data-urlencode "start=$4" --data-urlencode "end=$5" "$url/stat/$3"
    ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
