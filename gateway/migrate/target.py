"""Target of the migration: the tables of a PostgreSQL server."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg2
from psycopg2.extensions import TransactionRollbackError, parse_dsn

from gateway.migrate.source import SourceRow
from gateway.store.postgres.arrays import array, unnest
from gateway.store.postgres.migrations import SchemaMigration
from gateway.store.postgres.session import SETTINGS, Session
from gateway.store.rows import BUCKET_COLUMNS

T = TypeVar("T")

#: Maximum attempts to write a batch whose transaction conflicts with another one.
_MAX_ATTEMPTS: Final = 5

#: Value of ``cynow_anomaly.gateway`` and ``cynow_idempotency.request``; names of gateways cannot contain a tilde.
MIGRATED: Final = "~migrated"

#: Advisory lock while commits are written, since two runs at a time do not see each other's rows.
_COMMIT_LOCK: Final = 0x63796E6F77_02

#: A sequence that is further behind than this is set: no other program takes as many numbers during one statement.
_MAX_STEPS: Final = 1000

#: Parameters of the connection, unless the URL sets them. The operating system notices a lost server.
_CONNECTION: Final = {
    "application_name": "cynow-gateway migrate",
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "tcp_user_timeout": "30000",
}

#: Longer time limits than those of a gateway, since the command can wait for other transactions.
_SETTINGS: Final = f"{SETTINGS}; SET statement_timeout = '60s'; SET idle_in_transaction_session_timeout = '60s'"

_KINDS: Final = {"INTEGER": "bigint", "REAL": "float8", "TIMESTAMP": "timestamp"}


def _columns(text: str) -> dict[str, str]:
    """Return columns and their types from a list in SQL."""
    return dict(column.split() for column in text.split(","))


#: Columns of a commit, in the order in which they are read and written.
COMMIT: Final = _columns(
    "scale_id text, cylinder_no text, event_type text, gross_kg numeric, raw_line text, received_at timestamptz,"
    " committed_at timestamptz, arrival_shipping_no text, move_report_no text"
)


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table of the target whose rows are identified by a key.

    :ivar columns: types by column.
    :ivar conflict: action if the key exists.
    """

    name: str
    columns: dict[str, str]
    key: tuple[str, ...]
    conflict: str = "DO NOTHING"

    def insert(self) -> str:
        """Return the statement that adds rows."""
        names = ", ".join(self.columns)
        return f"INSERT INTO {self.name} ({names}) SELECT * FROM {unnest(self.columns)} ON CONFLICT {self.conflict}"  # noqa: S608 - fixed text

    def differing(self) -> str | None:
        """Return the query that counts existing rows with other values; ``None`` if rows consist of the key only."""
        rest = [name for name in self.columns if name not in self.key]
        if not rest:
            return None
        same = " AND ".join(f"t.{name} = d.{name}" for name in self.key)
        differs = " OR ".join(f"t.{name} IS DISTINCT FROM d.{name}" for name in rest)
        return (
            f"SELECT count(*) FROM {unnest(self.columns)} AS d ({', '.join(self.columns)})"  # noqa: S608 - fixed text
            f" JOIN {self.name} AS t ON {same} WHERE {differs}"
        )


MACHINE: Final = TargetTable("cynow_machine", _columns("machine text"), ("machine",))
SENSOR: Final = TargetTable("cynow_sensor", _columns("machine text, sensor text"), ("machine", "sensor"))
TYPE: Final = TargetTable(
    "cynow_sensor",
    _columns("machine text, sensor text, type text"),
    ("machine", "sensor"),
    "(machine, sensor) DO UPDATE SET type = EXCLUDED.type WHERE cynow_sensor.type IS NULL",
)
ANSWER: Final = TargetTable(
    "cynow_idempotency",
    _columns("key text, fingerprint text, request text, answer text, made_at timestamptz"),
    ("key",),
)
MEAN: Final = TargetTable(
    "cynow_mean",
    {
        **_columns(
            "machine text, sensor text, period text, start bigint, origin smallint, time timestamp, data float8"
        ),
        **{name: _KINDS[kind] for name, kind in BUCKET_COLUMNS.items()},
        "raw_end": "bigint",
    },
    ("machine", "sensor", "period", "start", "origin"),
)
ANOMALY: Final = TargetTable(
    "cynow_anomaly",
    _columns("machine text, time timestamp, gateway text, entry bigint, threshold float8, score float8"),
    ("machine", "time", "gateway", "entry"),
)

#: Tables in the order of the summary.
TABLES: Final = (
    "scale_weight_log",
    "cynow_idempotency",
    "cynow_machine",
    "cynow_sensor",
    "cynow_mean",
    "cynow_anomaly",
)


class TargetDatabase:
    """A connection to the database of the target.

    :raises psycopg2.Error: the connection failed, or the tables cannot be created.
    """

    def __init__(self, url: str) -> None:
        try:
            arguments = {**_CONNECTION, **parse_dsn(url), "client_encoding": "UTF8"}
        except psycopg2.Error:
            # The error may quote the password.
            raise SystemExit(
                "migrate: --to: not a PostgreSQL URL; expected postgresql://user:password@host:port/database"
            ) from None
        self._connection = psycopg2.connect(**arguments)
        self._connection.set_session(isolation_level="READ COMMITTED", readonly=False)
        self.transaction(lambda: self.ask(_SETTINGS))
        _result(SchemaMigration().ensure(_Session(self)))
        self._connection.commit()

    def ask(self, statement: str, values: Sequence[Any] | None = None) -> list[SourceRow]:
        """Run a statement and return its rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return [] if cursor.description is None else cursor.fetchall()

    def change(self, statement: str, values: Sequence[Any]) -> int:
        """Run a statement and return the number of rows that it has written."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return int(cursor.rowcount)

    def transaction(self, work: Callable[[], T]) -> T:
        """Run work in a transaction; repeat it if the server has aborted it in favour of another one."""
        for left in reversed(range(_MAX_ATTEMPTS)):
            try:
                result = work()
                self._connection.commit()
                return result
            except TransactionRollbackError:
                self._connection.rollback()
                if not left:
                    raise
            except BaseException:
                if not self._connection.closed:
                    self._connection.rollback()
                raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    # -- rows

    def add(self, table: TargetTable, rows: Sequence[SourceRow]) -> tuple[int, int]:
        """Add the rows that do not exist.

        :returns: number of added rows, and number of existing rows with other values.
        """
        values = _arrays(table.columns, rows)
        added = self.change(table.insert(), values)
        differing = table.differing()
        if added == len(rows) or differing is None:
            return added, 0
        return added, self.ask(differing, values)[0][0]

    def reserve_ids(self, number: int) -> None:
        """Make ``scale_weight_log`` generate only ids above a number and above its existing ids.

        This must precede the rows with such ids, since a gateway that commits meanwhile must not get one of them.
        """
        ((sequence,),) = self.ask("SELECT pg_get_serial_sequence('scale_weight_log', 'id')")
        if sequence is None:
            return
        ((lacking, wanted),) = self.ask(
            f"SELECT w.id - s.last_value + CASE WHEN s.is_called THEN 0 ELSE 1 END, w.id FROM {sequence} AS s,"  # noqa: S608 - the server has quoted it
            " (SELECT greatest(%s, max(id)) AS id FROM scale_weight_log) AS w",
            [number],
        )
        if lacking > _MAX_STEPS:
            self.ask("SELECT setval(%s, %s)", [sequence, wanted])
        elif lacking > 0:
            # Unlike setval, nextval cannot go below a number that another client has got meanwhile.
            self.ask("SELECT max(nextval(%s)) FROM generate_series(1, %s)", [sequence, lacking])

    def add_commits(self, rows: Sequence[SourceRow]) -> tuple[int, int, int]:
        """Add the commits that do not exist, with their own ids if these are free.

        A commit exists if a row has its id and its time, or if as many rows have all of its values as the rows up to
        this one.

        :param rows: id, columns of a commit, and number of equal rows up to this one.
        :returns: number of added rows, of existing rows with other values, and of rows with a new id.
        """
        self.ask("SELECT pg_advisory_xact_lock(%s)", [_COMMIT_LOCK])
        columns = {"id": "bigint", **COMMIT, "nth": "bigint"}
        names = ", ".join(COMMIT)
        source = f"{unnest(columns)} AS d ({', '.join(columns)})"
        same = " AND ".join(f"t.{name} IS NOT DISTINCT FROM d.{name}" for name in COMMIT)
        values = _arrays(columns, rows)
        existing: dict[int, bool] = dict(
            self.ask(
                f"SELECT d.id, {same} FROM {source} JOIN scale_weight_log AS t"  # noqa: S608 - fixed text
                " ON t.id = d.id AND t.committed_at = d.committed_at",
                values,
            )
        )
        moved = self.ask(
            f"SELECT d.id FROM {source} JOIN scale_weight_log AS t"  # noqa: S608 - fixed text
            # There is an index on these two columns.
            f" ON t.cylinder_no = d.cylinder_no AND t.committed_at = d.committed_at AND {same}"
            " GROUP BY d.id, d.nth HAVING count(*) >= d.nth",
            values,
        )
        known = existing.keys() | {number for (number,) in moved}
        new = [row[:-1] for row in rows if row[0] not in known]
        with_id = {"id": "bigint", **COMMIT}
        kept = self.ask(
            f"INSERT INTO scale_weight_log (id, {names}) SELECT * FROM {unnest(with_id)}"  # noqa: S608 - fixed text
            " ON CONFLICT DO NOTHING RETURNING id",
            _arrays(with_id, new),
        )
        known = {number for (number,) in kept}
        taken = [row[1:] for row in new if row[0] not in known]
        self.ask(
            f"INSERT INTO scale_weight_log ({names}) SELECT * FROM {unnest(COMMIT)}",  # noqa: S608 - fixed text
            _arrays(COMMIT, taken),
        )
        return len(new), sum(not is_same for is_same in existing.values()), len(taken)


class _Session(Session):
    """A session of the gateway on a blocking connection: its results are available immediately."""

    def __init__(self, target: TargetDatabase) -> None:
        self._target = target

    async def ask(self, statement: str, values: Any = None, limit: float = 0.0) -> list[SourceRow]:
        return self._target.ask(statement, values)

    async def transaction(self, work: Callable[[Session], Awaitable[T]]) -> T:
        return self._target.transaction(lambda: _result(work(self)))


def _result(work: Awaitable[T]) -> T:
    """Return the result of a coroutine that never waits."""
    assert isinstance(work, Coroutine)
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waits")


def _arrays(columns: dict[str, str], rows: Sequence[SourceRow]) -> list[Any]:
    """Return the values of each column as arrays for :func:`unnest`.

    :raises ValueError: a text column holds a value that is not text.
    """
    arrays: list[Any] = []
    for kind, column in zip(columns.values(), zip(*rows, strict=True) if rows else [()] * len(columns), strict=True):
        if kind != "text":
            arrays.append(array(column))
        elif all(value is None or isinstance(value, str) for value in column):
            arrays.append(list(column))
        else:
            raise ValueError("not text")
    return arrays
