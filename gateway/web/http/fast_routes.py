"""Requests that come so often that Klein's matching and Deferreds count are answered beside it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from gateway.web.http.answers import Refusal, failed

log = Logger()

#: A route of Klein, which gives bytes or a Deferred of them; Klein types it so that nothing is known of that.
Route: TypeAlias = Callable[[Any], Any]


class FastRoutes(Resource):
    """Answers requests of a known method and a known path, and leaves everything else to one resource.

    That knows the same routes: what else there is of them, such as other methods and other ways to write their paths,
    is its business.

    :param routes: by method and what is left of the path, without the final slash, which a path may have or not.
    :param rest: Klein's resource.
    """

    isLeaf = True

    def __init__(self, routes: Mapping[tuple[bytes, bytes], Route], rest: IResource) -> None:
        super().__init__()
        self._routes = {
            (method, path + slash): route for (method, path), route in routes.items() for slash in (b"", b"/")
        }
        self._rest = rest

    def render(self, request: Any) -> Any:
        route = self._routes.get((request.method, b"/".join(request.postpath)))
        if route is None:
            return self._rest.render(request)
        try:
            result = route(request)
        except Exception:
            return failed(request, Failure())
        if isinstance(result, bytes):
            return result
        result.addBoth(partial(_finish, request)).addErrback(partial(log.failure, "an answer failed"))
        return NOT_DONE_YET


def _finish(request: Any, result: "bytes | Failure") -> None:
    """Answer what took its time; its client may have left meanwhile."""
    if not request.is_gone:
        request.write(failed(request, result) if isinstance(result, Failure) else result)
        request.finish()
    elif isinstance(result, Failure) and not result.check(Refusal):
        log.failure("work failed after its client had left", result)
