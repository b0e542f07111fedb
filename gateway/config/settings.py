"""Settings: one frozen model for each section of the configuration."""

from decimal import Decimal
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gateway.config.fields import (
    Count,
    Folder,
    ListeningHost,
    Networks,
    Port,
    Scope,
    Seconds,
    Section,
    TlsSettings,
    as_list,
    distinct_machines,
    gateway_name,
    host_name,
    lower,
    machine_name,
    no_bool,
    origin_text,
    path_text,
    scale_id_text,
    upper,
)
from gateway.config.scale_settings import Kilograms, ScaleConnection, ScaleDefaults, scales_of


def check_url(value: str | None, info: ValidationInfo) -> str | None:
    """Return the URL of a database, if it is one."""
    problem = ""
    if value is not None:
        if not value.startswith(("postgresql://", "postgres://")):
            problem = "not a PostgreSQL URL; expected postgresql://user:password@host:port/database"
        elif info.context is not None:
            problem = info.context("url", value)
    if problem:
        raise PydanticCustomError("url", "{problem}", {"problem": problem})
    return value


class ServerSettings(Section):
    """Addresses and ports for HTTP and DAQ programs, and the pages that may use them."""

    host: ListeningHost = "127.0.0.1"
    port: Port = 8080
    tcp_port: Port = 8082
    cors_origins: Annotated[tuple[Annotated[str, AfterValidator(origin_text)], ...], BeforeValidator(as_list)] = ()
    names: Annotated[tuple[Annotated[str, AfterValidator(host_name)], ...], BeforeValidator(as_list)] = ()
    share_ports: bool = False
    own_port: Port | None = None
    allow: Networks = ()
    trusted_proxies: Networks = ()
    tls: TlsSettings | None = None


class AuthSettings(Section):
    """Access control: the file of the tokens, and the scopes of requests without a token."""

    tokens_file: Folder = "tokens.json"
    anonymous: Annotated[tuple[Scope, ...], BeforeValidator(as_list)] = ()


class FcmSettings(Section):
    """Push messages by Firebase Cloud Messaging."""

    cred_path: Annotated[str, AfterValidator(path_text)] | None = None
    timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 120.0


class LoggerSettings(Section):
    """Daily log files."""

    path: Folder | None = "log"
    format: Annotated[Literal["text", "json"], BeforeValidator(lower)] = "text"
    level: Annotated[Literal["debug", "info", "warn", "error"], BeforeValidator(lower)] = "info"
    keep_days: Count = 365


class DatabaseSettings(Section):
    """The store: embedded, or a PostgreSQL server with a local spool."""

    path: Folder = "db"
    url: str | None = None
    url_file: Folder | None = None
    spool_mb: Count = 1024
    max_tickets: Count = 100_000

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        return check_url(value, info)


class GatewaySettings(Section):
    """Identity of a gateway among those that share a database."""

    name: Annotated[str, AfterValidator(gateway_name)] | None = None


class CylinderSettings(Section):
    """The plant's own table of cylinders, in the database of ``database.url`` or in another.

    :ivar query: statement that returns the row of one cylinder: ``%(cylinder_no)s`` stands for its number, and the
        columns are ``tare_kg``, ``net_kg``, ``test_due`` and ``blocked``, some of which may be absent.
    :ivar url: database of the table; ``None`` for ``database.url``.
    :ivar tolerance_kg: tolerance of a full cylinder's weight.
    :ivar cache_sec: seconds for which a row is kept.
    :ivar cache_size: maximum rows that are kept.
    :ivar timeout_ms: milliseconds for which a commit waits for the row.
    """

    query: Annotated[str, Field(min_length=1)] | None = None
    url: str | None = None
    tolerance_kg: Annotated[Kilograms, Field(ge=0)] = Decimal("1.0")
    cache_sec: Seconds = 300.0
    cache_size: Count = 10_000
    timeout_ms: Annotated[int, BeforeValidator(no_bool), Field(ge=1, le=200)] = 200

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        return check_url(value, info)


class PublishSettings(Section):
    """Places to which the head of the record is sent, so that nobody can change the record unnoticed.

    :ivar file: file to which heads are appended.
    :ivar webhook: URL to which heads are posted as JSON.
    :ivar gateway: URL of another gateway, whose record takes the head.
    :ivar token_file: file of the token for that gateway.
    :ivar every_sec: seconds between two heads.
    """

    file: Folder | None = None
    webhook: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    gateway: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    token_file: Folder | None = None
    every_sec: Seconds = 3600.0


class RecordSettings(Section):
    """The record of commits, and where its head is published."""

    publish_to: PublishSettings = PublishSettings()


class DataSettings(Section):
    """Raw CSV files and their retention; by default they are kept for ever."""

    path: Folder = "data"
    compress_after_days: Count | None = None
    keep_days: Count | None = None
    min_free_mb: Count | None = None


class DaqSettings(Section):
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


class MachineSettings(Section):
    """Proofs that a DAQ program must give before it may use the name of a machine.

    :ivar allow: networks of its address; empty for any.
    :ivar certificate: name in its client certificate.
    :ivar secret_file: file of the secret that it sends with its name.
    """

    allow: Networks = ()
    certificate: Folder | None = None
    secret_file: Folder | None = None


class LimitSettings(Section):
    """Limits of connections and clients."""

    connections: Count = 20_000
    subscribers: Count = 10_000
    subscriber_bytes: Count = 1024 * 1024
    backlog_events: Annotated[int, Field(ge=1000)] = 10_000
    backlog_bytes: Count = 64 * 1024 * 1024
    body_bytes: Count = 64 * 1024
    connections_per_address: Count = 5000
    requests_per_second: Annotated[float, BeforeValidator(no_bool), Field(gt=0, allow_inf_nan=False)] | None = None
    request_burst: Count = 100
    head_timeout_sec: Seconds = 10.0
    idle_timeout_sec: Seconds = 75.0
    min_bytes_per_second: Count = 1024
    grace_sec: Seconds = 10.0


class Settings(Section):
    """The whole configuration, validated."""

    server: ServerSettings = ServerSettings()
    scale: ScaleDefaults = ScaleDefaults()
    scales: dict[Annotated[str, AfterValidator(scale_id_text)], ScaleConnection] = Field(default={})
    fcm: FcmSettings = FcmSettings()
    logger: LoggerSettings = LoggerSettings()
    stat: dict[str, Annotated[Literal["ABS", "REAL"], BeforeValidator(upper)]] = Field(
        default={"vib": "ABS", "temp": "REAL"}
    )
    database: DatabaseSettings = DatabaseSettings()
    gateway: GatewaySettings = GatewaySettings()
    cylinders: CylinderSettings = CylinderSettings()
    record: RecordSettings = RecordSettings()
    data: DataSettings = DataSettings()
    daq: DaqSettings = DaqSettings()
    machines: Annotated[
        dict[Annotated[str, AfterValidator(machine_name)], MachineSettings], BeforeValidator(distinct_machines)
    ] = Field(default={})
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
        """Return every line of scales by its name: those of ``scales``, or that of ``scale`` if that is empty.

        A line has the keys of ``scale`` that it does not have itself. Scales that share another's line are left out.
        """
        return {name: line for name, line in self._connections().items() if line.via is None}

    def scale_settings(self) -> dict[str, ScaleConnection]:
        """Return the settings of every scale by its id, those that share a line with others included."""
        return scales_of(self._connections(), self.scale)

    def _connections(self) -> dict[str, ScaleConnection]:
        connections = self.scales or {
            self.scale.id: ScaleConnection(
                listen=tcp_endpoint(self.scale.host or self.server.host, self.scale.port), tls=self.scale.tls
            )
        }
        return {name: line.with_defaults(self.scale) for name, line in connections.items()}

    def default_scale(self) -> str:
        """Return the scale for requests that name no scale: ``scale.id``, or the first of ``scales``."""
        scales = self.scale_settings()
        return self.scale.id if self.scale.id in scales else next(iter(scales))


def tcp_endpoint(host: str, port: int) -> str:
    """Return Twisted's server endpoint for a host and a port.

    The backlog lets all devices of a plant reconnect at once after a restart. Twisted's default is 50, and a client
    that finds it full tries again a second later.
    """
    escaped = host.replace("\\", "\\\\").replace(":", "\\:")
    return f"tcp:{port}:backlog=1024:interface={escaped}"
