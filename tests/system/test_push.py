"""Push messages through the real firebase-admin, to a simulated Google that fails on demand."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import firebase_admin
import pytest

from gateway.alert.firebase import connect_firebase
from gateway.alert.sender import NotSentError, PushMessage, Send
from tests.support.daemon import Daemon, Stopwatch, until
from tests.support.frames import frame
from tests.support.google import PROJECT, Answer, Google, playing_google


@pytest.fixture
def google(tmp_path: Path) -> Iterator[Google]:
    (tmp_path / "google").mkdir()
    with playing_google(tmp_path / "google") as google:
        yield google


@pytest.fixture
def pushing(google: Google, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a gateway with push messages to the simulated Google."""
    daemons: list[Daemon] = []

    def start(**settings: Any) -> Daemon:
        daemon = Daemon(tmp_path, fcm={"cred_path": str(google.credentials), **settings})
        daemons.append(daemon)
        daemon.start(env=google.environment())
        return daemon

    yield start
    for daemon in daemons:
        if daemon.process.poll() is None:
            assert not daemon.metrics("cynow_sink_failures_total")
        daemon.end()
        assert [secret for secret in google.secrets() if secret in daemon.log()] == []


def fault(daemon: Daemon, machine: str, score: float = 1.5) -> None:
    daemon.daq(frame("name", machine), frame("FaultDetect", {"score": score, "threshold": 1.0}))


def pushed(daemon: Daemon, **outcomes: int) -> None:
    """Wait until exactly these outcomes are counted."""

    def found() -> dict[str, float]:
        words = ("sent", "failed", "held", "dropped", "retried", "expired")
        return {word: count for word in words if (count := daemon.metric("cynow_push_messages_total", outcome=word))}

    until(lambda: found() == outcomes, f"{outcomes} are counted")


def retried(daemon: Daemon) -> None:
    """Wait until a retry is planned; it may have happened meanwhile."""
    until(lambda: daemon.metric("cynow_push_messages_total", outcome="retried") >= 1, "a further try is planned")


def logged(daemon: Daemon, text: str, times: int = 1) -> None:
    until(lambda: text in daemon.log(), f"the log says: {text}")
    assert daemon.log().count(text) == times


def can_push(daemon: Daemon) -> None:
    logged(daemon, "Google accepts the credentials")


def ingest_does_not_notice(daemon: Daemon) -> None:
    """Check that batches become events and reach their file at once, regardless of Google."""
    client = daemon.subscribe("machine/Ingest/samples")
    machine = daemon.daq(frame("name", "Ingest"))
    for number in range(10):
        watch = Stopwatch()
        machine.sendall(frame("DataUpdate", {"v": {"type": "VIB", "data": [0.5 + number]}}))
        (event,) = client.events(1, "samples")
        assert event["data"]["v"]["data"] == [0.5 + number]
        assert watch.seconds() < 2
    (path,) = until(lambda: list((daemon.folder / "data" / "Ingest").glob("*_v.csv")), "the raw file")
    until(lambda: path.read_text("ascii").endswith(",9.5\n"), "the samples are in it")


def test_push_sends_messages(google: Google, pushing: Callable[..., Daemon]) -> None:
    daemon = pushing()
    can_push(daemon)
    fault(daemon, "ShotBlast")
    fault(daemon, "Pump", 0.5)
    until(lambda: google.asked, "a message")
    fault(daemon, "펌프 2", 3.25)
    pushed(daemon, sent=2)
    fault(daemon, "ShotBlast", 9.0)
    pushed(daemon, sent=2, held=1)
    assert google.asked == [
        {
            "topic": "anomaly",
            "notification": {"title": "ShotBlast 이상치 감지", "body": "상세 정보 : 1.5/1.0"},
        },
        {"topic": "anomaly", "notification": {"title": "펌프 2 이상치 감지", "body": "상세 정보 : 3.25/1.0"}},
    ]
    # One token is valid for an hour.
    assert google.tokens == 1
    ingest_does_not_notice(daemon)


def test_push_interval_is_in_seconds(google: Google, pushing: Callable[..., Daemon]) -> None:
    daemon = pushing(timeout=1.5)
    can_push(daemon)

    def once_more() -> bool:
        fault(daemon, "M")
        return len(google.asked) >= 3 and daemon.metric("cynow_push_messages_total", outcome="held") > 3

    began = time.monotonic()
    until(once_more, "three messages, and more that are held")
    # Measured from the first: each message may take some time.
    assert all(at - began >= 1.5 * number for number, at in enumerate(google.asked_at))


def test_push_status_401_logs_refused_credentials(google: Google, pushing: Callable[..., Daemon]) -> None:
    daemon = pushing()
    can_push(daemon)
    # google-auth gets a new token and repeats the request, twice.
    google.answers.extend([Answer(401)] * 6)
    fault(daemon, "A")
    fault(daemon, "B")
    pushed(daemon, failed=2)
    assert len(google.asked) == 6
    logged(daemon, "Google refuses the credentials (HTTP 401)")
    ingest_does_not_notice(daemon)


def test_push_without_token_logs_refused_credentials(google: Google, pushing: Callable[..., Daemon]) -> None:
    google.token = Answer(400)
    daemon = pushing()
    logged(daemon, "Google refuses the credentials (no access token: RefreshError)")
    fault(daemon, "A")
    pushed(daemon, failed=1)
    ingest_does_not_notice(daemon)
    # An operator restores the rights of the account.
    google.token = Answer()
    fault(daemon, "A")
    pushed(daemon, failed=1, sent=1)


def test_push_status_404_is_not_retried(google: Google, pushing: Callable[..., Daemon]) -> None:
    daemon = pushing()
    can_push(daemon)
    google.answers.append(Answer(404))
    fault(daemon, "A")
    pushed(daemon, failed=1)
    logged(daemon, "machine A: push message not sent (HTTP 404)")
    ingest_does_not_notice(daemon)
    # It is not retried, and does not block the next anomaly's message.
    fault(daemon, "A", 2.5)
    pushed(daemon, failed=1, sent=1)
    assert [body for _, body in google.notifications] == ["상세 정보 : 1.5/1.0", "상세 정보 : 2.5/1.0"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_push_temporary_status_is_retried(google: Google, pushing: Callable[..., Daemon], status: int) -> None:
    daemon = pushing()
    can_push(daemon)
    google.answers.append(Answer(status, {"Retry-After": "3"}))
    fault(daemon, "A")
    retried(daemon)
    logged(daemon, f"machine A: push message not sent (HTTP {status}); retrying in 3 s")
    # The thread does not wait; the reactor does, without blocking other work.
    ingest_does_not_notice(daemon)
    fault(daemon, "A")
    fault(daemon, "B")
    pushed(daemon, retried=1, held=1, sent=2)
    assert [title.split()[0] for title, _ in google.notifications] == ["A", "A", "B"]
    assert google.asked_at[1] - google.asked_at[0] >= 3


def test_push_time_out_is_retried(google: Google, pushing: Callable[..., Daemon]) -> None:
    daemon = pushing()
    can_push(daemon)
    google.hang = True
    fault(daemon, "A")
    until(lambda: google.asked, "the message")
    ingest_does_not_notice(daemon)
    retried(daemon)
    logged(daemon, "machine A: push message not sent (DeadlineExceededError: ReadTimeout)")


def test_push_refused_connection_is_retried(google: Google, pushing: Callable[..., Daemon]) -> None:
    google.stop()
    daemon = pushing()
    logged(daemon, "cannot send push messages now (no access token: TransportError)")
    fault(daemon, "A")
    retried(daemon)
    logged(daemon, "machine A: push message not sent (no access token: TransportError)")
    ingest_does_not_notice(daemon)
    google.start()
    until(lambda: daemon.metric("cynow_push_messages_total", outcome="sent") == 1, "it is sent")
    assert google.notifications == [("A 이상치 감지", "상세 정보 : 1.5/1.0")]


def test_push_broken_credentials_file_turns_it_off(google: Google, pushing: Callable[..., Daemon]) -> None:
    tree = json.loads(google.credentials.read_text("utf-8"))
    google.credentials.write_text(json.dumps({**tree, "private_key": tree["private_key"][:-100]}), "utf-8")
    daemon = pushing()
    logged(daemon, "fcm.cred_path: cannot use the credentials (ValueError)")
    fault(daemon, "A")
    pushed(daemon, failed=1)
    ingest_does_not_notice(daemon)
    assert not google.asked


def test_stop_does_not_wait_for_google(google: Google, pushing: Callable[..., Daemon]) -> None:
    daemon = pushing()
    can_push(daemon)
    google.hang = True
    fault(daemon, "A")
    until(lambda: google.asked, "the message")
    assert daemon.terminate() == 0


# -- firebase-admin alone


@pytest.fixture
def send(google: Google, monkeypatch: pytest.MonkeyPatch) -> Iterator[Send]:
    for name, value in google.environment().items():
        monkeypatch.setenv(name, value)
    yield connect_firebase(str(google.credentials))
    firebase_admin.delete_app(firebase_admin.get_app("cynow-gateway"))


def problem_of(send: Send) -> dict[str, Any]:
    with pytest.raises(NotSentError) as caught:
        send(PushMessage("title", "body"))
    return vars(caught.value)


def test_send_without_message_checks_the_credentials(google: Google, send: Send) -> None:
    send(None)
    assert (google.tokens, google.asked) == (1, [])
    send(PushMessage("title", "body"))
    assert (google.tokens, len(google.asked)) == (1, 1)


def test_send_silent_token_host_raises_in_time(google: Google, send: Send) -> None:
    google.hang = True
    watch = Stopwatch()
    with pytest.raises(NotSentError) as caught:
        send(None)
    assert (caught.value.retry, google.tokens) == (True, 1)
    # The library alone would wait for two minutes.
    assert watch.seconds() < 60


@pytest.mark.parametrize(
    ("answer", "retry", "after", "refused"),
    [
        (Answer(400), False, None, False),
        (Answer(403), False, None, True),
        (Answer(404), False, None, False),
        (Answer(429), True, 60.0, False),
        (Answer(429, {"Retry-After": "7"}), True, 7.0, False),
        (Answer(429, {"Retry-After": "7200"}), True, 7200.0, False),
        (Answer(500), True, None, False),
        (Answer(503), True, None, False),
        (Answer(503, {"Retry-After": "soon"}), True, None, False),
    ],
    ids=str,
)
def test_send_status_gives_retry_and_delay(
    google: Google,
    send: Send,
    answer: Answer,
    retry: bool,
    after: float | None,
    refused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    google.answers.append(answer)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert problem_of(send) == {"reason": f"HTTP {answer.status}", "retry": retry, "after": after, "refused": refused}
    # The library neither sleeps nor retries.
    assert (len(google.asked), slept) == (1, [])
    send(PushMessage("title", "body"))


def test_send_unreachable_host_may_be_retried(google: Google, send: Send) -> None:
    send(PushMessage("title", "body"))
    google.stop()
    problem = problem_of(send)
    assert (problem["reason"], problem["retry"]) == ("UnavailableError: ProxyError", True)


def test_send_to_an_untrusted_host_sends_no_token(google: Google, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without a trusted certificate gets no token."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert problem_of(send)["reason"] == "UnavailableError: SSLError"
    assert not google.asked


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"type": "service_account"', f'{{"project_id": "{PROJECT}"}}'])
def test_connect_invalid_file_raises(tmp_path: Path, content: str) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(content, "utf-8")
    with pytest.raises((ValueError, AttributeError)):
        connect_firebase(str(path))


def test_connect_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect_firebase(str(tmp_path / "credentials.json"))
