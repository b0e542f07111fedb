"""Routes of frequent requests, answered without the costs of Klein's matching and Deferreds."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from gateway.auth.principal import Scope
from gateway.web.http.answers import Refusal, answer_failure

log = Logger()

#: A route of Klein, which returns bytes or a Deferred of them; Klein's types do not express it.
Route: TypeAlias = Callable[[Any], Any]


class FastRoutes(Resource):
    """Resource for exact methods and paths; all other requests go to Klein's resource.

    Klein has the same routes, and handles their other methods and other spellings of their paths.

    :param routes: scopes and routes by method and remaining path; a request's path may end with a slash.
    :param rest: Klein's resource.
    """

    isLeaf = True

    def __init__(self, routes: Mapping[tuple[bytes, bytes], tuple[Scope, Route]], rest: IResource) -> None:
        super().__init__()
        self._routes = {
            (method, path + slash): route for (method, path), route in routes.items() for slash in (b"", b"/")
        }
        self._rest = rest

    def render(self, request: Any) -> Any:
        found = self._routes.get((request.method, b"/".join(request.postpath)))
        if found is None:
            return self._rest.render(request)
        scope, route = found
        try:
            request.require(scope)
            result = route(request)
        except Exception:
            return answer_failure(request, Failure())
        if isinstance(result, bytes):
            return result
        result.addBoth(partial(_finish, request)).addErrback(partial(log.failure, "cannot send an HTTP answer"))
        return NOT_DONE_YET


def _finish(request: Any, result: "bytes | Failure") -> None:
    """Send a late answer, unless the client has left."""
    if not request.is_gone:
        request.write(answer_failure(request, result) if isinstance(result, Failure) else result)
        request.finish()
    elif isinstance(result, Failure) and not result.check(Refusal):
        log.failure("HTTP request failed after its client had left", result)
