"""Explanations of PostgreSQL's refusals for an operator, with the statement that fixes them, and without row values.

A server that refuses is not unavailable. While a connection is made, the driver gives no SQLSTATE, and only the text is
known; afterwards the SQLSTATE decides (PostgreSQL's documentation, appendix A). DETAIL, HINT and CONTEXT are never
shown, because they contain the row. Neither are messages that quote the values to be written.
"""

import getpass
import os
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import psycopg2

#: Classes of SQLSTATE with messages about the server, the session or the schema. The other classes (22, 23, 44, P0, and
#: those that a trigger raises) are about the values of one row.
_OF_THE_SERVER: Final = frozenset(
    {"08", "0B", "25", "28", "2D", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "F0", "XX"}
)

#: Prefixes of SQLSTATEs that pass without an operator: lost connections, deadlocks, shutdown and start of the server.
_PASSING: Final = ("08", "40", "57P")

_SEVERITY: Final = re.compile(r"(?:failed: |^)[^\s:]+:  (.+)")

#: The object that a right is missing on, as a server names it in English and in Korean.
_TABLE: Final = re.compile(r"\b(schema|table|relation|sequence|database) \"?([\w.$-]+)\"?")
_KOREAN_TABLE: Final = re.compile(r"\"?([\w.$-]+)\"? (스키마|테이블|릴레이션|시퀀스|데이터베이스)")
_KOREAN: Final = {
    "스키마": "schema",
    "테이블": "table",
    "릴레이션": "table",
    "시퀀스": "sequence",
    "데이터베이스": "database",
}

#: The server's function that reports a row that breaks a policy of its table; its SQLSTATE is that of a missing right.
_POLICY: Final = "ExecWithCheckOptions"


class DatabaseRefuses(Exception):
    """Error for a reachable database that cannot be used as it is; the text gives the reason and the remedy."""


class Explanation(NamedTuple):
    """Reason why the server cannot be used.

    :ivar refuses: whether the server is reachable and has refused; otherwise it is unavailable.
    """

    refuses: bool
    text: str


def is_of_the_row(error: psycopg2.Error) -> bool:
    """Return whether a statement was refused because of its row's values, so that it will be refused again."""
    if not error.pgcode or _is_number_taken(error):
        return False
    return error.pgcode[:2] not in _OF_THE_SERVER or _breaks_policy(error)


def is_raised(error: psycopg2.Error) -> bool:
    """Return whether a function of the database refused the row; it may decide otherwise later."""
    return is_of_the_row(error) and error.pgcode[:2] not in {"22", "23", "44"}


def _is_number_taken(error: psycopg2.Error) -> bool:
    """Return whether the sequence of commits gave an id that a row already has: the next one may be free."""
    return bool(error.pgcode == "23505" and error.diag.constraint_name == "scale_weight_log_pkey")


def _breaks_policy(error: psycopg2.Error) -> bool:
    return bool(error.pgcode == "42501" and error.diag.source_function == _POLICY)


def _is_of_a_function(error: psycopg2.Error) -> bool:
    """Return whether a trigger or a function of the database raised the error, or lacks a right or an object."""
    if error.pgcode is None or _breaks_policy(error):
        return False
    return is_raised(error) or bool(error.diag.context and error.pgcode[:2] in {"3F", "42"})


def error_text(error: BaseException) -> str:
    """Return the text of an error on one line, without any value of a row."""
    if isinstance(error, psycopg2.Error) and error.pgcode:
        if is_of_the_row(error):
            return f"{_rule_of(error)} ({error.pgcode})"
        if _is_number_taken(error):
            return "the sequence of scale_weight_log returns ids that rows have already (23505)"
        if error.diag.context:
            # A function's text may quote the row, whatever SQLSTATE it has.
            return f"{type(error).__name__}, inside a trigger or a function of the database ({error.pgcode})"
        return f"{_on_one_line(error.diag.message_primary or type(error).__name__)} ({error.pgcode})"
    # This is a connection error: the driver's own, or the server's before any statement.
    return _on_one_line(str(error)) or type(error).__name__


def explain(error: BaseException, parameters: Mapping[str, str]) -> Explanation:
    """Return why a connection cannot be used, with the statement that fixes it, if there is one.

    :param parameters: connection parameters; the names of the database and the role are shown.
    """
    if isinstance(error, DatabaseRefuses):
        return Explanation(True, str(error))
    text = error_text(error)
    if not isinstance(error, psycopg2.Error):
        return Explanation(False, text)
    user = parameters.get("user") or os.environ.get("PGUSER") or _system_user()
    database = parameters.get("dbname") or os.environ.get("PGDATABASE") or user
    code = "sequence" if _is_number_taken(error) else error.pgcode or _code_of(text)
    if _is_of_a_function(error):
        # Regardless of its SQLSTATE: a right or a table that is missing there is not the gateway's.
        code = "function"
    advice = _advice(code, text, database, user)
    if advice is None:
        # Before the session starts, only messages of a server have a severity, in any language.
        has_severity = bool(error.pgcode or _SEVERITY.search(str(error)))
        return Explanation(has_severity and not code.startswith(_PASSING), text)
    return Explanation(True, f"{text if error.pgcode else _server_message(str(error))}; {advice}")


def _advice(code: str, text: str, database: str, user: str) -> str | None:
    """Return the remedy for a refusal; ``None`` if none is known, or the server will recover by itself."""
    kind, name = _denied_object(text)
    remedy = _GRANTS.get(kind, _GRANT_ON_TABLE) if code == "42501" else _REMEDIES.get(code)
    return None if remedy is None else remedy.format(base=_quoted(database), role=_quoted(user), name=name)


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "..."


_LOGIN_REFUSED: Final = "check the password in database.url, or set it: ALTER ROLE {role} PASSWORD '...';"
_READ_ONLY: Final = (
    "connect to a server that can be written (target_session_attrs=read-write), or: ALTER DATABASE {base} SET"
    " default_transaction_read_only = off;"
)

#: Remedies by SQLSTATE, or by a word for a refusal that has none.
_REMEDIES: Final = {
    "3D000": "create it: CREATE DATABASE {base} ENCODING 'UTF8' TEMPLATE template0;",
    "role": "create it: CREATE ROLE {role} LOGIN PASSWORD '...';",
    "login": "allow it: ALTER ROLE {role} LOGIN;",
    "28P01": _LOGIN_REFUSED,
    "28000": _LOGIN_REFUSED,
    "hba": "add a line for database {base} and role {role} to pg_hba.conf, then: SELECT pg_reload_conf();",
    "25006": _READ_ONLY,
    "read-only": _READ_ONLY,
    "sequence": (
        "set it: SELECT setval(pg_get_serial_sequence('scale_weight_log', 'id'), max(id)) FROM scale_weight_log;"
    ),
    "42P01": "it was dropped, renamed, or is not in the role's search_path: restore it",
    "42703": "a column was dropped or renamed: restore it",
    "53100": "the server's disk is full: free space there",
    "function": (
        "find it: SELECT evtname FROM pg_event_trigger; SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE NOT"
        " tgisinternal;"
    ),
    "53300": "raise max_connections, or end other sessions",
    "role limit": "end other sessions of that role, or raise its limit: ALTER ROLE {role} CONNECTION LIMIT -1;",
    "database limit": "end other sessions there, or raise its limit: ALTER DATABASE {base} CONNECTION LIMIT -1;",
    "closed": "open it: ALTER DATABASE {base} ALLOW_CONNECTIONS true;",
    "3F000": (
        "GRANT USAGE, CREATE ON SCHEMA public TO {role}; or set search_path to a schema that exists: ALTER ROLE {role}"
        " IN DATABASE {base} SET search_path = public;"
    ),
    "42809": "a view or another object has the name of one of the gateway's tables: rename or drop it",
    "55P03": "another session has locked the table: find it with SELECT * FROM pg_locks WHERE NOT granted;",
    "57014": "the statement took too long: look for locks and slow triggers with SELECT * FROM pg_stat_activity;",
    "option": "correct database.url",
    "ssl": "set sslmode in database.url to a mode that the server supports",
}

#: Statements that give the missing right on an object.
_GRANT_ON_TABLE: Final = "GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE {name} TO {role};"
_GRANTS: Final = {
    "database": "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {base} TO {role};",
    "schema": "GRANT USAGE, CREATE ON SCHEMA {name} TO {role};",
    "sequence": "GRANT USAGE, SELECT ON SEQUENCE {name} TO {role};",
}


def _denied_object(text: str) -> tuple[str, str]:
    """Return the kind and the name of the object that a right is missing on; by default, the public schema."""
    if (match := _TABLE.search(text)) is not None:
        return match[1], match[2]
    if (match := _KOREAN_TABLE.search(text)) is not None:
        return _KOREAN[match[2]], match[1]
    return "schema", "public"


#: Texts of a server (in English or Korean) or of the driver while a connection is made, and their meaning.
_WORDS: Final = (
    (re.compile(r"database \".*\" does not exist|\".*\" 데이터베이스 없음"), "3D000"),
    (re.compile(r"role \".*\" does not exist|\".*\" 롤\(role\) 없음"), "role"),
    (re.compile(r"is not permitted to log in|롤은 접속을 허용하지 않음"), "login"),
    (re.compile(r"no pg_hba\.conf entry|pg_hba\.conf rejects|pg_hba\.conf 파일"), "hba"),
    (re.compile(r"authentication failed|no password supplied|인증을 실패했습니다"), "28P01"),
    (re.compile(r"permission denied|(액세스|접근) 권한 없음"), "42501"),
    (re.compile(r"too many connections for role|롤의 최대 동시 접속수를 초과"), "role limit"),
    (re.compile(r"too many connections for database|데이터베이스 최대 접속수를 초과"), "database limit"),
    (re.compile(r"is not currently accepting connections|데이터베이스는 현재 접속을 허용하지"), "closed"),
    (
        re.compile(
            r"too many clients|remaining connection slots|too many connections|접속자? ?수를 초과|남은 연결 슬롯"
        ),
        "53300",
    ),
    (re.compile(r"session is read-only|server is in hot standby"), "read-only"),
    (re.compile(r"the database system is|데이터베이스 시스템(이|은)"), "57P03"),
    (re.compile(r"does not support SSL|SSL is required|certificate verify failed|server certificate"), "ssl"),
    (
        re.compile(r"invalid connection option|invalid \w+ value|service file|definition of service|invalid port"),
        "option",
    ),
)


def _code_of(text: str) -> str:
    return next((code for words, code in _WORDS if words.search(text)), "")


def _server_message(text: str) -> str:
    """Return the server's message, without the driver's text about the connection."""
    match = _SEVERITY.search(text)
    return _on_one_line(text if match is None else match[1])


def _rule_of(error: psycopg2.Error) -> str:
    """Return the rule that refuses a row, with the names from the server."""
    diag = error.diag
    if _breaks_policy(error):
        return "refused by a row-level security policy"
    names = [] if diag is None else [diag.constraint_name, diag.column_name, diag.table_name]
    rule = " of ".join(name for name in names if name)
    if rule:
        return f"refused by {rule}"
    if error.pgcode == "P0001":
        return "refused by a trigger or a function of the database"
    return f"refused by the database: {type(error).__name__}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
