"""Access control of the real daemon: every route and every transport, with every kind of token."""

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import socketio
import websocket
from socketio.exceptions import ConnectionError as SocketRefused

from gateway.assembly.web import REST_APPS
from gateway.auth.principal import Scope
from gateway.auth.tokens import new_token, write_tokens
from tests.support.daemon import PATIENCE, Daemon, running, until

#: Kinds of credentials, and the scopes that each gives; ``None`` is not admitted at all.
CREDENTIALS: Final[dict[str, set[str] | None]] = {
    "no token": None,
    "wrong": None,
    "empty": None,
    "expired": None,
    "read": {"read"},
    "commit": {"read", "commit"},
    "admin": {"read", "commit", "admin"},
}

#: Paths that are not Klein's, which need the scope ``read``, and some that do not exist.
OTHERS: Final = [
    ("GET", "/asyncapi.json"),
    ("GET", "/ws"),
    ("GET", "/events?topics=*/*"),
    ("HEAD", "/events?topics=*/*"),
    ("GET", "/no/such/path"),
    ("POST", "/no/such/path"),
    ("GET", "//healthz"),
    ("GET", "/healthz/../metrics"),
    ("GET", "/healthz/x"),
    ("GET", "/metrics/"),
    ("GET", "/%6detrics"),
    ("OPTIONS", "/metrics"),
    ("PUT", "/api/scale-gateway/commit/"),
    ("GET", "/api/scale-gateway/commit/"),
    ("GET", "/api//scale-gateway/latest/"),
    ("GET", "/api/v1/"),
    ("GET", "/stat/"),
    ("GET", "/docsx"),
]


def all_routes() -> Iterator[tuple[str, str, Scope | None]]:
    """Yield every route of the code with a method, a path and the scope that it needs."""
    for prefix, app in REST_APPS.items():
        for rule in app.url_map.iter_rules():
            path = rule.rule.replace("<any(hour,day,month,year):period>", "hour").replace("<machine>", "Saw")
            path = path.replace("<commit>", "1").replace("<path:cylinder>", "CY1")
            for method in (rule.methods or set()) - {"OPTIONS"}:
                yield method, prefix + path, app.scopes[rule.endpoint]
    for method, path in OTHERS:
        yield method, path, "read"


@dataclass
class Guarded:
    """Gateway with access control, and a token of each kind."""

    daemon: Daemon
    tokens: dict[str, str | None]

    def request(self, method: str, path: str, token: str | None, **headers: str) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=PATIENCE)
        try:
            if token is not None:
                headers["Authorization"] = f"Bearer {token}"
            body = b"{}" if method == "POST" else None
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            # A stream of events does not end.
            is_stream = answer.headers.get_content_type() == "text/event-stream"
            return answer.status, b"" if is_stream else answer.read(), answer.headers
        finally:
            connection.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    now = datetime.now(UTC)
    made = {name: new_token(name, (name,), now, None) for name in ("read", "commit", "admin")}
    made["expired"] = new_token("expired", ("admin",), now - timedelta(days=2), now - timedelta(days=1))
    write_tokens(str(folder / "tokens.json"), [entry for _, entry in made.values()])
    tokens = {"no token": None, "empty": "", "wrong": "x" * 43} | {name: text for name, (text, _) in made.items()}
    with running(folder, auth={"tokens_file": "tokens.json"}) as daemon:
        daemon.weigh(b"ST , +000053.26 _kg")
        guarded = Guarded(daemon, tokens)
        until(
            lambda: guarded.request("GET", "/api/scale-gateway/latest/", tokens["read"])[0] == 200, "there is a weight"
        )
        yield guarded


# -- HTTP


def test_every_route_of_the_code_names_its_scope() -> None:
    scopes = {(method, path): scope for method, path, scope in all_routes()}
    assert {path for (_, path), scope in scopes.items() if scope is None} <= {"/healthz", "/readyz"}
    assert {path.rstrip("/") for (_, path), scope in scopes.items() if scope == "commit"} == {
        "/api/scale-gateway/commit",
        "/api/v1/commits/1/undo",
        "/api/v1/record/heads",
        "/api/v1/scales/<scale_id>/check-weigh",
    }
    assert "admin" not in scopes.values(), "a route without a scope"


@pytest.mark.parametrize("credential", CREDENTIALS)
def test_every_route_admits_only_tokens_with_its_scope(guarded: Guarded, credential: str) -> None:
    rights = CREDENTIALS[credential]
    wrong = []
    for method, path, scope in all_routes():
        status, content, headers = guarded.request(method, path, guarded.tokens[credential])
        expected = None if scope is None or scope in (rights or ()) else 401 if rights is None else 403
        is_as_expected = status == expected if expected else status not in {401, 403}
        if expected and is_as_expected:
            challenge = headers["WWW-Authenticate"]
            is_as_expected = challenge.startswith('Bearer realm="cynow-gateway"') and (
                method == "HEAD" or json.loads(content)["error"] == {401: "unauthorized", 403: "forbidden"}[status]
            )
        if not is_as_expected:
            wrong.append((method, path, scope, status, content[:100]))
    assert not wrong


def test_preflight_of_a_page_needs_no_token(guarded: Guarded) -> None:
    status, _, _ = guarded.request(
        "OPTIONS", "/stat/machineList", None, Origin="http://x.example", Access_Control_Request_Method="GET"
    )
    assert status == 204


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer  "])
def test_scheme_is_matched_without_regard_to_case(guarded: Guarded, scheme: str) -> None:
    header = f"{scheme} {guarded.tokens['read']}"
    assert guarded.request("GET", "/metrics", None, Authorization=header)[0] == 200


@pytest.mark.parametrize("header", ["Basic dTpw", "Bearer", "Token x", "Bearer x y"])
def test_other_credentials_are_refused(guarded: Guarded, header: str) -> None:
    assert guarded.request("GET", "/metrics", None, Authorization=header)[0] == 401


def test_two_authorization_headers_are_refused(guarded: Guarded) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", guarded.daemon.port, timeout=PATIENCE)
    connection.putrequest("GET", "/metrics")
    connection.putheader("Authorization", f"Bearer {guarded.tokens['read']}")
    connection.putheader("Authorization", "Bearer x")
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def test_token_in_a_query_gives_nothing_to_later_requests_of_the_connection(guarded: Guarded) -> None:
    """A proxy may send requests of several people, all with the same ``Authorization: Basic``, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", guarded.daemon.port, timeout=PATIENCE)
    headers = {"Authorization": "Basic c2hhcmVk"}
    statuses = []
    for method, path in (
        ("HEAD", f"/events?topics=*/*&access_token={guarded.tokens['commit']}"),
        ("GET", "/metrics"),
        ("POST", "/api/scale-gateway/commit/"),
    ):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    connection.close()
    assert statuses == [200, 401, 401]


def test_token_in_a_query_is_for_streams_only(guarded: Guarded) -> None:
    assert guarded.request("GET", f"/metrics?access_token={guarded.tokens['admin']}", None)[0] == 401


def test_no_token_reaches_the_log(guarded: Guarded) -> None:
    guarded.request("GET", f"/events?topics=x/y/z/a&access_token={guarded.tokens['read']}", None)
    guarded.request("POST", "/api/scale-gateway/commit/", guarded.tokens["read"])
    guarded.request("GET", f"/ws?access_token={guarded.tokens['wrong']}", None)
    assert not opens_handshake(guarded, f"bearer.{guarded.tokens['read']}, bearer.{guarded.tokens['read']}")
    log = guarded.daemon.log()
    assert 'duplicate protocol "..."' in log
    assert "the scope commit is needed" in log
    for token in filter(None, guarded.tokens.values()):
        assert token not in log


def opens_handshake(guarded: Guarded, subprotocols: str) -> bool:
    """Return whether a handshake of a WebSocket with this header succeeds."""
    status, _, _ = guarded.request(
        "GET",
        "/ws",
        None,
        Connection="Upgrade",
        Upgrade="websocket",
        Sec_WebSocket_Version="13",
        Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
        Sec_WebSocket_Protocol=subprotocols,
    )
    return status == 101


# -- live events

Opener = Callable[[Guarded, str | None], bool]


def opens_websocket(guarded: Guarded, path: str = "/ws", **options: Any) -> bool:
    """Return whether a WebSocket is admitted and gets an answer."""
    try:
        client = websocket.create_connection(f"ws://127.0.0.1:{guarded.daemon.port}{path}", timeout=PATIENCE, **options)
    except websocket.WebSocketBadStatusException as error:
        return bool(error.status_code != 401)
    client.send(json.dumps({"type": "subscribe", "topics": ["scale/*"]}))
    is_served: bool = json.loads(client.recv())["type"] == "subscribed"
    client.close()
    return is_served


def websocket_by_header(guarded: Guarded, token: str | None) -> bool:
    return opens_websocket(guarded, header=[] if token is None else [f"Authorization: Bearer {token}"])


def websocket_by_query(guarded: Guarded, token: str | None) -> bool:
    return opens_websocket(guarded, "/ws" if token is None else f"/ws?access_token={token}")


def websocket_by_subprotocol(guarded: Guarded, token: str | None) -> bool:
    return opens_websocket(guarded, subprotocols=[] if token is None else [f"bearer.{token}"])


def events_by_header(guarded: Guarded, token: str | None) -> bool:
    return guarded.request("GET", "/events?topics=*/*", token)[0] == 200


def events_by_query(guarded: Guarded, token: str | None) -> bool:
    query = "" if token is None else f"&access_token={token}"
    return guarded.request("GET", f"/events?topics=*/*{query}", None)[0] == 200


def joins(guarded: Guarded, transport: str, auth: Any = None, headers: dict[str, str] | None = None) -> bool:
    """Return whether a Socket.IO client is admitted to a machine."""
    client = socketio.Client(reconnection=False)
    try:
        client.connect(
            f"http://127.0.0.1:{guarded.daemon.port}",
            headers or {},
            auth=auth,
            transports=[transport],
            namespaces=["/sio/Saw"],
            wait_timeout=PATIENCE,
        )
    except SocketRefused as error:
        return "namespaces failed to connect" not in str(error)
    finally:
        client.disconnect()
    return True


def socketio_by_auth(guarded: Guarded, token: str | None) -> bool:
    return joins(guarded, "websocket", None if token is None else {"token": token})


def socketio_polling_by_auth(guarded: Guarded, token: str | None) -> bool:
    return joins(guarded, "polling", None if token is None else {"token": token})


def socketio_by_header(guarded: Guarded, token: str | None) -> bool:
    return joins(guarded, "polling", headers={} if token is None else {"Authorization": f"Bearer {token}"})


TRANSPORTS: Final[list[Opener]] = [
    websocket_by_header,
    websocket_by_query,
    websocket_by_subprotocol,
    events_by_header,
    events_by_query,
    socketio_by_auth,
    socketio_polling_by_auth,
    socketio_by_header,
]


@pytest.mark.parametrize("credential", CREDENTIALS)
@pytest.mark.parametrize("transport", TRANSPORTS, ids=lambda transport: transport.__name__)
def test_every_transport_admits_only_tokens_that_may_read(guarded: Guarded, transport: Opener, credential: str) -> None:
    assert transport(guarded, guarded.tokens[credential]) is (CREDENTIALS[credential] is not None)


def test_websocket_gets_the_subprotocol_of_its_token(guarded: Guarded) -> None:
    offered = ["other", f"bearer.{guarded.tokens['read']}"]
    client = websocket.create_connection(
        f"ws://127.0.0.1:{guarded.daemon.port}/ws", timeout=PATIENCE, subprotocols=offered
    )
    # This client shows it in lower case.
    assert client.getsubprotocol() == offered[1].lower()
    client.close()


def test_handshake_of_socketio_needs_no_token_and_connect_says_why(guarded: Guarded) -> None:
    status, content, _ = guarded.request("GET", "/socket.io/?EIO=4&transport=polling", None)
    assert status == 200
    sid = json.loads(content[1:])["sid"]
    path = f"/socket.io/?EIO=4&transport=polling&sid={sid}"
    connection = http.client.HTTPConnection("127.0.0.1", guarded.daemon.port, timeout=PATIENCE)
    connection.request("POST", path, b"40/sio/Saw,")
    assert connection.getresponse().read() == b"ok"
    connection.close()
    assert guarded.request("GET", path, None)[1] == b'44/sio/Saw,{"message":"unauthorized"}'


def test_sessions_without_a_token_keep_nobody_out_who_has_one(tmp_path: Path) -> None:
    token, entry = new_token("hall", ("read",), datetime.now(UTC), None)
    write_tokens(str(tmp_path / "tokens.json"), [entry])
    with running(tmp_path, auth={"tokens_file": "tokens.json"}, limits={"subscribers": 3}) as daemon:
        guarded = Guarded(daemon, {})
        for _ in range(10):
            assert guarded.request("GET", "/socket.io/?EIO=4&transport=polling", None)[0] == 200
        clients = [daemon.stream(header=[f"Authorization: Bearer {token}"]) for _ in range(3)]
        assert guarded.request("GET", "/socket.io/?EIO=4&transport=polling", None)[0] == 503
        assert all(client.connected for client in clients)


# -- rights without a token


def test_anonymous_scopes_apply_without_a_token_and_not_to_a_wrong_one(tmp_path: Path) -> None:
    with running(tmp_path, auth={"tokens_file": "none.json", "anonymous": ["read"]}) as daemon:
        guarded = Guarded(daemon, {})
        assert guarded.request("GET", "/metrics", None)[0] == 200
        assert guarded.request("POST", "/api/scale-gateway/commit/", None)[0] == 403
        assert guarded.request("GET", "/metrics", "x")[0] == 401
        assert websocket_by_header(guarded, None)
        assert socketio_by_auth(guarded, None)
        assert not socketio_by_auth(guarded, "x")


def test_gateway_without_access_control_ignores_tokens(daemon: Daemon) -> None:
    guarded = Guarded(daemon, {})
    assert guarded.request("POST", "/api/scale-gateway/commit/", "x")[0] == 400
    assert websocket_by_header(guarded, "x")
    assert websocket_by_subprotocol(guarded, "x")
    assert socketio_by_auth(guarded, "x")
