"""Commits of weights: guards, master data, store, record and live event, in this order."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from gateway.bus.bus import Bus
from gateway.commits.armed_states import ArmedStates
from gateway.commits.order import CommitOrder, CommitRefused, CylinderCheck, RefusalRecord
from gateway.config.scale_settings import ScaleConnection
from gateway.live.state import LiveState
from gateway.model.records import CommitDetail, CommitEntry, Reading, Verdict
from gateway.model.timestamps import rfc3339
from gateway.record.commit_fields import commit_fields
from gateway.runtime.clock import WallClock
from gateway.runtime.limited_log import LimitedLog
from gateway.runtime.metrics import Counters
from gateway.store.interface import CommitResult, OutcomeUnknown, Store, StoreUnavailable
from gateway.weighing.commits import Attempt
from gateway.weighing.guard import OVERRIDABLE, Reservation, ScaleGuard, rounded_kg
from gateway.weighing.messages import refusal
from gateway.weighing.passport import CheckWeigh
from gateway.weighing.registry import Guards

log = Logger()


@dataclass(slots=True)
class CommitChecks:
    """Parts of a commit that a configuration may lack.

    :ivar cylinders: master data; ``None`` without a query.
    :ivar record: record of refusals; ``None`` for none.
    :ivar states: states of scales that survive a restart; ``None`` for none.
    """

    cylinders: CylinderCheck | None = None
    record: RefusalRecord | None = None
    states: ArmedStates | None = None


class CommitService:
    """Commits of all scales.

    :param guards: guards of the scales of this gateway.
    :ivar checks: parts that are built later, or that a configuration lacks.
    :ivar defaults: settings of the scales of other gateways.
    """

    def __init__(
        self, live: LiveState, guards: Guards, store: Store, bus: Bus, clock: WallClock, counters: Counters
    ) -> None:
        self._live = live
        self._guards = guards
        self._store = store
        self._bus = bus
        self._clock = clock
        self._commit_seconds = counters.commit_seconds
        self._warnings = LimitedLog(log, clock, counters)
        self.checks = CommitChecks()
        self.defaults = ScaleConnection(via="default")

    async def commit(self, order: CommitOrder) -> CommitResult:
        """Write a commit of the latest weight of a scale, and return when it is durable.

        A repeated request gets its first answer, whatever the scale shows now.

        :raises CommitRefused: a guard refuses it.
        :raises Exception: errors of :meth:`gateway.store.interface.Store.commit`.
        """
        try:
            return await self._commit(order)
        except CommitRefused as refused:
            stored = None if order.key is None else await self._store.replay(order.key)
            if stored is not None:
                return CommitResult(stored, None)
            await self._record_refusal(order, refused.verdict)
            raise

    async def _commit(self, order: CommitOrder) -> CommitResult:
        key = None if order.key is None else order.key.key
        attempt = Attempt(order.cylinder_no, order.event_type, order.reading_id, key)
        settings = self._settings(order.scale_id)
        firm, open_to_reason = self._judge(order.scale_id, attempt)
        passed = self._choose(order, settings, firm, open_to_reason)
        reading = self._live.latest(order.scale_id)
        if reading is None or reading.weight is None:
            raise CommitRefused(refusal("no_stable_weight"))
        guard = self._guards.of(order.scale_id)
        reservation = guard.reserve(attempt, self._clock.monotonic())
        try:
            entry = await self._entry(order, settings, reading, reading.weight, passed)
            result = await self._write(order, settings, entry)
        except OutcomeUnknown:
            guard.keep_in_doubt(reservation)
            raise
        except BaseException:
            guard.release(reservation)
            self._save()
            raise
        self._confirm(guard, reservation, result)
        await self._saved()
        if result.commit is not None and result.commit.id is None:
            await self._record("ticket", commit_fields(result.commit))
        return result

    async def _write(self, order: CommitOrder, settings: ScaleConnection, entry: CommitEntry) -> CommitResult:
        # At the same time, so that the scale is held after a kill even if the answer was not sent any more.
        self._save()
        began = self._clock.monotonic()
        try:
            may_wait = settings.commit_when_away == "ticket"
            result = await self._store.commit(entry, order.key, may_wait=may_wait)
        finally:
            self._commit_seconds.observe(self._clock.monotonic() - began)
        return result

    def _confirm(self, guard: ScaleGuard, reservation: Reservation, result: CommitResult) -> None:
        commit = result.commit
        if commit is None:
            # An earlier request has written it, maybe long ago: the scale is as it was.
            guard.release(reservation)
            return
        name = commit.ticket if commit.id is None else str(commit.id)
        guard.confirm(reservation, name or "")
        if commit.id is not None:
            entry = commit.entry
            log.info(
                "scale {scale_id}: commit {id} written by {by}",
                scale_id=entry.scale_id,
                id=commit.id,
                by=entry.detail.by,
            )
            self._bus.publish(commit)

    def note_undone(self, scale_id: str, cylinder_no: str, event_type: str, commit_id: int) -> None:
        """Note that a commit was undone: its scale may commit again what still stands on it."""
        self._guards.of(scale_id).note_undone(cylinder_no, event_type, str(commit_id))
        self._save()

    # -- guards

    def _settings(self, scale_id: str) -> ScaleConnection:
        guard = self._guards.own().get(scale_id)
        return self.defaults if guard is None else guard.settings

    def _judge(self, scale_id: str, attempt: Attempt) -> tuple[list[Verdict], list[Verdict]]:
        if self._live.is_judged_here(scale_id):
            return self._guards.of(scale_id).judge(attempt, self._clock.monotonic())
        return self._judge_remote(scale_id, attempt)

    def _judge_remote(self, scale_id: str, attempt: Attempt) -> tuple[list[Verdict], list[Verdict]]:
        """Judge a commit of a weight that another gateway has received, by the verdict of that gateway."""
        reading = self._live.latest(scale_id)
        if reading is None or reading.weight is None:
            return [refusal("no_stable_weight")], []
        max_age = self._settings(scale_id).commit_max_age_sec
        if max_age is not None and self._live.age(scale_id) > max_age:
            return [refusal("stale_weight")], []
        if rounded_kg(reading.weight) < 0:
            return [refusal("negative_weight", weight=reading.weight)], []
        if attempt.reading_id not in (None, reading.reading_id):
            return [refusal("reading_changed")], []
        verdict = self._live.verdict(scale_id)
        if verdict.error is None:
            return [], []
        return ([], [verdict]) if verdict.error in OVERRIDABLE else ([verdict], [])

    def _choose(
        self, order: CommitOrder, settings: ScaleConnection, firm: list[Verdict], open_to_reason: list[Verdict]
    ) -> list[str]:
        """Return the errors of the guards that the reason of a commit passes.

        :raises CommitRefused: a guard refuses the commit.
        """
        for verdict in firm:
            raise CommitRefused(verdict)
        for verdict in open_to_reason:
            self._need_reason(order, settings, verdict)
        return [verdict.error or "" for verdict in open_to_reason]

    def _need_reason(self, order: CommitOrder, settings: ScaleConnection, verdict: Verdict) -> None:
        """Check that a commit has a reason to pass a guard, and that its scale takes reasons.

        :raises CommitRefused: one of them is missing.
        """
        if order.override is None:
            raise CommitRefused(verdict)
        if not settings.override:
            raise CommitRefused(refusal("override_not_allowed"))

    async def _entry(
        self, order: CommitOrder, settings: ScaleConnection, reading: Reading, weight: Decimal, passed: list[str]
    ) -> CommitEntry:
        gross = rounded_kg(weight)
        cylinder = None
        committed_at = self._clock.now()
        if self.checks.cylinders is not None:
            found = await self.checks.cylinders.check(order.cylinder_no, order.event_type, gross)
            cylinder = found.fields
            if found.verdict.error is not None:
                self._need_reason(order, settings, found.verdict)
                passed = [*passed, *found.errors]
        detail = CommitDetail(
            by=order.by,
            override=order.override if passed else None,
            overridden=tuple(passed),
            warnings=self._warnings_of(order.scale_id, settings, passed),
            cylinder=cylinder,
        )
        return CommitEntry(
            scale_id=order.scale_id,
            cylinder_no=order.cylinder_no,
            event_type=order.event_type,
            gross_kg=gross,
            raw_line=reading.raw,
            received_at=reading.received_at,
            committed_at=committed_at,
            arrival_shipping_no=order.arrival_shipping_no,
            move_report_no=order.move_report_no,
            detail=detail,
        )

    def _warnings_of(self, scale_id: str, settings: ScaleConnection, passed: list[str]) -> tuple[str, ...]:
        guard = self._guards.own().get(scale_id)
        if guard is None:
            return ()
        found = guard.passport.warnings(settings.check_weigh, self._clock.now().date())
        return tuple(each for each in found if each not in passed)

    async def check_weigh(self, scale_id: str, nominal_kg: Decimal, by: str) -> CheckWeigh:
        """Check a scale with a reference weight that stands on it now, and keep the outcome.

        :raises CommitRefused: the scale shows no stable, current weight.
        """
        guard = self._guards.of(scale_id)
        now = self._clock.monotonic()
        verdict = guard.weighing_problem(now)
        if verdict is not None:
            raise CommitRefused(verdict)
        check = CheckWeigh(self._clock.now(), nominal_kg, guard.weight or Decimal(0), by)
        guard.passport.check = check
        await self._saved()
        await self._record("check", {"scale_id": scale_id, **check.payload()})
        return check

    # -- what survives

    def _save(self) -> "Deferred[None] | None":
        states = self.checks.states
        return None if states is None else states.save()

    async def _saved(self) -> None:
        """Save the states of scales, and return when they are durable."""
        saved = self._save()
        if saved is not None:
            await saved

    async def _record_refusal(self, order: CommitOrder, verdict: Verdict) -> None:
        reading = self._live.latest(order.scale_id)
        fields: dict[str, Any] = {
            "error": verdict.error,
            "scale_id": order.scale_id,
            "cylinder_no": order.cylinder_no,
            "event_type": order.event_type,
            "override": order.override,
            "by": order.by,
            "weight": None if reading is None else str(reading.weight),
            "raw_line": None if reading is None else reading.raw,
            "received_at": None if reading is None else rfc3339(reading.received_at),
        }
        await self._record("refusal", fields)

    async def _record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append an entry to the record; if it cannot be written, that is a problem of the gateway, not of a client."""
        if self.checks.record is None:
            return
        try:
            await self.checks.record.append(kind, fields)
        except StoreUnavailable as error:
            self._warnings.warn("record", "cannot record a {entry}: {error}", entry=kind, error=error)
