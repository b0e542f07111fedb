"""Configuration of Sphinx."""

import re
from pathlib import Path

project = "CYNOW gateway"
author = "The CYNOW gateway authors"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name
_package = (Path(__file__).parent.parent / "gateway" / "__init__.py").read_text("utf-8")
release = version = re.findall(r'__version__ = "(.+)"', _package)[0]
html_theme = "furo"
html_title = f"CYNOW gateway {release}"
root_doc = "index"
exclude_patterns = ["build"]
# Literal blocks without a language are mostly JSON, YAML and logs side by side.
highlight_language = "none"
nitpicky = True
