"""Client of the gateway in Python: latest weight, commit, live events, statistics.

    python client.py latest [SCALE]
    python client.py commit CYLINDER_NO SHIP|RETURN
    python client.py follow TOPIC...
    python client.py means MACHINE hour|day|month|year START END

It needs requests and websocket-client. CYNOW_URL is the gateway's URL, CYNOW_TOKEN a token if the gateway asks for one.
"""

import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import requests
import websocket

URL = os.environ.get("CYNOW_URL", "http://127.0.0.1:8080").rstrip("/")
TOKEN = os.environ.get("CYNOW_TOKEN", "")
HEADERS = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}

#: Answers after which the same request may succeed: nothing was written, or the gateway does not know.
REPEATABLE = {429, 502, 503, 504}


def get(path: str, **query: str) -> Any:
    """Return an answer; an error is a ``requests.HTTPError``."""
    answer = requests.get(URL + path, params=query, headers=HEADERS, timeout=10)
    answer.raise_for_status()
    return answer.json()


def commit(cylinder_no: str, event_type: str, attempts: int = 10) -> Any:
    """Write a commit once, however often it is sent: every attempt has the same key."""
    key = str(uuid.uuid4())
    body = {"cylinder_no": cylinder_no, "event_type": event_type}
    for attempt in range(attempts):
        delay = min(2.0**attempt, 30.0)
        try:
            answer = requests.post(
                f"{URL}/api/scale-gateway/commit/",
                json=body,
                headers={**HEADERS, "Idempotency-Key": key},
                timeout=10,
            )
        except (requests.ConnectionError, requests.Timeout):
            pass
        else:
            if answer.status_code not in REPEATABLE:
                return answer.json()
            delay = float(answer.headers.get("Retry-After", delay))
        time.sleep(delay)
    raise TimeoutError("the gateway has not confirmed the commit; repeat it with the same key")


def follow(topics: list[str]) -> Iterator[Any]:
    """Yield live events without a gap: after a lost connection, from the last ``seq`` on."""
    seq = None
    while True:
        try:
            # The gateway pings every 20 seconds: after 60 without one, the connection is lost.
            socket = websocket.create_connection(URL.replace("http", "ws", 1) + "/ws", timeout=60, header=HEADERS)
            with contextlib.closing(socket):
                request: dict[str, Any] = {"type": "subscribe", "topics": topics}
                if seq is not None:
                    request["since"] = seq
                socket.send(json.dumps(request))
                while text := socket.recv():
                    message = json.loads(text)
                    if message["type"] == "event":
                        seq = message["seq"]
                        yield message
                    elif message["type"] == "error":
                        raise ValueError(message["message"])
        except websocket.WebSocketBadStatusException as error:
            if error.status_code not in REPEATABLE:
                raise
            print(f"{error.status_code}; connecting again", file=sys.stderr)
        except (OSError, websocket.WebSocketException) as error:
            print(f"{error}; connecting again", file=sys.stderr)
        time.sleep(1)


def main() -> None:
    """Run the command of the command line."""
    match sys.argv[1:]:
        case ["latest"]:
            print(json.dumps(get("/api/scale-gateway/latest/"), ensure_ascii=False))
        case ["latest", scale]:
            print(json.dumps(get("/api/scale-gateway/latest/", scale_id=scale), ensure_ascii=False))
        case ["commit", cylinder_no, event_type]:
            answer = commit(cylinder_no, event_type)
            print(json.dumps(answer, ensure_ascii=False))
            if not answer["ok"]:
                sys.exit(1)
        case ["follow", *topics] if topics:
            for event in follow(topics):
                print(json.dumps(event, ensure_ascii=False), flush=True)
        case ["means", machine, period, start, end]:
            for mean in get(f"/stat/{period}", machine=machine, start=start, end=end):
                print(mean["name"], mean["time"], mean["data"])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except requests.HTTPError as error:
        sys.exit(f"{error.response.status_code}: {error.response.text}")
    except (requests.RequestException, websocket.WebSocketException, ValueError, TimeoutError) as error:
        sys.exit(str(error))
