"""Types of configuration values that several sections share."""

from collections import Counter
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from gateway.config.hosts import host_problem
from gateway.config.origins import normal_host, normal_origin
from gateway.model.names import is_name, name_of


def no_bool(value: object) -> object:
    """Refuse a boolean, which Python takes for a number."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "not a number")
    return value


Port = Annotated[int, BeforeValidator(no_bool), Field(ge=0, le=65535)]

Seconds = Annotated[float, BeforeValidator(no_bool), Field(gt=0, allow_inf_nan=False)]

Count = Annotated[int, BeforeValidator(no_bool), Field(ge=1)]


def path_text(value: str) -> str:
    """Return a path that a file can have."""
    if "\0" in value:
        # Every use of it would be a ValueError.
        raise PydanticCustomError("path", "a path has no NUL character")
    return value


Folder = Annotated[str, Field(min_length=1), AfterValidator(path_text)]


def upper(value: object) -> object:
    """Return a text in upper case; any other value as it is."""
    return value.upper() if isinstance(value, str) else value


def lower(value: object) -> object:
    """Return a text in lower case; any other value as it is."""
    return value.lower() if isinstance(value, str) else value


def scale_id_text(value: str) -> str:
    """Return a valid id of a scale."""
    # The column scale_weight_log.scale_id is varchar(50).
    if not is_name(value) or len(value) > 50:
        raise PydanticCustomError("scale_id", "a scale's id is 1 to 50 letters, digits, spaces and _ - . :")
    return value


def machine_name(value: str) -> str:
    """Return the name of a machine in its normal form."""
    name = name_of(value)
    if name is None:
        raise PydanticCustomError("name", "a machine's name is 1 to 64 letters, digits, spaces and _ - . :")
    return name


def distinct_machines(value: object) -> object:
    """Refuse two spellings of one machine: only one of them would have an effect."""
    if isinstance(value, dict):
        names = Counter(name_of(key.strip()) for key in value if isinstance(key, str))
        for name, count in names.items():
            if name is not None and count > 1:
                raise PydanticCustomError("name", "machine {name} is listed twice, in two spellings", {"name": name})
    return value


def gateway_name(value: str) -> str:
    """Return a valid name of a gateway."""
    if not is_name(value):
        raise PydanticCustomError("name", "a gateway's name is 1 to 64 letters, digits, spaces and _ - . :")
    return value


def as_list(value: object) -> object:
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


def origin_text(value: str) -> str:
    """Return an origin in its normal form; keep one that cannot match, which `--check` and the start report."""
    try:
        return normal_origin(value)
    except ValueError:
        return value


def _listening_host(value: str) -> str:
    if problem := host_problem(value):
        raise PydanticCustomError("host", "{problem}", {"problem": problem})
    return value


def host_name(value: str) -> str:
    """Return the name of a host in its normal form."""
    try:
        return normal_host(value)
    except ValueError as error:
        message = "{reason}; write it without scheme and port, such as plant.example"
        raise PydanticCustomError("host", message, {"reason": str(error)}) from error


Networks = Annotated[
    tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)], ...], BeforeValidator(as_list)
]

Scope = Literal["read", "commit", "admin"]

ListeningHost = Annotated[str, AfterValidator(_listening_host)]


class Section(BaseModel):
    """A section of the configuration: frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class TlsSettings(Section):
    """Files of a listener with TLS, in PEM.

    :ivar cert: certificate, followed by those of intermediate authorities.
    :ivar client_ca: authorities of client certificates; without it, clients need no certificate.
    """

    cert: Folder
    key: Folder
    client_ca: Folder | None = None
