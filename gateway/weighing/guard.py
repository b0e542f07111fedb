"""Guards of one scale: a state machine over its readings, its presence and its commits.

It knows no clock and no I/O: each call gets the monotonic time, in seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Final, TypeAlias

from gateway.config.scale_settings import ScaleConnection
from gateway.model.records import ALLOWED, Verdict
from gateway.weighing.commits import Attempt, RecentCommit, RecentCommits
from gateway.weighing.messages import refusal
from gateway.weighing.passport import EMPTY_KG, Passport

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


#: What a guard says of one line: the identifier of the latest value, empty without one; the verdict; whether the weight
#: or its unit is out of range; and whether a stable weight of the line's kind becomes the latest value.
Marks: TypeAlias = tuple[str, Verdict, bool, bool]


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
        self._kind = self._unit = ""
        #: Refusals that depend on the latest value only.
        self._sign_error: Verdict | None = _NO_WEIGHT
        self._range_error: Verdict | None = None
        #: Whether the latest value is that of an empty pan.
        self._is_empty = False
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
        self._max_age = settings.commit_max_age_sec
        self._checks_stable = settings.require_stable_ms is not None
        self._min_stable = (settings.require_stable_ms or 0) / 1000
        self._band = settings.zero_band_kg
        self._has_range = any(limit is not None for limit in (settings.min_kg, settings.max_kg, settings.unit))
        check = settings.check_weigh
        self._refuses_out_of_control = check is not None and check.when_out == "refuse"
        #: Whether only the latest value counts, so that no verdict changes with time.
        self._is_plain = not (
            self._checks_stable
            or self._has_range
            or self._refuses_out_of_control
            or any(key is not None for key in (self._max_age, self._band, settings.accept))
        )
        if self._band is None:
            self.is_armed = True
        if self._weight is not None:
            self._take_value(self._weight)

    # -- lines and presence

    def receive(self, status: str, weight: Decimal | None, kind: str, unit: str, now: float) -> Marks:
        """Take a line of the scale."""
        is_accepted = kind in self._accept
        if self._band is not None and is_accepted and weight is not None and weight < -self._band:
            self._disarm()
        if status == "ST" and is_accepted and weight is not None:
            if weight != self._weight or unit != self._unit or kind != self._kind:
                if self._weight is None or abs(weight - self._weight) > (self._band or EMPTY_KG):
                    # Another load: a scale may show it stable before it has settled, without an unstable line.
                    self._stable_since = None
                self._kind, self._unit = kind, unit
                self.reading_id = self._new_id()
                self._take_value(weight)
            self._latest_at = now
            if self._stable_since is None:
                self._stable_since = now
            if self._is_empty:
                self._note_empty(weight)
            is_out = self._range_error is not None
        else:
            self._stable_since = None
            if status == "ST" and kind == "net":
                self._net_at = now
            is_out = self._has_range and self._judge_range(weight, unit) is not None
        if self._is_plain:
            return self.reading_id, self._sign_error or ALLOWED, is_out, is_accepted
        return self.reading_id, self.verdict(now), is_out, is_accepted

    def _take_value(self, weight: Decimal) -> None:
        """Judge a new latest value by all that does not change before the next one."""
        self._weight = weight
        is_negative = weight < 0 and rounded_kg(weight) < 0
        self._sign_error = refusal("negative_weight", weight=weight) if is_negative else None
        self._range_error = self._judge_range(weight, self._unit) if self._has_range else None
        self._is_empty = abs(weight) <= (EMPTY_KG if self._band is None else self._band)

    def _note_empty(self, weight: Decimal) -> None:
        if self._kind == "gross":
            self.passport.note_zero(weight)
        if self.is_armed:
            return
        if self._held_by is None:
            self.is_armed = True
            self._in_doubt = None
        else:
            self._was_emptied = True

    def _disarm(self) -> None:
        """Need a new zero: a pan that weighs less than nothing was set to zero under a load, which is gone now."""
        self.is_armed = self._was_emptied = False
        if self._held_by is not None:
            self._held_by.was_armed = False

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
        return now - self._net_at < idle and (self._weight is None or now - self._latest_at >= idle)

    # -- verdicts

    def verdict(self, now: float) -> Verdict:
        """Return what a commit would be answered now."""
        found = self._firm(now) or self._sign_error or self._range_error
        if found is not None:
            return found
        if not self.is_armed and self._band is not None:
            return self._stability_error(now) or _NOT_REARMED
        return self._stability_error(now) or self._control_error() or ALLOWED

    def _firm(self, now: float) -> Verdict | None:
        """Return the refusal that no reason passes, but that of a negative weight."""
        if self._net_at is not None and self.is_only_net(now):
            return _ONLY_NET
        if self._weight is None:
            return _NO_WEIGHT
        if self._max_age is not None and now - self._latest_at > self._max_age:
            return _STALE
        return None

    def _stability_error(self, now: float) -> Verdict | None:
        return self._settling_error(now) if self._checks_stable else None

    def _settling_error(self, now: float) -> Verdict | None:
        if not self._is_connected:
            return _DISCONNECTED
        is_stable = self._stable_since is not None and now - self._stable_since >= self._min_stable
        return None if is_stable else _UNSTABLE

    def _control_error(self) -> Verdict | None:
        is_out = self._refuses_out_of_control and self.passport.state(self.settings.check_weigh) == "out"
        return _OUT_OF_CONTROL if is_out else None

    def weighing_problem(self, now: float) -> Verdict | None:
        """Return why the scale cannot be checked with a reference weight now; ``None`` if it can."""
        return self._firm(now) or self._sign_error or self._settling_error(now)

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
        firm = [verdict for verdict in (self._firm(now) or self._sign_error,) if verdict is not None]
        if not firm and attempt.reading_id not in (None, self.reading_id):
            firm = [_READING_CHANGED]
        # A repeated request, whose first outcome is not known, is not a second commit.
        is_repeated = self._is_repeated(attempt)
        is_held = not self.is_armed and self._band is not None and not is_repeated
        earlier = None if is_repeated else self._duplicate_of(attempt, now)
        found = (
            self._range_error,
            self._stability_error(now),
            _NOT_REARMED if is_held else None,
            self._control_error(),
            None if earlier is None else refusal("duplicate", id=earlier.name),
        )
        return firm, [verdict for verdict in found if verdict is not None]

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
