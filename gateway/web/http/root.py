"""Resources that map paths to other resources."""

from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.web.resource import IResource, Resource


class Root(Resource):
    """Resource that maps the first segment of a path to a child.

    :param children: resources by first segment.
    :param rest: resource for all other paths.
    """

    def __init__(self, children: dict[str, IResource], rest: IResource) -> None:
        super().__init__()
        self._rest = rest
        for word, child in children.items():
            self.putChild(word.encode(), child)

    def render(self, request: Any) -> Any:
        return self._rest.render(request)

    def getChild(self, path: bytes, request: Any) -> IResource:
        request.prepath.pop()
        request.postpath.insert(0, path)
        return self._rest


class WithSlash(Resource):
    """Resource that has Klein find the route ``/`` for an empty path too."""

    isLeaf = True

    def __init__(self, resource: IResource) -> None:
        super().__init__()
        self._resource = resource

    def render(self, request: Any) -> Any:
        request.postpath = request.postpath or [b""]
        return self._resource.render(request)


def is_utf8(path: bytes) -> bool:
    """Return whether a path is UTF-8 once its percent escapes are decoded."""
    if b"%" not in path and path.isascii():
        return True
    try:
        unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
