"""Page at ``/docs``: Swagger UI, which shows ``/openapi.json`` and sends requests."""

from pathlib import Path
from typing import Final

from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.threadpool import ThreadPool

from gateway.web.http.static import StaticFiles

_PAGE: Final = ("docs.css", "init.js")

#: Files that the build fetches.
_INTERFACE: Final = ("swagger-ui.css", "swagger-ui-bundle.js")

#: Swagger UI has its icons in its style sheet, as data.
_POLICY: Final = "default-src 'self'; img-src 'self' data:"


def docs_page(reactor: IReactorFromThreads, pool: ThreadPool, folder: Path | None = None) -> StaticFiles:
    """Return the resource of the page, or of one that says that the build could not fetch Swagger UI.

    :param folder: folder of the files; by default the package's.
    """
    folder = folder or Path(__file__).parent.parent / "static"
    page, interface = folder / "docs", folder / "swagger-ui"
    files = {name: page / name for name in _PAGE}
    if all((interface / name).is_file() for name in _INTERFACE):
        files |= {name: interface / name for name in _INTERFACE}
        files[""] = page / "index.html"
    else:
        files[""] = page / "missing.html"
    return StaticFiles(reactor, pool, files, _POLICY)
