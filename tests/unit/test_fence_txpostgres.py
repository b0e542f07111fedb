"""The internals of txpostgres, psycopg2 and firebase-admin that the gateway relies on, each in one module."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from firebase_admin import messaging
from psycopg2 import extensions
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from txpostgres import txpostgres
from txpostgres.reconnection import DeadConnectionDetector

from gateway.store.postgres.txpostgres_internals import Connection, LossDetector

ROOT = Path(__file__).parent.parent.parent / "gateway"

#: The only module that may import txpostgres.
FENCE = "store/postgres/txpostgres_internals.py"


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_txpostgres_is_imported_by_its_fence_only() -> None:
    files = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if any(module.split(".")[0] == "txpostgres" for module in imported(path))
    }
    assert files == {FENCE}


@pytest.mark.parametrize("name", ["doRead", "cursorFinished", "checkForNotifies", "close", "pollable", "cursor"])
def test_connection_method_of_txpostgres_exists(name: str) -> None:
    assert callable(getattr(txpostgres.Connection, name))


@pytest.mark.parametrize("name", ["doRead", "cursorFinished", "checkForNotifies", "close"])
def test_overridden_connection_method_keeps_its_parameters(name: str) -> None:
    theirs = inspect.signature(getattr(txpostgres.Connection, name))
    assert list(inspect.signature(getattr(Connection, name)).parameters) == list(theirs.parameters)


def test_txpostgres_calls_the_overridden_methods() -> None:
    read = inspect.getsource(txpostgres.Connection.doRead)
    assert "self.checkForNotifies()" in read
    assert "self._connection.cursorFinished(self)" in inspect.getsource(txpostgres.Cursor)
    assert "detector.checkForDeadConnection(" in inspect.getsource(txpostgres.Connection.connectionLost)


def test_detector_calls_start_reconnecting_once_for_each_loss() -> None:
    losses: list[BaseException | None] = []
    detector = LossDetector(reactor, lambda failure: True, losses.append)
    error = ValueError("lost")
    detector.check(Failure(error))
    assert losses == []
    detector.mark_connected()
    detector.check(Failure(error))
    detector.check(Failure(error))
    assert losses == [error]
    assert isinstance(detector, DeadConnectionDetector)


def test_connection_reports_notifications_to_its_observers_at_once() -> None:
    connection = Connection(reactor)
    received: list[str] = []
    connection.addNotifyObserver(received.append)

    class Raw:
        notifies = ["a", "b"]  # noqa: RUF012  # as psycopg2's

    connection._connection = Raw()
    connection.checkForNotifies()
    assert received == ["a", "b"]
    assert Raw.notifies == []


def test_cancelled_statement_of_txpostgres_is_a_cancelled_error() -> None:
    source = inspect.getsource(txpostgres._PollingMixin._handleCancellation)
    assert "QueryCanceledError" in source
    assert "CancelledError" in source
    assert txpostgres.defer.CancelledError is CancelledError


def test_psycopg2_connection_has_the_attributes_that_are_read() -> None:
    for name in ("closed", "info", "notifies"):
        assert hasattr(extensions.connection, name)
    assert hasattr(extensions.ConnectionInfo, "transaction_status")


def test_firebase_admin_has_the_service_whose_retries_are_turned_off() -> None:
    assert callable(messaging._get_messaging_service)
    assert "self._fcm_url" in inspect.getsource(messaging._MessagingService)
    assert "self._client" in inspect.getsource(messaging._MessagingService)
