"""Settings: one frozen model for each section of the configuration."""

from collections import Counter
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.config.hosts import host_problem
from gateway.config.origins import normal_host, normal_origin
from gateway.model.names import is_name, name_of


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "not a number")
    return value


Port = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=65535)]

Seconds = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]

Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]


def _path(value: str) -> str:
    if "\0" in value:
        # Every use of it would be a ValueError.
        raise PydanticCustomError("path", "a path has no NUL character")
    return value


Folder = Annotated[str, Field(min_length=1), AfterValidator(_path)]


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _scale_id(value: str) -> str:
    # The column scale_weight_log.scale_id is varchar(50).
    if not is_name(value) or len(value) > 50:
        raise PydanticCustomError("scale_id", "a scale's id is 1 to 50 letters, digits, spaces and _ - . :")
    return value


def _machine_name(value: str) -> str:
    name = name_of(value)
    if name is None:
        raise PydanticCustomError("name", "a machine's name is 1 to 64 letters, digits, spaces and _ - . :")
    return name


def _distinct_machines(value: object) -> object:
    """Refuse two spellings of one machine: only one of them would have an effect."""
    if isinstance(value, dict):
        names = Counter(name_of(key.strip()) for key in value if isinstance(key, str))
        for name, count in names.items():
            if name is not None and count > 1:
                raise PydanticCustomError("name", "machine {name} is listed twice, in two spellings", {"name": name})
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


def _network(value: object) -> object:
    """Return the network of a text such as ``10.0.0.0/8``, or of a single address."""
    if not isinstance(value, str):
        raise PydanticCustomError("network", "not a network; write it in quotes, such as '10.0.0.0/8'")
    try:
        return ip_network(value.strip())
    except ValueError as error:
        raise PydanticCustomError(
            "network", "not a network such as 10.0.0.0/8: {reason}", {"reason": str(error)}
        ) from error


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


Networks = Annotated[
    tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)], ...], BeforeValidator(_as_list)
]

Scope = Literal["read", "commit", "admin"]

ListeningHost = Annotated[str, AfterValidator(_listening_host)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class TlsSettings(_Section):
    """Files of a listener with TLS, in PEM.

    :ivar cert: certificate, followed by those of intermediate authorities.
    :ivar client_ca: authorities of client certificates; without it, clients need no certificate.
    """

    cert: Folder
    key: Folder
    client_ca: Folder | None = None


class ServerSettings(_Section):
    """Addresses and ports for HTTP and DAQ programs, and the pages that may use them."""

    host: ListeningHost = "127.0.0.1"
    port: Port = 8080
    tcp_port: Port = 8082
    cors_origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_as_list)] = ()
    names: Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], BeforeValidator(_as_list)] = ()
    share_ports: bool = False
    own_port: Port | None = None
    allow: Networks = ()
    trusted_proxies: Networks = ()
    tls: TlsSettings | None = None


class AuthSettings(_Section):
    """Access control: the file of the tokens, and the scopes of requests without a token."""

    tokens_file: Folder = "tokens.json"
    anonymous: Annotated[tuple[Scope, ...], BeforeValidator(_as_list)] = ()


class ScaleDefaults(_Section):
    """The single scale of a small plant, and the defaults of all scales."""

    host: ListeningHost | None = None
    port: Port = 4001
    id: Annotated[str, AfterValidator(_scale_id)] = "default"
    idle_timeout_sec: Seconds = 10.0
    commit_max_age_sec: Seconds | None = None
    allow: Networks = ()
    tls: TlsSettings | None = None


class ScaleConnection(_Section):
    """One of several scales: it connects to the gateway, is dialled, or is on a serial line."""

    listen: str | None = None
    connect: str | None = None
    serial: Annotated[str, AfterValidator(_path)] | None = None
    baudrate: Count = 2400
    bytesize: Literal[5, 6, 7, 8] = 7
    parity: Annotated[Literal["N", "E", "O", "M", "S"], BeforeValidator(_upper)] = "E"
    stopbits: Literal[1, 2] = 1
    idle_timeout_sec: Seconds | None = None
    commit_max_age_sec: Seconds | None = None
    allow: Networks | None = None
    tls: TlsSettings | None = None

    @field_validator("listen", "connect", "serial")
    @classmethod
    def _check_line(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.context is not None and info.field_name is not None:
            problem = info.context(info.field_name, value)
            if problem:
                # Not as a template: the text may contain braces.
                raise PydanticCustomError("line", "{problem}", {"problem": problem})
        return value

    @model_validator(mode="after")
    def _check_kind(self) -> "ScaleConnection":
        if sum(kind is not None for kind in (self.listen, self.connect, self.serial)) != 1:
            raise PydanticCustomError("kind", "exactly one of listen, connect and serial is needed")
        return self


class FcmSettings(_Section):
    """Push messages by Firebase Cloud Messaging."""

    cred_path: Annotated[str, AfterValidator(_path)] | None = None
    timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 120.0


class LoggerSettings(_Section):
    """Daily log files."""

    path: Folder | None = "log"
    format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = "text"
    level: Annotated[Literal["debug", "info", "warn", "error"], BeforeValidator(_lower)] = "info"
    keep_days: Count = 365


class DatabaseSettings(_Section):
    """The store: embedded, or a PostgreSQL server with a local spool."""

    path: Folder = "db"
    url: str | None = None
    url_file: Folder | None = None
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


class GatewaySettings(_Section):
    """Identity of a gateway among those that share a database."""

    name: Annotated[str, AfterValidator(_gateway_name)] | None = None


class DataSettings(_Section):
    """Raw CSV files and their retention; by default they are kept for ever."""

    path: Folder = "data"
    compress_after_days: Count | None = None
    keep_days: Count | None = None
    min_free_mb: Count | None = None


class DaqSettings(_Section):
    """Limits of the data of DAQ programs."""

    max_frame_bytes: Count = 16 * 1024 * 1024
    max_machines: Count = 10_000
    max_sensors: Count = 20_000
    max_machine_sensors: Count = 1000
    max_new_sensors_per_minute: Count = 5000
    allow: Networks = ()
    tls: TlsSettings | None = None
    name_timeout_sec: Seconds = 60.0
    listed_only: bool = False


class MachineSettings(_Section):
    """Proofs that a DAQ program must give before it may use the name of a machine.

    :ivar allow: networks of its address; empty for any.
    :ivar certificate: name in its client certificate.
    :ivar secret_file: file of the secret that it sends with its name.
    """

    allow: Networks = ()
    certificate: Folder | None = None
    secret_file: Folder | None = None


class LimitSettings(_Section):
    """Limits of connections and clients."""

    connections: Count = 20_000
    subscribers: Count = 10_000
    subscriber_bytes: Count = 1024 * 1024
    backlog_events: Annotated[int, Field(ge=1000)] = 10_000
    backlog_bytes: Count = 64 * 1024 * 1024
    body_bytes: Count = 64 * 1024
    connections_per_address: Count = 5000
    requests_per_second: Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)] | None = None
    request_burst: Count = 100
    head_timeout_sec: Seconds = 10.0
    idle_timeout_sec: Seconds = 75.0
    min_bytes_per_second: Count = 1024
    grace_sec: Seconds = 10.0


class Settings(_Section):
    """The whole configuration, validated."""

    server: ServerSettings = ServerSettings()
    scale: ScaleDefaults = ScaleDefaults()
    scales: dict[Annotated[str, AfterValidator(_scale_id)], ScaleConnection] = {}
    fcm: FcmSettings = FcmSettings()
    logger: LoggerSettings = LoggerSettings()
    stat: dict[str, Annotated[Literal["ABS", "REAL"], BeforeValidator(_upper)]] = {"vib": "ABS", "temp": "REAL"}
    database: DatabaseSettings = DatabaseSettings()
    gateway: GatewaySettings = GatewaySettings()
    data: DataSettings = DataSettings()
    daq: DaqSettings = DaqSettings()
    machines: Annotated[
        dict[Annotated[str, AfterValidator(_machine_name)], MachineSettings], BeforeValidator(_distinct_machines)
    ] = {}
    auth: AuthSettings | None = None
    limits: LimitSettings = LimitSettings()
    timezone: str | None = None

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError, OSError) as error:
                raise PydanticCustomError("timezone", "not a known IANA time zone; an example is Asia/Seoul") from error
        return value

    def lines(self) -> dict[str, ScaleConnection]:
        """Return the connection of every scale, by id: ``scales``, or ``scale`` if that is empty.

        Times and ``allow`` have the defaults of ``scale``; ``commit_max_age_sec`` may be ``None`` (unlimited).
        """
        lines = self.scales or {
            self.scale.id: ScaleConnection(
                listen=tcp_endpoint(self.scale.host or self.server.host, self.scale.port), tls=self.scale.tls
            )
        }
        return {
            scale_id: line.model_copy(
                update={
                    "idle_timeout_sec": line.idle_timeout_sec or self.scale.idle_timeout_sec,
                    "commit_max_age_sec": line.commit_max_age_sec or self.scale.commit_max_age_sec,
                    "allow": self.scale.allow if line.allow is None else line.allow,
                }
            )
            for scale_id, line in lines.items()
        }

    def default_scale(self) -> str:
        """Return the scale for requests that name no scale: ``scale.id``, or the first of ``scales``."""
        lines = self.lines()
        return self.scale.id if self.scale.id in lines else next(iter(lines))


def tcp_endpoint(host: str, port: int) -> str:
    """Return Twisted's server endpoint for a host and a port.

    The backlog lets all devices of a plant reconnect at once after a restart. Twisted's default is 50, and a client
    that finds it full tries again a second later.
    """
    escaped = host.replace("\\", "\\\\").replace(":", "\\:")
    return f"tcp:{port}:backlog=1024:interface={escaped}"
