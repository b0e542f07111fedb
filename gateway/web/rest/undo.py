"""Undoing of commits: the request, and the opposite commit."""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import orjson

from gateway.model.records import CommitDetail, CommitEntry
from gateway.store.interface import StoredCommit
from gateway.web.http.answers import Refusal
from gateway.web.rest.commit_request import json_object, reason_of

_OPPOSITE: Final = {"SHIP": "RETURN", "RETURN": "SHIP"}


@dataclass(frozen=True, slots=True)
class UndoRequest:
    """Valid request to undo a commit.

    :ivar commit: id or ticket of the commit, as the path has it.
    """

    commit: str
    reason: str

    def fingerprint(self) -> str:
        """Return a hash of the request, which differs from that of any commit."""
        return hashlib.sha256(orjson.dumps(["undo", self.commit, self.reason])).hexdigest()


def parse_undo_request(commit: str, body: bytes) -> UndoRequest:
    """Parse the body of a request to undo a commit.

    :raises Refusal: ``invalid_json`` or ``invalid_request``.
    """
    return UndoRequest(commit, reason_of(json_object(body), "reason"))


def check_undoable(stored: StoredCommit) -> None:
    """Check that a commit can be undone.

    :raises Refusal: ``already_undone``, ``is_undo`` or ``not_undoable``.
    """
    if stored.undone_by is not None:
        raise Refusal(409, "already_undone", f"이미 취소된 기록입니다. 취소 기록 번호: {stored.undone_by}")
    if stored.undo_of is not None:
        raise Refusal(409, "is_undo")
    if stored.commit.entry.event_type not in _OPPOSITE:
        raise Refusal(409, "not_undoable")


def opposite_entry(stored: StoredCommit, by: str, reason: str, now: datetime) -> CommitEntry:
    """Return the commit that undoes another one: the opposite event with the same weight and numbers."""
    entry = stored.commit.entry
    detail = CommitDetail(by=by, undo_of=stored.commit.id, reason=reason)
    return replace(entry, event_type=_OPPOSITE[entry.event_type], committed_at=now, detail=detail)
