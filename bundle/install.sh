#!/bin/sh
# Install the CYNOW gateway, or upgrade it, without a network. Run it again at any time: it keeps the configuration.
set -eu

prefix=${PREFIX:-/opt/cynow-gateway}
etc=/etc

usage() {
    cat <<'END'
usage: ./install.sh [--prefix FOLDER] [--etc FOLDER]

  --prefix FOLDER  where the gateway goes (default: $PREFIX, or /opt/cynow-gateway)
  --etc FOLDER     where the configuration and systemd/system/ are (default: /etc)

PYTHON names the Python to use. README.rst says more.
END
}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --prefix=*) prefix=${1#*=} ;;
    --etc=*) etc=${1#*=} ;;
    --prefix | --etc)
        [ $# -gt 1 ] || { usage >&2; exit 2; }
        if [ "$1" = --prefix ]; then prefix=$2; else etc=$2; fi
        shift
        ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
    esac
    shift
done

cd "$(dirname "$0")"
# The service runs as another user, who has to read all of this.
umask 022

sha256sum --check --quiet --strict SHA256SUMS || fail "the bundle is damaged; copy it again"

# -- Python

wanted=$(cat python)
seen=
for python in ${PYTHON:-"python${wanted%% *}" python3}; do
    given=$("$python" -c 'import sys, sysconfig
print("%d.%d" % sys.version_info[:2], sysconfig.get_platform())' 2>/dev/null) || continue
    [ "$given" != "$wanted" ] || break
    seen="$seen; $python is $given"
    given=
done
[ "${given:-}" = "$wanted" ] || fail "this bundle needs Python $wanted$seen; install it, or make a bundle for yours"

# -- the gateway

mkdir -p "$prefix" "$etc/systemd/system" || fail "run it as root, or choose other folders: ./install.sh --help"
prefix=$(cd "$prefix" && pwd)
etc=$(cd "$etc" && pwd)
is_upgrade=$([ ! -e "$prefix/bin/cynow-gateway" ] || echo yes)

"$python" -m venv --without-pip "$prefix"
set -- wheels/pip-*.whl
pip=$1
# No file or variable of the machine may send pip to a server.
install() {
    PIP_CONFIG_FILE=/dev/null "$prefix/bin/python" "$pip/pip" --isolated install --quiet --no-cache-dir \
        --disable-pip-version-check --root-user-action ignore --no-index --find-links wheels --no-deps "$@"
}
# Exactly the packages of the bundle, older ones than those that are there too; and the gateway itself even if it has
# the same number.
install wheels/*.whl
install --force-reinstall wheels/cynow_gateway-*.whl
version=$("$prefix/bin/cynow-gateway" version)

# -- files of the system

new=$prefix/etc.new
rm -rf "$new"
cp -R etc "$new"
for unit in "$new"/*.service; do
    sed -e "s|/opt/cynow-gateway/bin|$prefix/bin|" -e "s|/etc/cynow-gateway.yaml|$etc/cynow-gateway.yaml|" "$unit" \
        >"$unit.new"
    mv "$unit.new" "$unit"
done

# Copy a file, unless it has been changed since an installation put it there.
place() {
    if [ ! -e "$2" ] || cmp -s "$2" "$prefix/etc/$1"; then
        cp "$new/$1" "$2"
    elif ! cmp -s "$2" "$new/$1"; then
        echo "kept $2; that of this version is $prefix/etc/$1"
    fi
}

units=$etc/systemd/system
place cynow-gateway.service "$units/cynow-gateway.service"
place cynow-gateway@.service "$units/cynow-gateway@.service"
systemd=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
if [ "${systemd:-0}" -ge 253 ]; then
    drop_in=systemd-253/cynow-gateway.service.d/10-notify-reload.conf
    for unit in cynow-gateway cynow-gateway@; do
        mkdir -p "$units/$unit.service.d"
        place "$drop_in" "$units/$unit.service.d/10-notify-reload.conf"
    done
fi
[ -e "$etc/cynow-gateway.yaml" ] || cp "$new/cynow-gateway.yaml" "$etc"
rm -rf "$prefix/etc"
mv "$new" "$prefix/etc"

# -- the next steps

echo "$version is in $prefix. Next:"
if [ -n "$is_upgrade" ]; then
    cat <<END
  $prefix/bin/cynow-gateway check --config $etc/cynow-gateway.yaml
  systemctl daemon-reload
  systemctl restart cynow-gateway
END
else
    cat <<END
  edit $etc/cynow-gateway.yaml: server.host and timezone at least
  $prefix/bin/cynow-gateway check --config $etc/cynow-gateway.yaml
  systemctl daemon-reload
  systemctl enable --now cynow-gateway
END
fi
