"""Other gateways on the same database: their presence, and requests for the state of those whose messages were missed.

Each message has a number. If one is missing, the receiver says hello to its sender, which answers with its state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from twisted.logger import Logger

from gateway.relay.protocol import HELLO, RelayMessage
from gateway.relay.settings import BEAT, GONE
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters
from gateway.wire.errors import WireError

log = Logger()

#: Maximum peers; a site has a few.
_MAX_PEERS: Final = 1000


@dataclass(slots=True)
class Peer:
    """Another gateway.

    :ivar number: number of its last message; ``None`` if messages may have been missed and its state is awaited.
    :ivar seen_at: time of its last message, on the monotonic clock.
    :ivar asked_at: time of the last request for its state, on the monotonic clock.
    :ivar is_request_due: whether messages were missed too soon after that request to repeat it at once.
    """

    name: str
    number: int | None
    seen_at: float
    asked_at: float
    is_request_due: bool = False


class PeerDirectory:
    """All present peers, by their tokens.

    :param name: name of this gateway in messages.
    :param request_state: asks the peer with a token for its state.
    """

    def __init__(self, clock: WallClock, counters: Counters, name: str, request_state: Callable[[str], None]) -> None:
        self._clock = clock
        self._counters = counters
        self._name = name
        self._request_state = request_state
        self._peers: dict[str, Peer] = {}
        #: Time of the last hello to all, on the monotonic clock.
        self._hello_at = float("-inf")
        self._checked_at = clock.monotonic()

    def expect_states(self) -> None:
        """Expect the state of every peer: this gateway has just said hello to all."""
        self._hello_at = self._clock.monotonic()
        for peer in self._peers.values():
            peer.number, peer.asked_at, peer.is_request_due = None, self._hello_at, False

    def receive(self, message: RelayMessage) -> None:
        """Note a message; request the state of its sender if earlier messages were missed.

        :raises WireError: there are too many peers.
        """
        now = self._clock.monotonic()
        # After a hello to all, a gateway sends its state without a request.
        announces_state = message.kind == HELLO and message.to is None
        peer = self._peers.get(message.token)
        if peer is None:
            peer = self._add(message, now)
            # A peer answers the hello of this gateway to all, unless that was sent before the peer listened.
            is_missing = not announces_state and now - self._hello_at >= BEAT
        else:
            is_missing = not announces_state and peer.number is not None and message.number != peer.number + 1
            if is_missing:
                self._counters.relay_gaps.inc()
        if is_missing:
            self._request(message.token, peer, now)
        peer.number = message.number
        peer.seen_at = now

    def __contains__(self, token: str) -> bool:
        return token in self._peers

    def remove(self, token: str) -> None:
        """Remove a peer."""
        del self._peers[token]
        self._counters.relay_gateways.set(len(self._peers))

    def check(self) -> list[str]:
        """Repeat requests that are due; return the tokens of the peers that were silent for too long."""
        now = self._clock.monotonic()
        if now - self._checked_at > BEAT:
            # This process was suspended, and has not read the messages that arrived meanwhile.
            for peer in self._peers.values():
                peer.seen_at = now
        self._checked_at = now
        silent = []
        for token, peer in self._peers.items():
            if now - peer.seen_at >= GONE:
                log.warn(
                    "gateway {name}: no message for {seconds} s; its scales and machines count as disconnected",
                    name=peer.name,
                    seconds=round(now - peer.seen_at, 1),
                )
                silent.append(token)
            elif peer.is_request_due:
                self._request(token, peer, now)
        return silent

    def _add(self, message: RelayMessage, now: float) -> Peer:
        if len(self._peers) >= _MAX_PEERS:
            raise WireError(f"there are {_MAX_PEERS} other gateways already")
        log.info("gateway {name} is present", name=message.gateway)
        if message.gateway == self._name:
            log.warn(
                "gateway.name: another gateway on this database has the same name, {name}; give each its own",
                name=message.gateway,
            )
        peer = self._peers[message.token] = Peer(message.gateway, message.number, now, self._hello_at)
        self._counters.relay_gateways.set(len(self._peers))
        return peer

    def _request(self, token: str, peer: Peer, now: float) -> None:
        """Request the state of a peer; later, if it may still answer the last request."""
        peer.is_request_due = now - peer.asked_at < BEAT
        if not peer.is_request_due:
            peer.asked_at = now
            self._request_state(token)
