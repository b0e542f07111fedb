"""Identity and limits of this gateway among the gateways on one database."""

import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import Final

#: Seconds between messages of a gateway that has nothing else to send.
BEAT: Final = 2.0

#: Seconds without a message after which a peer counts as gone.
GONE: Final = 6.0

#: Maximum characters of a gateway's name in messages.
_MAX_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Settings of the relay.

    :ivar name: ``gateway.name``, or the name of the computer.
    :ivar idle_timeout: ``scale.idle_timeout_sec``, sent with records that belong to no scale, in seconds.
    :ivar token: random identifier of this process, which tells it from an earlier one and from gateways of its name.
    """

    name: str
    idle_timeout: float
    token: str = field(default_factory=partial(secrets.token_hex, 8))

    @property
    def sent_name(self) -> str:
        """Name as messages carry it."""
        return self.name[:_MAX_NAME]
