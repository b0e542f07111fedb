"""Routes that name the scope that a request needs; a route without a scope is closed to all but administrators."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeVar, cast

from klein import Klein

from gateway.auth.principal import Scope

#: Scope of a route that names none.
DEFAULT: Final[Scope] = "admin"

Handler = TypeVar("Handler", bound=Callable[..., Any])


def open_paths(app: "ScopedApp") -> list[str]:
    """Return the paths of an app that everybody may use."""
    return [rule.rule for rule in app.url_map.iter_rules() if app.scopes[rule.endpoint] is None]


class ScopedApp(Klein):
    """Klein app whose routes check the scopes of a request before their handler runs.

    :ivar scopes: by endpoint, the scope that it needs; ``None`` if everybody may use it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scopes: dict[str, Scope | None] = {}

    def __get__(self, instance: Any, owner: object) -> "ScopedApp":
        return cast("ScopedApp", super().__get__(instance, owner))

    def route(
        self, url: str, *args: Any, branch: bool = False, scope: Scope | None = DEFAULT, **kwargs: Any
    ) -> Callable[[Handler], Handler]:
        """Return a decorator that adds a handler for a path.

        :param scope: scope that a request needs; ``None`` if everybody may use the route.
        """
        register = super().route(url, *args, branch=branch, **kwargs)

        def decorate(handler: Handler) -> Handler:
            @wraps(handler)
            def checked(api: Any, request: Any, *values: Any, **named: Any) -> Any:
                if scope is not None:
                    request.require(scope)
                return handler(api, request, *values, **named)

            register(checked)
            self.scopes[handler.__name__] = scope
            return handler

        return decorate
