"""The configuration: YAML and environment in, frozen settings or a list of every problem out."""

import difflib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.hosts import host_problem
from gateway.model import is_name
from gateway.origins import normal_host, normal_origin

#: Environment variables, and the keys that they override: the old scale gateway's, and what differs where several
#: processes are run by one file.
ENVIRONMENT: Final = {
    "SCALE_GATEWAY_LISTEN_HOST": ("scale", "host"),
    "SCALE_GATEWAY_LISTEN_PORT": ("scale", "port"),
    "SCALE_GATEWAY_IDLE_TIMEOUT_SEC": ("scale", "idle_timeout_sec"),
    "CYNOW_GATEWAY_NAME": ("gateway", "name"),
    "CYNOW_GATEWAY_OWN_PORT": ("server", "own_port"),
}

#: Kinds of endpoints that several processes may listen on at a time.
_SHAREABLE: Final = ("tcp:", "tcp6:", "systemd:")


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "a number is needed")
    return value


Port = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=65535)]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
Folder = Annotated[str, Field(min_length=1)]


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _scale_id(value: str) -> str:
    # The column scale_weight_log.scale_id is varchar(50).
    if not is_name(value) or len(value) > 50:
        raise PydanticCustomError("scale_id", "a scale's id is 1 to 50 letters, digits, spaces and _ - . :")
    return value


def _gateway_name(value: str) -> str:
    if not is_name(value):
        raise PydanticCustomError("name", "a gateway's name is 1 to 64 letters, digits, spaces and _ - . :")
    return value


def _as_list(value: object) -> object:
    """Turn a single string into a list of one."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and None in value:
        # YAML reads an empty entry as null, and that must not admit the pages of sandboxed frames.
        raise PydanticCustomError("origin", 'an empty entry; pages without an origin are "null", in quotes')
    return value


def _origin(value: str) -> str:
    """Return an origin in its normal form; keep one that cannot match, which `--check` and the start report."""
    try:
        return normal_origin(value)
    except ValueError:
        return value


def _listening_host(value: str) -> str:
    if problem := host_problem(value):
        raise PydanticCustomError("host", "{problem}", {"problem": problem})
    return value


def _host(value: str) -> str:
    try:
        return normal_host(value)
    except ValueError as error:
        message = "{reason}; write it without scheme and port, such as plant.example"
        raise PydanticCustomError("host", message, {"reason": str(error)}) from error


ListeningHost = Annotated[str, AfterValidator(_listening_host)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Server(_Section):
    """Where the gateway listens for HTTP and for DAQ programs."""

    host: ListeningHost = "127.0.0.1"
    port: Port = 8080
    tcp_port: Port = 8082
    cors_origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_as_list)] = ()
    names: Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], BeforeValidator(_as_list)] = ()
    share_ports: bool = False
    own_port: Port | None = None


class Scale(_Section):
    """The one scale of a small plant, and what holds for every scale that does not say otherwise."""

    host: ListeningHost | None = None
    port: Port = 4001
    id: Annotated[str, AfterValidator(_scale_id)] = "default"
    idle_timeout_sec: Seconds = 10.0
    commit_max_age_sec: Seconds | None = None


class ScaleLine(_Section):
    """One of several scales: it dials in, is dialled, or hangs on a serial line."""

    listen: str | None = None
    connect: str | None = None
    serial: str | None = None
    baudrate: Count = 2400
    bytesize: Literal[5, 6, 7, 8] = 7
    parity: Annotated[Literal["N", "E", "O", "M", "S"], BeforeValidator(_upper)] = "E"
    stopbits: Literal[1, 2] = 1
    idle_timeout_sec: Seconds | None = None
    commit_max_age_sec: Seconds | None = None

    @field_validator("listen", "connect", "serial")
    @classmethod
    def _check_line(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.context is not None and info.field_name is not None:
            problem = info.context(info.field_name, value)
            if problem:
                # Not as a template: it may hold braces.
                raise PydanticCustomError("line", "{problem}", {"problem": problem})
        return value

    @model_validator(mode="after")
    def _check_kind(self) -> "ScaleLine":
        if sum(kind is not None for kind in (self.listen, self.connect, self.serial)) != 1:
            raise PydanticCustomError("kind", "exactly one of listen, connect and serial is needed")
        return self


class Fcm(_Section):
    """Push messages by Firebase Cloud Messaging."""

    cred_path: str | None = None
    timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 120.0


class LoggerSection(_Section):
    """Log files, one a day."""

    path: Folder = "log"
    level: Annotated[Literal["debug", "info", "warn", "error"], BeforeValidator(_lower)] = "info"
    keep_days: Count = 365


class Database(_Section):
    """The store: embedded, or a PostgreSQL server and what waits for it."""

    path: Folder = "db"
    url: str | None = None
    spool_mb: Count = 1024

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        problem = ""
        if value is not None:
            if not value.startswith(("postgresql://", "postgres://")):
                problem = "not a PostgreSQL URL; expected postgresql://user:password@host:port/database"
            elif info.context is not None:
                problem = info.context("url", value)
        if problem:
            raise PydanticCustomError("url", "{problem}", {"problem": problem})
        return value


class GatewaySection(_Section):
    """What tells gateways apart that share a database."""

    name: Annotated[str, AfterValidator(_gateway_name)] | None = None


class Data(_Section):
    """Raw CSV files, and what becomes of old ones; nothing, by default."""

    path: Folder = "data"
    compress_after_days: Count | None = None
    keep_days: Count | None = None
    min_free_mb: Count | None = None


class Daq(_Section):
    """Bounds of what DAQ programs may bring."""

    max_frame_bytes: Count = 16 * 1024 * 1024
    max_machines: Count = 10_000
    max_sensors: Count = 20_000
    max_machine_sensors: Count = 1000
    max_new_sensors_per_minute: Count = 5000


class Limits(_Section):
    """Bounds of connections and clients."""

    connections: Count = 20_000
    subscribers: Count = 10_000
    subscriber_bytes: Count = 1024 * 1024
    backlog_events: Annotated[int, Field(ge=1000)] = 10_000
    backlog_bytes: Count = 64 * 1024 * 1024
    body_bytes: Count = 64 * 1024


class Settings(_Section):
    """Everything that can be configured, checked."""

    server: Server = Server()
    scale: Scale = Scale()
    scales: dict[Annotated[str, AfterValidator(_scale_id)], ScaleLine] = {}
    fcm: Fcm = Fcm()
    logger: LoggerSection = LoggerSection()
    stat: dict[str, Annotated[Literal["ABS", "REAL"], BeforeValidator(_upper)]] = {"vib": "ABS", "temp": "REAL"}
    database: Database = Database()
    gateway: GatewaySection = GatewaySection()
    data: Data = Data()
    daq: Daq = Daq()
    limits: Limits = Limits()
    timezone: str | None = None

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError, OSError) as error:
                raise PydanticCustomError("timezone", "no IANA time zone") from error
        return value

    def lines(self) -> dict[str, ScaleLine]:
        """Every scale and its line: ``scales``, or ``scale`` where that is empty. No line's times are ``None``
        but an unlimited ``commit_max_age_sec``."""
        lines = self.scales or {
            self.scale.id: ScaleLine(listen=tcp_endpoint(self.scale.host or self.server.host, self.scale.port))
        }
        return {
            scale_id: line.model_copy(
                update={
                    "idle_timeout_sec": line.idle_timeout_sec or self.scale.idle_timeout_sec,
                    "commit_max_age_sec": line.commit_max_age_sec or self.scale.commit_max_age_sec,
                }
            )
            for scale_id, line in lines.items()
        }

    def default_scale(self) -> str:
        """The scale that a request means which names none: ``scale.id``, or the first of ``scales``."""
        lines = self.lines()
        return self.scale.id if self.scale.id in lines else next(iter(lines))


def tcp_endpoint(host: str, port: int) -> str:
    """Twisted's server endpoint for a host and a port.

    Its backlog lets a plant's devices come back together after a restart; Twisted's own is 50, and who finds it full
    tries again a second later.
    """
    escaped = host.replace("\\", "\\\\").replace(":", "\\:")
    return f"tcp:{port}:backlog=1024:interface={escaped}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and the key it is wrong at; the key is empty where it is the file itself."""

    key: str
    message: str
    #: Whether it keeps the gateway from starting; otherwise it is a warning at startup and in ``--check``.
    is_fatal: bool = True

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class ConfigError(Exception):
    """A configuration that cannot be used, with every problem in it.

    :param rest: settings without the invalid values; ``None`` if the file cannot be read that far.
    :param broken: keys and sections that have their defaults in ``rest``.
    """

    def __init__(self, problems: list[Problem], rest: "Settings | None" = None, broken: Iterable[str] = ()) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems
        self.rest = rest
        self.broken = frozenset(broken)


def load(
    path: Path | None, environment: Mapping[str, str], check_line: Callable[[str, str], str] | None = None
) -> Settings:
    """Return the settings of a file (``None``: all defaults) and the environment.

    :param check_line: function that takes the kind of a scale's line (``listen``, ``connect``, ``serial``) and its
        text, or ``url`` and a database's URL, and returns the problem with it, or an empty string.
    :raises ConfigError: with every problem found.
    """
    given = {} if path is None else _read(path)
    problems: list[Problem] = []
    tree = _normalised(given, Settings, (), problems)
    from_environment = {}
    for variable, (section, key) in ENVIRONMENT.items():
        if environment.get(variable):
            section_tree = tree.setdefault(section, {})
            if isinstance(section_tree, dict):
                section_tree[key] = environment[variable]
                from_environment[f"{section}.{key}"] = variable
    if isinstance(tree.get("stat"), dict):
        # A type that is left out has its default, as every key has.
        tree["stat"] = {**Settings().stat, **tree["stat"]}
    broken = {problem.key.rpartition(".")[0] for problem in problems}
    settings: Settings | None
    try:
        settings = Settings.model_validate(tree, context=check_line)
    except ValidationError as error:
        for item in error.errors():
            problem = _problem(item, from_environment)
            problems.append(problem)
            # An unknown key may be meant for any other of its section.
            is_unknown = item["type"] == "extra_forbidden"
            broken.add(problem.key.rpartition(".")[0] if is_unknown else problem.key)
        # A scale without a key for its line cannot be used, so the whole scale is removed.
        places = [item["loc"][: 2 if item["loc"][:1] == ("scales",) else None] for item in error.errors()]
        settings = _rest(_without(tree, places), check_line)
    if settings is not None:
        problems += _sharing_problems(settings, broken)
    if problems or settings is None:
        raise ConfigError(problems, None if "" in broken else settings, broken)
    return settings


def _without(tree: Any, locations: list[tuple[int | str, ...]]) -> Any:
    """Return a tree of mappings without the values at some locations; a list there is removed as a whole."""
    if not isinstance(tree, dict):
        return tree
    below: dict[int | str, list[tuple[int | str, ...]]] = {}
    for first, *further in (location for location in locations if location):
        below.setdefault(first, []).append(tuple(further))
    return {
        key: _without(value, below.get(key, []))
        for key, value in tree.items()
        if key not in below or (isinstance(value, dict) and all(below[key]) and ("[key]",) not in below[key])
    }


def _rest(tree: Any, check_line: Callable[[str, str], str] | None) -> "Settings | None":
    try:
        return Settings.model_validate(tree, context=check_line)
    except ValidationError:
        return None


def _sharing_problems(settings: Settings, broken: Iterable[str]) -> list[Problem]:
    """What keeps several processes from sharing the ports."""
    if not settings.server.share_ports:
        return []
    problems = []
    if settings.database.url is None and not {"database", "database.url"} & set(broken):
        # Each would have commits and statistics of its own, and hear nothing of the others.
        problems.append(Problem("server.share_ports", "processes that share ports share a database too: database.url"))
    for scale_id, line in settings.scales.items():
        key = f"scales.{scale_id}"
        if line.connect is not None:
            problems.append(Problem(f"{key}.connect", "with server.share_ports each process would dial it"))
        elif line.serial is not None:
            problems.append(Problem(f"{key}.serial", "with server.share_ports each process would open it"))
        elif not (line.listen or "").startswith(_SHAREABLE):
            problems.append(Problem(f"{key}.listen", f"with server.share_ports it begins with {', '.join(_SHAREABLE)}"))
    return problems


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that stands twice instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[Hashable, Any]:
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError([Problem("", f"{path}: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("", f"{path}: not UTF-8")]) from error
    try:
        tree = yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or f"not YAML ({type(error).__name__})"
        raise ConfigError([Problem("", f"{path}{where}: {what}")]) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError([Problem("", f"{path}: the top level is no mapping")])
    return tree


def _normalised(
    tree: Mapping[Hashable, Any], model: type[BaseModel], above: tuple[str, ...], problems: list[Problem]
) -> dict[str, Any]:
    """Keys in lower case, as the models have them; an empty value is an absent one."""
    result: dict[str, Any] = {}
    seen: set[str] = set()
    for given, value in tree.items():
        key = str(given).lower()
        here = (*above, key)
        if key in seen:
            problems.append(Problem(".".join(here), "stands twice, in upper and lower case"))
        seen.add(key)
        if value is None:
            continue
        field = model.model_fields.get(key)
        if field is not None and isinstance(value, dict):
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                value = _normalised(value, field.annotation, here, problems)
            elif key == "scales":
                # A scale's id is a name: its case is its own.
                value = {
                    name: _normalised(line, ScaleLine, (*here, name), problems) if isinstance(line, dict) else line
                    for name, line in _renamed(value, str, here, problems).items()
                }
            else:
                value = _renamed(value, str.lower, here, problems)
        result[key] = value
    return result


def _renamed(
    tree: Mapping[Hashable, Any], name_of: Callable[[str], str], above: tuple[str, ...], problems: list[Problem]
) -> dict[str, Any]:
    """A mapping whose keys are names, as texts."""
    result: dict[str, Any] = {}
    for given, value in tree.items():
        name = name_of(str(given))
        if name in result:
            problems.append(Problem(".".join((*above, name)), "stands twice"))
        result[name] = value
    return result


def _problem(error: Any, from_environment: Mapping[str, str]) -> Problem:
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        return Problem(key, f"unknown key; the nearest known key is {_nearest(error['loc'])}")
    message = error["msg"]
    given = error.get("input")
    # A URL may hold a password.
    if isinstance(given, str | int | float) and "://" not in str(given) and not key.startswith("database"):
        message = f"{message} (it is {given!r})"
    if key in from_environment:
        message = f"{message}, set by {from_environment[key]}"
    return Problem(key, message)


def _nearest(location: tuple[int | str, ...]) -> str:
    """The known key that is most like one that is not."""
    *above, unknown = map(str, location)
    model: type[BaseModel] = Settings
    for part in above:
        field = model.model_fields.get(part)
        annotation = None if field is None else field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        elif above[0] == "scales":
            model = ScaleLine
    (best,) = difflib.get_close_matches(unknown, model.model_fields, 1, cutoff=0.0)
    if not above and difflib.SequenceMatcher(None, unknown, best).ratio() < 0.6:
        # It may belong into a section.
        inner = [
            f"{name}.{key}"
            for name, field in Settings.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            for key in field.annotation.model_fields
        ]
        found = [name for name in inner if name.partition(".")[2] == unknown]
        if found:
            return found[0]
    return ".".join([*above, best])
