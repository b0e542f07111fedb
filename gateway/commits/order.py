"""Requests for commits, and their refusals, independent of HTTP."""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.model.records import Verdict
from gateway.store.interface import IdempotencyKey


@dataclass(frozen=True, slots=True)
class CommitOrder:
    """A valid request for a commit of a known scale.

    :ivar reading_id: reading that the operator saw; ``None`` if the request does not tell.
    :ivar override: reason for passing guards; ``None`` without one.
    :ivar by: name of the token, or ``operator``.
    """

    scale_id: str
    cylinder_no: str
    event_type: str
    arrival_shipping_no: str | None = None
    move_report_no: str | None = None
    reading_id: str | None = None
    override: str | None = None
    key: IdempotencyKey | None = None
    by: str = "operator"


class CommitRefused(Exception):
    """Error for a commit that a guard refuses; nothing was written."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.error)
        self.verdict = verdict


class CylinderFinding(Protocol):
    """Finding of the master data about a commit: see :class:`gateway.cylinders.master.CylinderJudgement`."""

    @property
    def verdict(self) -> Verdict:
        """Return the refusal, or that the commit is allowed."""

    @property
    def errors(self) -> Sequence[str]:
        """Return all error codes that apply, which a reason passes together."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """Return the fields for answers and events."""


class CylinderCheck(Protocol):
    """Check of a commit against the plant's master data."""

    def check(self, cylinder_no: str, event_type: str, gross_kg: Any) -> Awaitable[CylinderFinding]:
        """Return the finding within the time that a commit may wait; never raise."""

    def describe(self, cylinder_no: str) -> Awaitable[Mapping[str, Any] | None]:
        """Return the JSON form of the master data of a cylinder; ``None`` without a row or an answer in time."""


class RefusalRecord(Protocol):
    """Record of refused commits."""

    def append(self, kind: str, fields: Mapping[str, Any]) -> Awaitable[Any]:
        """Append an entry, and return when it is durable.

        :raises StoreUnavailable: the entry cannot be written now.
        """
