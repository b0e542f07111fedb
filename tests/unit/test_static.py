"""Static files of pages, and the page ``/docs`` with and without its interface."""

import gzip
from pathlib import Path
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.python.threadpool import ThreadPool

from gateway.web.http.static import StaticFile
from gateway.web.schema.docs_page import docs_page
from tests.conftest import ROOT

STATIC = ROOT / "gateway" / "web" / "static"


def test_file_of_text_is_compressed_and_an_image_is_not(tmp_path: Path) -> None:
    text, image = tmp_path / "a.css", tmp_path / "a.png"
    text.write_text("body {}\n" * 100, "utf-8")
    image.write_bytes(b"\x89PNG")
    read = StaticFile.read(text)
    assert (read.kind, read.content) == (b"text/css; charset=utf-8", text.read_bytes())
    assert gzip.decompress(read.compressed) == read.content
    assert StaticFile.read(image).compressed == b""


def test_tag_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    tags = set()
    for number, content in enumerate((b"a", b"a", b"b")):
        path = tmp_path / f"{number}.js"
        path.write_bytes(content)
        tags.add(StaticFile.read(path).tag)
    assert len(tags) == 2


def test_docs_page_without_the_interface_says_so(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(STATIC / "docs")
    reactor: Any = MemoryReactorClock()
    pool = ThreadPool()
    page = docs_page(reactor, pool, tmp_path)
    assert page.paths[""].name == "missing.html"
    assert "was not built" in page.paths[""].read_text("utf-8")
    assert set(page.paths) == {"", "docs.css", "init.js"}
    (tmp_path / "swagger-ui").mkdir()
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        (tmp_path / "swagger-ui" / name).touch()
    page = docs_page(reactor, pool, tmp_path)
    assert page.paths[""].name == "index.html"
    # Every file that the page names is there.
    for name in set(page.paths) - {""}:
        assert f'"/docs/{name}"' in page.paths[""].read_text("utf-8")
