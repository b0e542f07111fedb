"""Checks of the section ``cylinders`` of a configuration."""

from pathlib import Path

import pytest

from gateway.commands.check import check_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.yaml"


def found(file: Path, text: str) -> dict[str, str]:
    """Problems by their keys; a key whose problem is not fatal begins with a question mark."""
    file.write_text(text, "utf-8")
    problems = check_config(file, {}, str(file.parent)).problems
    return {("" if problem.is_fatal else "?") + problem.key: problem.message for problem in problems}


CYLINDERS = "cylinders: {{url: 'postgresql://h/d', query: \"{}\"}}"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS tare_kg WHERE no = %(cylinder_no)s",
        "-- tare; net\\nselect a from t where no = %(cylinder_no)s or no = lower(%(cylinder_no)s);",
        "WITH t AS (SELECT 1) SELECT * FROM t WHERE a LIKE 'x%%' AND b <> ';' AND no = %(cylinder_no)s",
    ],
)
def test_sound_query_for_cylinders_is_no_problem(file: Path, query: str) -> None:
    assert found(file, CYLINDERS.format(query)) == {}


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("SELECT 1", "has no %(cylinder_no)s"),
        ("SELECT 1 WHERE no = %%(cylinder_no)s", "has no %(cylinder_no)s"),
        ("SELECT 1 WHERE no LIKE 'x%' AND no = %(cylinder_no)s", "must be doubled"),
        ("SELECT %(other)s WHERE no = %(cylinder_no)s", "unknown placeholder %(other)s"),
        ("SELECT 1 WHERE no = '%(cylinder_no)s'", "quotes"),
        ("DELETE FROM t WHERE no = %(cylinder_no)s", "SELECT or WITH"),
        ("SELECT 1; SELECT %(cylinder_no)s", "more than one statement"),
    ],
)
def test_wrong_query_for_cylinders_is_a_problem(file: Path, query: str, word: str) -> None:
    problems = found(file, CYLINDERS.format(query))
    assert set(problems) == {"cylinders.query"}
    assert word in problems["cylinders.query"]


def test_query_for_cylinders_needs_a_database(file: Path) -> None:
    query = "query: 'SELECT %(cylinder_no)s'"
    assert "no database" in found(file, f"cylinders: {{{query}}}")["cylinders.query"]
    assert found(file, f"cylinders: {{{query}}}\ndatabase: {{url: 'postgresql://h/d'}}") == {}
    assert set(found(file, "cylinders: {url: 'postgresql://h/d'}")) == {"?cylinders.url"}


@pytest.mark.parametrize(
    "url", ["cynow:geheim@h/d", "postgresql://cynow:geheim@h:port/d", "mysql://cynow:geheim@h", "{geheim: 1}"]
)
def test_url_of_cylinders_is_not_shown(file: Path, url: str) -> None:
    url = url if url.startswith("{") else f"'{url}'"
    problems = found(file, f"cylinders: {{url: {url}, query: 'SELECT %(cylinder_no)s'}}")
    assert set(problems) == {"cylinders.url"}
    assert "geheim" not in problems["cylinders.url"]
