"""The server that rows are copied to: its tables, and what is there already."""

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

#: How often a batch is tried that stands in somebody's way.
_TRIES: Final = 5

#: Stands in ``cynow_anomaly.gateway`` and ``cynow_idempotency.request``; no gateway's name holds a tilde.
MIGRATED: Final = "~migrated"

#: Held while commits are written, for two runs at a time would not see each other's; beside that of the schema's steps.
_COMMIT_LOCK: Final = 0x63796E6F77_02

#: A sequence that lacks more numbers than this is set; nobody takes so many while one statement runs.
_LEAP: Final = 1000

#: They may be set otherwise in the URL. Who is gone is noticed by the operating system.
_CONNECTION: Final = {
    "application_name": "cynow-gateway migrate",
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "tcp_user_timeout": "30000",
}

#: Unlike a gateway it has time: it may stand behind somebody else's transaction.
_SETTINGS: Final = f"{SETTINGS}; SET statement_timeout = '60s'; SET idle_in_transaction_session_timeout = '60s'"

_KINDS: Final = {"INTEGER": "bigint", "REAL": "float8", "TIMESTAMP": "timestamp"}


def _columns(text: str) -> dict[str, str]:
    """Columns and their types, from a list as SQL has it."""
    return dict(each.split() for each in text.split(","))


#: In the order in which they are read and written.
COMMIT: Final = _columns(
    "scale_id text, cylinder_no text, event_type text, gross_kg numeric, raw_line text, received_at timestamptz,"
    " committed_at timestamptz, arrival_shipping_no text, move_report_no text"
)


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table of the target whose rows are known by a key.

    :ivar columns: and their types.
    :ivar conflict: what is done where the key is there.
    """

    name: str
    columns: dict[str, str]
    key: tuple[str, ...]
    conflict: str = "DO NOTHING"

    def insert(self) -> str:
        names = ", ".join(self.columns)
        return f"INSERT INTO {self.name} ({names}) SELECT * FROM {unnest(self.columns)} ON CONFLICT {self.conflict}"  # noqa: S608 - fixed text

    def differing(self) -> str | None:
        """Counts those that are there and say something else; ``None`` where they say nothing but their key."""
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

#: In the order in which they are told of.
TABLES: Final = (
    "scale_weight_log",
    "cynow_idempotency",
    "cynow_machine",
    "cynow_sensor",
    "cynow_mean",
    "cynow_anomaly",
)


class TargetDatabase:
    """The server.

    :raises psycopg2.Error: there is none, or its tables cannot be made.
    """

    def __init__(self, url: str) -> None:
        try:
            arguments = {**_CONNECTION, **parse_dsn(url), "client_encoding": "UTF8"}
        except psycopg2.Error:
            # What it says may quote the password.
            raise SystemExit("migrate: --to is no URL of PostgreSQL") from None
        self._connection = psycopg2.connect(**arguments)
        self._connection.set_session(isolation_level="READ COMMITTED", readonly=False)
        self.transaction(lambda: self.ask(_SETTINGS))
        _result(SchemaMigration().ensure(_Session(self)))
        self._connection.commit()

    def ask(self, statement: str, values: Sequence[Any] | None = None) -> list[SourceRow]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return [] if cursor.description is None else cursor.fetchall()

    def change(self, statement: str, values: Sequence[Any]) -> int:
        """Run a statement; how many rows it has written."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return int(cursor.rowcount)

    def transaction(self, work: Callable[[], T]) -> T:
        """Do some work in a transaction; again, where the server has ended that in favour of another."""
        for left in reversed(range(_TRIES)):
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
        self._connection.close()

    # -- rows

    def add(self, table: TargetTable, rows: Sequence[SourceRow]) -> tuple[int, int]:
        """Add rows that are not there: how many, and how many others are there and say something else."""
        values = _arrays(table.columns, rows)
        made = self.change(table.insert(), values)
        differing = table.differing()
        if made == len(rows) or differing is None:
            return made, 0
        return made, self.ask(differing, values)[0][0]

    def beyond(self, number: int) -> None:
        """Let ``scale_weight_log`` give out no id by itself up to a number, nor up to any that it has.

        It is done before rows with such ids are written: whoever commits meanwhile must not be given one of them.
        """
        ((sequence,),) = self.ask("SELECT pg_get_serial_sequence('scale_weight_log', 'id')")
        if sequence is None:
            return
        ((lacking, wanted),) = self.ask(
            f"SELECT w.id - s.last_value + CASE WHEN s.is_called THEN 0 ELSE 1 END, w.id FROM {sequence} AS s,"  # noqa: S608 - the server has quoted it
            " (SELECT greatest(%s, max(id)) AS id FROM scale_weight_log) AS w",
            [number],
        )
        if lacking > _LEAP:
            self.ask("SELECT setval(%s, %s)", [sequence, wanted])
        elif lacking > 0:
            # Unlike setval it takes nothing back that somebody has been given meanwhile.
            self.ask("SELECT max(nextval(%s)) FROM generate_series(1, %s)", [sequence, lacking])

    def add_commits(self, rows: Sequence[SourceRow]) -> tuple[int, int, int]:
        """Add commits that are not there, under their own ids where these are free.

        A row is there where one with its id was committed at the same moment, or where all that it says is there, as
        often as in the rows up to this one.

        :param rows: of each its id, the columns of a commit, and how many rows up to it say the same.
        :returns: how many were added, how many others are there and say something else, how many got a new id.
        """
        self.ask("SELECT pg_advisory_xact_lock(%s)", [_COMMIT_LOCK])
        columns = {"id": "bigint", **COMMIT, "nth": "bigint"}
        names = ", ".join(COMMIT)
        source = f"{unnest(columns)} AS d ({', '.join(columns)})"
        same = " AND ".join(f"t.{name} IS NOT DISTINCT FROM d.{name}" for name in COMMIT)
        values = _arrays(columns, rows)
        there: dict[int, bool] = dict(
            self.ask(
                f"SELECT d.id, {same} FROM {source} JOIN scale_weight_log AS t"  # noqa: S608 - fixed text
                " ON t.id = d.id AND t.committed_at = d.committed_at",
                values,
            )
        )
        moved = self.ask(
            f"SELECT d.id FROM {source} JOIN scale_weight_log AS t"  # noqa: S608 - fixed text
            # The index of these two finds it.
            f" ON t.cylinder_no = d.cylinder_no AND t.committed_at = d.committed_at AND {same}"
            " GROUP BY d.id, d.nth HAVING count(*) >= d.nth",
            values,
        )
        known = there.keys() | {number for (number,) in moved}
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
        return len(new), sum(not is_same for is_same in there.values()), len(taken)


class _Session(Session):
    """The gateway's session, whose answers are there at once."""

    def __init__(self, target: TargetDatabase) -> None:
        self._target = target

    async def ask(self, statement: str, values: Any = None, limit: float = 0.0) -> list[SourceRow]:
        return self._target.ask(statement, values)

    async def transaction(self, work: Callable[[Session], Awaitable[T]]) -> T:
        return self._target.transaction(lambda: _result(work(self)))


def _result(work: Awaitable[T]) -> T:
    """The result of work that waits for nothing."""
    assert isinstance(work, Coroutine)
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits")


def _arrays(columns: dict[str, str], rows: Sequence[SourceRow]) -> list[Any]:
    """What :func:`unnest` is given.

    :raises ValueError: there is something else than text in a column of texts.
    """
    found: list[Any] = []
    for kind, column in zip(columns.values(), zip(*rows, strict=True) if rows else [()] * len(columns), strict=True):
        if kind != "text":
            found.append(array(column))
        elif all(value is None or isinstance(value, str) for value in column):
            found.append(list(column))
        else:
            raise ValueError("it is no text")
    return found
