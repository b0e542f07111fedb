"""What PostgreSQL refuses, in words for an operator, with the statement that mends it; never a value of a row.

A server that refuses is not away. While a connection is being made, the driver gives no SQLSTATE, and the text is all
there is; afterwards the SQLSTATE decides (PostgreSQL's documentation, appendix A). DETAIL, HINT and CONTEXT are never
shown, for they hold the row, and so are messages that quote what was to be written.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import psycopg2

#: Classes of SQLSTATE whose message tells of the server, the session or the schema. The others (22, 23, 44, P0, what a
#: trigger raises) tell of the values of one row.
_OF_THE_SERVER: Final = frozenset(
    {"08", "0B", "25", "28", "2D", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "F0", "XX"}
)

_SEVERITY: Final = re.compile(r"(?:failed: |^)[^\s:]+:  (.+)")

_TABLE: Final = re.compile(r"\b(schema|table|relation|sequence|database) \"?([\w.$-]+)\"?")


class DatabaseRefuses(Exception):
    """The database is there and cannot be used as it is; the text says why, and what mends it."""


class Explanation(NamedTuple):
    """Why there is no connection.

    :ivar refuses: whether the server is there and has refused; else it is away.
    """

    refuses: bool
    text: str


def is_of_the_row(error: psycopg2.Error) -> bool:
    """Return whether a statement was refused for the values of its row, which will be refused again."""
    return bool(error.pgcode) and error.pgcode[:2] not in _OF_THE_SERVER


def error_text(error: BaseException) -> str:
    """Return what an error says on one line, without any value of a row."""
    if isinstance(error, psycopg2.Error) and error.pgcode:
        if is_of_the_row(error):
            return f"{_rule_of(error)} ({error.pgcode})"
        message = error.diag.message_primary if error.diag is not None else None
        return f"{_on_one_line(message or type(error).__name__)} ({error.pgcode})"
    # Errors of a connection: the driver's own, or the server's before there are statements.
    return _on_one_line(str(error)) or type(error).__name__


def explain(error: BaseException, parameters: Mapping[str, str]) -> Explanation:
    """Return why a connection cannot be used, with the statement that mends it where there is one.

    :param parameters: of the connection; the names of the database and the role are shown.
    """
    if isinstance(error, DatabaseRefuses):
        return Explanation(True, str(error))
    text = error_text(error)
    if not isinstance(error, psycopg2.Error):
        return Explanation(False, text)
    user = parameters.get("user", "the role")
    database = parameters.get("dbname") or user
    code = error.pgcode or _code_of(text)
    advice = _advice(code, text, database, user)
    if advice is None:
        # What a server says before there is a session has a severity, in whatever language.
        said = _SEVERITY.search(str(error)) if error.pgcode is None else None
        return Explanation(said is not None and not code.startswith("57P"), text)
    return Explanation(True, f"{text if error.pgcode else _said(str(error))}; {advice}")


def _advice(code: str, text: str, database: str, user: str) -> str | None:
    """Return what mends a refusal; ``None`` where nothing is known, or the server will mend it itself."""
    base, role = _quoted(database), _quoted(user)
    if code == "3D000":
        return f"create it: CREATE DATABASE {base} ENCODING 'UTF8' TEMPLATE template0;"
    if code == "role":
        return f"create it: CREATE ROLE {role} LOGIN PASSWORD '...';"
    if code == "login":
        return f"allow it: ALTER ROLE {role} LOGIN;"
    if code in {"28P01", "28000"}:
        return f"check the password in database.url, or set it: ALTER ROLE {role} PASSWORD '...';"
    if code == "hba":
        return f"add a line for database {base} and role {role} to pg_hba.conf, then: SELECT pg_reload_conf();"
    if code == "42501":
        return _grant(text, base, role)
    if code in {"25006", "read-only"}:
        return (
            f"connect to a server that can be written (target_session_attrs=read-write), or: ALTER DATABASE {base} SET"
            " default_transaction_read_only = off;"
        )
    return _FIXED.get(code)


#: What mends a refusal, whatever the names are.
_FIXED: Final = {
    "42P01": "it was dropped, renamed, or is not in the role's search_path: restore it",
    "42703": "a column was dropped or renamed: restore it",
    "53100": "the server's disk is full: make room there",
    "53300": "raise max_connections, or end other sessions",
    "55P03": "another session has locked the table: find it with SELECT * FROM pg_locks WHERE NOT granted;",
    "57014": "the statement took too long: look for locks and slow triggers with SELECT * FROM pg_stat_activity;",
    "option": "correct database.url",
    "ssl": "set sslmode in database.url to what the server has",
}


def _grant(text: str, base: str, role: str) -> str:
    found = _TABLE.search(text)
    kind, name = (found[1], found[2]) if found is not None else ("schema", "public")
    if kind == "database":
        return f"GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {base} TO {role};"
    if kind == "schema":
        return f"GRANT USAGE, CREATE ON SCHEMA {name} TO {role};"
    if kind == "sequence":
        return f"GRANT USAGE, SELECT ON SEQUENCE {name} TO {role};"
    return f"GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE {name} TO {role};"


#: Words of a server, or of the driver, while a connection is made, and what they mean.
_WORDS: Final = (
    (re.compile(r"database \".*\" does not exist"), "3D000"),
    (re.compile(r"role \".*\" does not exist"), "role"),
    (re.compile(r"is not permitted to log in"), "login"),
    (re.compile(r"no pg_hba\.conf entry|pg_hba\.conf rejects"), "hba"),
    (re.compile(r"authentication failed|no password supplied"), "28P01"),
    (re.compile(r"permission denied"), "42501"),
    (re.compile(r"too many clients|remaining connection slots|too many connections"), "53300"),
    (re.compile(r"session is read-only|server is in hot standby"), "read-only"),
    (re.compile(r"starting up|shutting down|in recovery mode"), "57P03"),
    (re.compile(r"does not support SSL|SSL is required|certificate verify failed|server certificate"), "ssl"),
    (
        re.compile(r"invalid connection option|invalid \w+ value|service file|definition of service|invalid port"),
        "option",
    ),
)


def _code_of(text: str) -> str:
    return next((code for words, code in _WORDS if words.search(text)), "")


def _said(text: str) -> str:
    """What the server said, without the driver's words about the connection."""
    found = _SEVERITY.search(text)
    return _on_one_line(text if found is None else found[1])


def _rule_of(error: psycopg2.Error) -> str:
    """The rule that refuses a row, by the names that the server gives it."""
    diag = error.diag
    names = [] if diag is None else [diag.constraint_name, diag.column_name, diag.table_name]
    known = " of ".join(name for name in names if name)
    if known:
        return f"refused by {known}"
    if error.pgcode == "P0001":
        return "refused by a trigger or a function of the database"
    return f"refused by the database: {type(error).__name__}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
