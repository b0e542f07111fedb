"""Settings of scales: their lines, and the guards of their commits."""

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.config.fields import (
    Count,
    ListeningHost,
    Networks,
    Port,
    Seconds,
    Section,
    TlsSettings,
    as_list,
    lower,
    no_bool,
    path_text,
    scale_id_text,
    upper,
)

Kilograms = Annotated[Decimal, BeforeValidator(no_bool), Field(allow_inf_nan=False)]

PositiveKilograms = Annotated[Decimal, BeforeValidator(no_bool), Field(gt=0, allow_inf_nan=False)]

Milliseconds = Annotated[int, BeforeValidator(no_bool), Field(ge=1)]

#: An address of a scale behind a line that several scales share.
Address = Annotated[str, Field(pattern=r"^[0-9]{2}$")]


#: Text in a command that stands for the address of a scale.
ADDRESS_FIELD: Final = "{address}"


class PollSettings(Section):
    """Commands for a scale that answers only when asked.

    :ivar command: bytes of a command, as Latin-1; ``{address}`` stands for the address of each scale in turn.
    :ivar interval_ms: milliseconds between two commands.
    :ivar at_connect: bytes to send once after connecting.
    """

    # A blank or a line end at the end of a command matters.
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)

    command: Annotated[str, Field(min_length=1, max_length=64)] = "Q\r\n"
    interval_ms: Annotated[int, BeforeValidator(no_bool), Field(ge=500)] = 500
    at_connect: Annotated[str, Field(max_length=64)] = ""

    @field_validator("command", "at_connect")
    @classmethod
    def _check_bytes(cls, value: str) -> str:
        if not all(ord(character) < 256 for character in value):
            raise PydanticCustomError("bytes", "a command consists of bytes, which are written as Latin-1")
        return value

    def commands(self, addresses: Iterable[str]) -> list[bytes]:
        """Return the commands to send in turn: one for each address, if the command names an address."""
        return _for_each(self.command, list(addresses))

    def greeting(self, addresses: Iterable[str]) -> bytes:
        """Return the bytes to send once after connecting."""
        return b"".join(_for_each(self.at_connect, list(addresses)))


def _for_each(text: str, addresses: list[str]) -> list[bytes]:
    if ADDRESS_FIELD not in text or not addresses:
        return [text.encode("latin-1")]
    return [text.replace(ADDRESS_FIELD, address).encode("latin-1") for address in addresses]


class CheckWeighSettings(Section):
    """Limits of the check with a reference weight, and the date of the next calibration.

    :ivar warning_kg: deviation from which commits bear a warning.
    :ivar control_kg: deviation from which the scale is out of control.
    :ivar every_days: days after which a check is due again; ``None`` for never.
    :ivar when_out: whether commits of a scale that is out of control are refused, or bear a warning.
    """

    warning_kg: PositiveKilograms | None = None
    control_kg: PositiveKilograms | None = None
    every_days: Count | None = None
    calibration_due: date | None = None
    when_out: Annotated[Literal["warn", "refuse"], BeforeValidator(lower)] = "warn"


class _ScaleKeys(Section):
    """Keys that ``scale`` has for all scales and ``scales.<id>`` for one; by default, the old behaviour.

    :ivar commit_max_age_sec: maximum age of a committed weight, in seconds.
    :ivar line_pattern_lock: whether a line of another width or number of decimals must be confirmed by the next one.
    :ivar unit: the only unit of lines whose weight may be committed.
    :ivar require_stable_ms: milliseconds for which a weight must have been stable.
    :ivar zero_band_kg: largest weight of an empty pan, which the scale must show between two commits.
    :ivar accept: kinds of weights that become the latest value; ``None`` for gross, without the guard ``only_net``.
    :ivar prefix: text that a converter puts before each line.
    :ivar discard_ms: milliseconds after connecting whose lines are discarded.
    :ivar duplicate_window_sec: seconds within which the same commit without a key is a duplicate.
    :ivar override: whether a commit with a reason may pass a guard.
    :ivar commit_when_away: whether commits wait as tickets while PostgreSQL is unavailable, or are refused.
    """

    commit_max_age_sec: Seconds | None = None
    line_pattern_lock: bool | None = None
    min_kg: Kilograms | None = None
    max_kg: Kilograms | None = None
    unit: Annotated[Literal["kg", "g", "t", "lb", "oz"], BeforeValidator(lower)] | None = None
    require_stable_ms: Milliseconds | None = None
    zero_band_kg: PositiveKilograms | None = None
    accept: Annotated[tuple[Literal["gross", "net"], ...], BeforeValidator(as_list), Field(min_length=1)] | None = None
    poll: PollSettings | None = None
    prefix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    discard_ms: Milliseconds | None = None
    duplicate_window_sec: Seconds | None = None
    override: bool | None = None
    commit_when_away: Annotated[Literal["refuse", "ticket"], BeforeValidator(lower)] | None = None
    check_weigh: CheckWeighSettings | None = None

    @model_validator(mode="after")
    def _check_range(self) -> "_ScaleKeys":
        if self.min_kg is not None and self.max_kg is not None and self.min_kg >= self.max_kg:
            raise PydanticCustomError("range", "min_kg is not below max_kg")
        return self


#: Keys that ``scales.<id>`` has from ``scale`` unless it has them itself, where null means the old behaviour.
SCALE_KEYS: Final = frozenset(_ScaleKeys.model_fields)


class ScaleDefaults(_ScaleKeys):
    """The single scale of a small plant, and the defaults of all scales."""

    host: ListeningHost | None = None
    port: Port = 4001
    id: Annotated[str, AfterValidator(scale_id_text)] = "default"
    idle_timeout_sec: Seconds = 10.0
    allow: Networks = ()
    tls: TlsSettings | None = None


class ScaleConnection(_ScaleKeys):
    """One of several scales: it connects to the gateway, is dialled, is on a serial line, or shares one (``via``).

    :ivar addresses: scales behind this line, by address; the line itself is not a scale then.
    :ivar via: name of the line that lists this scale in its ``addresses``.
    """

    listen: str | None = None
    connect: str | None = None
    serial: Annotated[str, AfterValidator(path_text)] | None = None
    via: str | None = None
    addresses: dict[Address, Annotated[str, AfterValidator(scale_id_text)]] | None = None
    baudrate: Count = 2400
    bytesize: Literal[5, 6, 7, 8] = 7
    parity: Annotated[Literal["N", "E", "O", "M", "S"], BeforeValidator(upper)] = "E"
    stopbits: Literal[1, 2] = 1
    idle_timeout_sec: Seconds | None = None
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
        if sum(kind is not None for kind in (self.listen, self.connect, self.serial, self.via)) != 1:
            raise PydanticCustomError("kind", "exactly one of listen, connect, serial and via is needed")
        if self.addresses is not None and not self.addresses:
            raise PydanticCustomError("addresses", "addresses lists no scale")
        return self

    def with_defaults(self, defaults: ScaleDefaults) -> "ScaleConnection":
        """Return the connection with the keys of ``scale`` that it does not have itself."""
        inherited: dict[str, Any] = {
            key: getattr(defaults, key) for key in SCALE_KEYS if key not in self.model_fields_set
        }
        inherited["idle_timeout_sec"] = self.idle_timeout_sec or defaults.idle_timeout_sec
        inherited["allow"] = defaults.allow if self.allow is None else self.allow
        return self.model_copy(update=inherited)


def scales_of(lines: Mapping[str, ScaleConnection], defaults: ScaleDefaults) -> dict[str, ScaleConnection]:
    """Return the settings of every scale by its id: of lines without addresses, and of the addresses of the others.

    :param lines: ``scales``, with the keys of ``scale``.
    """
    found: dict[str, ScaleConnection] = {}
    for name, line in lines.items():
        if line.addresses is None:
            found.setdefault(name, line)
            continue
        for scale_id in line.addresses.values():
            found[scale_id] = lines.get(scale_id) or ScaleConnection(via=name).with_defaults(defaults)
    return found
