"""Guards of one scale: a state machine over its readings, its presence and its commits.

It knows no clock and no I/O: each call gets the monotonic time, in seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Final, NamedTuple

from gateway.config.scale_settings import ScaleConnection
from gateway.model.records import ALLOWED, Verdict
from gateway.weighing.commits import Attempt, RecentCommit, RecentCommits
from gateway.weighing.messages import refusal
from gateway.weighing.passport import Passport

#: Errors that a commit with a reason passes, where the scale allows that. The others are about the request, or about
#: weights that are never right.
OVERRIDABLE: Final = frozenset(
    {
        "weight_out_of_range",
        "unstable",
        "not_rearmed",
        "duplicate",
        "out_of_control",
        "implausible_weight",
        "cylinder_blocked",
    }
)

_CENT: Final = Decimal("0.01")

_NO_WEIGHT: Final = refusal("no_stable_weight")
_ONLY_NET: Final = refusal("only_net")
_STALE: Final = refusal("stale_weight")
_UNSTABLE: Final = refusal("unstable")
_DISCONNECTED: Final = refusal("disconnected")
_NOT_REARMED: Final = refusal("not_rearmed")
_READING_CHANGED: Final = refusal("reading_changed")
_OUT_OF_CONTROL: Final = refusal("out_of_control")


def rounded_kg(weight: Decimal) -> Decimal:
    """Return the weight that a commit writes: rounded half up to 10 g."""
    # Adding 0 turns -0.00, rounded from a weight such as -0.004 kg, into 0.00.
    return weight.quantize(_CENT, ROUND_HALF_UP) + 0


class Marks(NamedTuple):
    """What a guard says of one line.

    :ivar reading_id: identifier of the latest value; empty without one.
    :ivar is_accepted: whether a stable weight of the line's kind becomes the latest value.
    """

    reading_id: str
    verdict: Verdict
    out_of_range: bool
    is_accepted: bool


@dataclass(slots=True)
class Reservation:
    """A commit in progress, which holds its scale until its outcome is known.

    :ivar was_armed: whether the scale was armed before it.
    """

    attempt: Attempt
    was_armed: bool


class ScaleGuard:
    """Guards of the commits of one scale.

    :param settings: settings of the scale, with the defaults of ``scale``.
    :param new_id: returns an identifier that was never used before.
    :ivar is_armed: whether the scale was empty since its last commit, and since it was below zero; always true without
        ``zero_band_kg``.
    :ivar recent: commits within ``duplicate_window_sec``.
    :ivar passport: accuracy of the scale.
    """

    def __init__(self, settings: ScaleConnection, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self.is_armed = True
        self.passport = Passport()
        self.recent = RecentCommits()
        self.reading_id = ""
        self._weight: Decimal | None = None
        self._range_error: Verdict | None = None
        #: Kind, weight and unit of the latest value.
        self._value: tuple[str, Decimal | None, str] | None = None
        self._latest_at = 0.0
        self._stable_since: float | None = None
        #: Time of the last stable net line that is not accepted.
        self._net_at: float | None = None
        self._is_connected = False
        #: Commit that is in progress; ``None`` if there is none.
        self._held_by: Reservation | None = None
        #: Whether the scale was empty while a commit was in progress.
        self._was_emptied = False
        #: Last commit whose outcome is not known; ``None`` if there is none.
        self._in_doubt: Attempt | None = None
        #: Id or ticket of the last commit.
        self.last_commit: str | None = None
        self.update(settings)

    def update(self, settings: ScaleConnection) -> None:
        """Use other settings."""
        self.settings = settings
        self._accept = frozenset(settings.accept or ("gross",))
        self._checks_stable = settings.require_stable_ms is not None
        self._min_stable = (settings.require_stable_ms or 0) / 1000
        self._band = settings.zero_band_kg
        self._has_range = any(limit is not None for limit in (settings.min_kg, settings.max_kg, settings.unit))
        if self._band is None:
            self.is_armed = True
        if self._value is not None:
            _, weight, unit = self._value
            self._range_error = self._judge_range(weight, unit)

    # -- lines and presence

    def receive(self, status: str, weight: Decimal | None, kind: str, unit: str, now: float) -> Marks:
        """Take a line of the scale."""
        is_accepted = kind in self._accept
        range_error = self._judge_range(weight, unit) if self._has_range else None
        if is_accepted and self._is_below_zero(weight):
            self._disarm()
        if status == "ST" and is_accepted:
            value = (kind, weight, unit)
            if value != self._value:
                self._value, self._weight = value, weight
                self.reading_id = self._new_id()
            if weight is not None and kind == "gross":
                self.passport.note_zero(weight, self._band)
            self._range_error = range_error
            self._latest_at = now
            if self._stable_since is None:
                self._stable_since = now
            if not self.is_armed and self._is_empty(weight):
                self._note_empty()
        else:
            self._stable_since = None
            if status == "ST" and kind == "net":
                self._net_at = now
        return Marks(self.reading_id, self.verdict(now), range_error is not None, is_accepted)

    def _note_empty(self) -> None:
        if self._held_by is None:
            self.is_armed = True
            self._in_doubt = None
        else:
            self._was_emptied = True

    def _is_below_zero(self, weight: Decimal | None) -> bool:
        return self._band is not None and weight is not None and weight < -self._band

    def _disarm(self) -> None:
        """Need a new zero: a pan that weighs less than nothing was set to zero under a load, which is gone now."""
        self.is_armed = self._was_emptied = False
        if self._held_by is not None:
            self._held_by.was_armed = False

    def _is_empty(self, weight: Decimal | None) -> bool:
        return self._band is not None and weight is not None and abs(weight) <= self._band

    def set_connected(self, is_connected: bool) -> None:
        """Note that the scale has connected, or that its last connection was lost."""
        self._is_connected = is_connected
        if not is_connected:
            self._stable_since = None

    @property
    def weight(self) -> Decimal | None:
        """Return the latest weight in kilograms."""
        return self._weight

    def is_only_net(self, now: float) -> bool:
        """Return whether only net weights come, of a scale whose ``accept`` lists other kinds only."""
        if self.settings.accept is None or "net" in self._accept or self._net_at is None:
            return False
        idle = self.settings.idle_timeout_sec or 0.0
        return now - self._net_at < idle and (self._value is None or now - self._latest_at >= idle)

    # -- verdicts

    def verdict(self, now: float) -> Verdict:
        """Return what a commit would be answered now."""
        for verdict in self._basic(now):
            return verdict
        return next(iter(self._overridable(now)), ALLOWED)

    def _basic(self, now: float) -> list[Verdict]:
        """Return the refusals that no reason passes, at most one."""
        if self.is_only_net(now):
            return [_ONLY_NET]
        if self._weight is None:
            return [_NO_WEIGHT]
        max_age = self.settings.commit_max_age_sec
        if max_age is not None and now - self._latest_at > max_age:
            return [_STALE]
        if self._weight < 0 and rounded_kg(self._weight) < 0:
            return [refusal("negative_weight", weight=self._weight)]
        return []

    def _overridable(self, now: float) -> list[Verdict]:
        """Return the refusals of the other guards, in the order in which they are answered."""
        found = []
        if self._range_error is not None:
            found.append(self._range_error)
        if self._checks_stable:
            if not self._is_connected:
                found.append(_DISCONNECTED)
            elif self._stable_since is None or now - self._stable_since < self._min_stable:
                found.append(_UNSTABLE)
        if not self.is_armed and self._band is not None:
            found.append(_NOT_REARMED)
        check = self.settings.check_weigh
        if check is not None and check.when_out == "refuse" and self.passport.state(check) == "out":
            found.append(_OUT_OF_CONTROL)
        return found

    def weighing_problems(self, now: float) -> list[Verdict]:
        """Return why the scale cannot be checked with a reference weight now; empty if it can."""
        basic = self._basic(now)
        if basic or self._weight is None:
            return basic
        if not self._is_connected:
            return [_DISCONNECTED]
        is_stable = self._stable_since is not None and now - self._stable_since >= self._min_stable
        return [] if is_stable else [_UNSTABLE]

    def _judge_range(self, weight: Decimal | None, unit: str) -> Verdict | None:
        settings = self.settings
        if weight is None:
            return None
        if settings.unit is not None and unit != settings.unit:
            return refusal("wrong_unit", unit=unit, expected=settings.unit)
        low, high = settings.min_kg, settings.max_kg
        if (low is not None and weight < low) or (high is not None and weight > high):
            limits = f"{'' if low is None else low}~{'' if high is None else high} kg"
            return refusal("weight_out_of_range", weight=weight, range=limits)
        return None

    # -- commits

    def judge(self, attempt: Attempt, now: float) -> tuple[list[Verdict], list[Verdict]]:
        """Judge a commit; return the refusals that no reason passes, and those that a reason passes, in order."""
        firm = self._basic(now)
        if not firm and attempt.reading_id not in (None, self.reading_id):
            firm = [_READING_CHANGED]
        # A repeated request, whose first outcome is not known, is not a second commit.
        is_repeated = self._is_repeated(attempt)
        open_to_reason = [
            verdict for verdict in self._overridable(now) if not (is_repeated and verdict is _NOT_REARMED)
        ]
        earlier = self._duplicate_of(attempt, now)
        if earlier is not None and not is_repeated:
            open_to_reason.append(refusal("duplicate", id=earlier.name))
        return firm, open_to_reason

    def _duplicate_of(self, attempt: Attempt, now: float) -> RecentCommit | None:
        window = self.settings.duplicate_window_sec
        if window is None or attempt.key is not None:
            return None
        return self.recent.find(attempt, now - window)

    def _is_repeated(self, attempt: Attempt) -> bool:
        held = None if self._held_by is None else self._held_by.attempt
        return any(each is not None and each.is_repeated_by(attempt) for each in (held, self._in_doubt))

    def reserve(self, attempt: Attempt, now: float) -> Reservation:
        """Hold the scale for a commit: a second one is not allowed before its outcome is known."""
        reservation = Reservation(attempt, self.is_armed)
        if self._held_by is None:
            self._held_by = reservation
            self._was_emptied = False
        if self._band is not None:
            self.is_armed = False
        if self.settings.duplicate_window_sec is not None:
            self.recent.add(RecentCommit(attempt.cylinder_no, attempt.event_type, None, now))
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Note that a commit was not written."""
        self._end(reservation)
        self.is_armed = self.is_armed or reservation.was_armed
        self.recent.drop(reservation.attempt)

    def keep_in_doubt(self, reservation: Reservation) -> None:
        """Note that the outcome of a commit is not known: the same request may be repeated, and no other be made."""
        self._end(reservation)
        self._in_doubt = reservation.attempt

    def confirm(self, reservation: Reservation, name: str) -> None:
        """Note that a commit is durable.

        :param name: id or ticket of the commit.
        """
        self._end(reservation)
        self.last_commit = name
        self.recent.name(reservation.attempt, name)

    def _end(self, reservation: Reservation) -> None:
        if self._held_by is reservation:
            self._held_by = None
            self.is_armed = self.is_armed or self._was_emptied

    def note_commit(self, cylinder_no: str, event_type: str, name: str, now: float) -> None:
        """Note a commit of this scale that another gateway has written."""
        self.last_commit = name
        if self._band is not None:
            self.is_armed = False
        if self.settings.duplicate_window_sec is not None:
            self.recent.add(RecentCommit(cylinder_no, event_type, name, now))

    def note_undone(self, cylinder_no: str, event_type: str, name: str) -> None:
        """Note that a commit was undone: the cylinder that still stands on the scale may be committed again."""
        if name == self.last_commit:
            self.is_armed = True
        self.recent.remove(cylinder_no, event_type)
