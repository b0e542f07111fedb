"""Limits of the style guide that linters do not check: sizes, and the language of docstrings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "gateway").rglob("*.py"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7

#: A comment that gives the reason for an exception, on the line of the ``def``.
EXCEPTION = re.compile(r"#.*\b(?:long|parameters): \w+")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of(path: Path) -> Iterator[Function]:
    lines = path.read_text("utf-8").splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, Function) and not EXCEPTION.search(lines[node.lineno - 1]):
            yield node


def parameter_count(function: Function) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in {"self", "cls"} for argument in named) + bool(arguments.vararg)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_the_limits(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_FILE_LINES
    for function in functions_of(path):
        assert (function.end_lineno or 0) - function.lineno < MAX_FUNCTION_LINES, function.name
        assert parameter_count(function) <= MAX_PARAMETERS, function.name


def docstrings() -> Iterator[tuple[str, bool, str]]:
    """Yield each docstring of the package with its place, and whether it belongs to a function."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, Function | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node)
                if text:
                    place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
                    yield place, isinstance(node, Function), text


def test_function_docstrings_do_not_begin_with_a_question_word() -> None:
    texts = [(place, text) for place, is_function, text in docstrings() if is_function]
    wrong = [place for place, text in texts if re.match(r"(?:What|Whether|Who|When|Where|How)\b", text)]
    assert len(wrong) <= len(texts) / 100, wrong


def test_docstrings_use_nouns_instead_of_what_and_who() -> None:
    words = [word.lower() for _, _, text in docstrings() for word in re.findall(r"[A-Za-z']+", text)]
    assert words.count("what") <= 3 * len(words) / 1000
    assert sum(word in {"who", "whoever", "whom"} for word in words) <= len(words) / 2000


def test_docstrings_do_not_say_is_none_or_is_no() -> None:
    # "no longer" and "no more" are not nouns.
    wrong = [
        place
        for place, _, text in docstrings()
        if re.search(r"\b(?:is|are) none\b|\bis no (?!longer\b|more\b)[a-z]", text)
    ]
    assert not wrong


def test_class_names_are_unique() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: where for name, where in places.items() if len(where) > 1}
