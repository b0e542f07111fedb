"""Configuration of Sphinx."""

import re
from pathlib import Path

from sphinx.application import Sphinx

project = "CYNOW gateway"
author = "The CYNOW gateway authors"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name
_package = (Path(__file__).parent.parent / "gateway" / "__init__.py").read_text("utf-8")
release = version = re.findall(r'__version__ = "(.+)"', _package)[0]
# A theme that loads nothing from the network, so that pages can be read in a plant without one.
html_theme = "furo"
html_title = f"CYNOW gateway {release}"
root_doc = "index"
exclude_patterns = ["build"]
# Literal blocks without a language are mostly JSON, YAML and logs side by side.
highlight_language = "none"
nitpicky = True

#: Pages that include a file of the top folder.
_INCLUDED = {
    "CHANGELOG.rst": "/project/changes",
    "CONTRIBUTING.rst": "/project/contributing",
    "SECURITY.rst": "/project/security",
}


def link_pages(_app: Sphinx, _path: Path, _docname: str, content: list[str]) -> None:
    """Make links to pages of an included file's links to files, which are right where it is read without Sphinx."""

    def linked(match: re.Match[str]) -> str:
        text, path = match[1], match[2]
        page = _INCLUDED.get(path) or "/" + path.removeprefix("docs/").removesuffix(".rst")
        return f":doc:`{text} <{page}>`"

    names = "|".join(re.escape(name) for name in _INCLUDED)
    content[0] = re.sub(rf"`([^`<]+?)\s+<(docs/[\w/-]+\.rst|{names})>`_", linked, content[0])


def setup(app: Sphinx) -> None:
    """Register the hook."""
    app.connect("include-read", link_pages)
