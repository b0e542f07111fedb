"""REST interface of cylinders: ``/api/v1/cylinders``."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

from twisted.web.http import Request

from gateway.store.interface import CommitQuery, PageRequest, Store, StoredCommit
from gateway.web.http.answers import Refusal, answer, handle_errors
from gateway.web.http.scopes import ScopedApp
from gateway.web.rest.arguments import is_plain
from gateway.web.rest.commit_fields import commit_fields

#: Number of commits in an answer.
_LAST: Final = 20

#: Maximum characters of a number, as in ``scale_weight_log``.
_MAX_LENGTH: Final = 50

#: Makes the balance from commits, newest first.
Balance: TypeAlias = Callable[[Sequence[StoredCommit]], Mapping[str, Any]]

#: Returns the master data of a cylinder; ``None`` if it has no such data.
MasterLookup: TypeAlias = Callable[[str], Awaitable[Mapping[str, Any] | None]]


class CylinderApi:
    """``/api/v1/cylinders``.

    :param balance: balance of the last commits; ``None`` for no balance.
    :param master: master data; ``None`` without any.
    """

    app = ScopedApp()
    handle_errors(app)

    def __init__(self, store: Store, balance: Balance | None = None, master: MasterLookup | None = None) -> None:
        self._store = store
        self._balance = balance
        self._master = master

    # A number may contain slashes, sent as %2F, also at its start and several in a row, which Klein would drop.
    @app.route("/<path:cylinder>", methods=["GET"], scope="read", merge_slashes=False)
    async def cylinder(self, request: Request, cylinder: str) -> bytes:
        number = _number_in(request.path)
        if not number or len(number) > _MAX_LENGTH or not is_plain(number):
            raise Refusal(404, "unknown_cylinder")
        page = await self._store.commits(CommitQuery(cylinder_no=number), PageRequest(limit=_LAST))
        master = None if self._master is None else await self._master(number)
        if not page.items and master is None:
            raise Refusal(404, "unknown_cylinder")
        return answer(
            request,
            {
                "ok": True,
                "cylinder_no": number,
                "master": None if master is None else dict(master),
                "commits": list(map(commit_fields, page.items)),
                "balance": None if self._balance is None else dict(self._balance(page.items)),
            },
        )


def _number_in(path: bytes) -> str:
    """Return the number in ``/api/v1/cylinders/<number>``, without a slash at the end of the path."""
    segments = path.removesuffix(b"/").split(b"/")[4:]
    return unquote_to_bytes(b"/".join(segments)).decode().strip()
