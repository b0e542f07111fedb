"""The pages of the documentation, held against the code."""

import ast
import configparser
import json
import pickle
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Info, Metric, ProcessCollector

from gateway.assembly.web import REST_APPS
from gateway.commands.main import COMMANDS, main
from gateway.config.scale_settings import ScaleConnection
from gateway.config.settings import Settings
from gateway.runtime.metrics import Counters
from gateway.store.rows import BUCKET_COLUMNS
from gateway.tap import Options
from gateway.timeseries.calendar import PERIODS
from gateway.wire.frames import FrameReader
from gateway.wire.messages import DataUpdate, FaultDetect, Name
from gateway.wire.scale import parse_line
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.rst"), *ROOT.glob("*.rst")])


def page(name: str) -> str:
    return (DOCS / f"{name}.rst").read_text("utf-8")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks_of(text: str) -> Iterator[str]:
    """Yield the literal blocks of a page, without their indentation."""
    for head in re.finditer(r"::(?: [\w-]+)?\n\n( +)", text):
        lines = []
        for line in text[head.start(1) :].split("\n"):
            if line and not line.startswith(head[1]):
                break
            lines.append(line.removeprefix(head[1]))
        yield "\n".join(lines).strip()


def code_of(folder: Path) -> Iterator[ast.AST]:
    """Yield the nodes of all modules of a folder."""
    for path in folder.rglob("*.py"):
        yield from ast.walk(ast.parse(path.read_text("utf-8")))


# -- links


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_relative_links_of_a_page_resolve(path: Path) -> None:
    for target in re.findall(r"<((?!https?:)[\w./-]+\.(?:rst|yaml|service|conf|py))>`_", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


def test_pages_that_other_files_name_exist() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in tracked.decode().split("\0"):
        if name.startswith(("gateway/", "etc/", "benchmarks/", "docs/")) or name.endswith(".rst"):
            path = ROOT / name
            if path.is_file() and path.suffix not in {".pyc", ".png"}:
                for target in re.findall(r"\bdocs/[a-z/-]+\.rst\b", path.read_text("utf-8")):
                    assert (ROOT / target).exists(), f"{name}: {target}"


def test_files_that_pages_name_exist() -> None:
    for path in PAGES:
        for target in re.findall(r"``((?:etc|gateway|tests|benchmarks)/[\w@./-]+\.\w+)``", path.read_text("utf-8")):
            assert (ROOT / target).exists(), f"{name_of(path)}: {target}"


# -- examples


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_yaml_of_a_page_is_a_valid_configuration(path: Path) -> None:
    for block in blocks_of(path.read_text("utf-8")):
        first = block.split(":")[0].strip()
        if first in Settings.model_fields and "\n" in block and not block.startswith("{"):
            tree = yaml.safe_load(block)
            assert isinstance(tree, dict), block
            Settings.model_validate(tree)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_json_messages_of_a_page_parse(path: Path) -> None:
    for block in blocks_of(path.read_text("utf-8")):
        if block.startswith(('{"type"', '{"ok"')) and "..." not in block:
            json.loads(block)


def test_commands_in_pages_have_the_options_that_they_use(capsys: pytest.CaptureFixture[str]) -> None:
    texts: dict[str, str] = {}
    for path in PAGES:
        for block in blocks_of(path.read_text("utf-8").replace("\\\n", " ")):
            for line in re.findall(
                r"(?:cynow-gateway|python -m gateway\.)[ ]?((?:check|recompute|migrate|audit|simulate|demo) .*)", block
            ):
                words = line.partition("#")[0].split()
                name = " ".join(words[: 2 if words[0] == "simulate" else 1])
                if name not in texts:
                    with pytest.raises(SystemExit):
                        main([*name.split(), "--help"])
                    texts[name] = capsys.readouterr().out
                for option in re.findall(r"(?<!\S)--[\w-]+", line):
                    assert re.search(rf"{option}\b", texts[name]), f"{name_of(path)}: {line}"
    assert set(texts) >= {"check", "recompute", "migrate", "simulate scale"}


# -- reference


def test_metrics_page_lists_every_metric_with_type_labels_and_meaning() -> None:
    documented = [
        (name, kind, tuple(re.findall(r"\w+", labels)), " ".join(text.split()))
        for name, labels, kind, text in re.findall(
            r"^``(\w+)(\{.*?\})?`` \((\w+)\)\n((?:    .+\n?)+)", page("reference/metrics"), re.MULTILINE
        )
    ]
    actual = set()
    for collector in Counters().registry._collector_to_names:
        described: Any = collector
        if isinstance(collector, ProcessCollector):
            continue
        labels = getattr(described, "_labelnames", None) or getattr(described, "_labels", None) or ()
        if isinstance(collector, Info):
            labels = described._value
        family: Metric
        for family in described.describe():
            if family.name.startswith("cynow_"):
                name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
                actual.add((name, family.type, tuple(labels), family.documentation))
    assert len(documented) == len(set(documented))
    assert set(documented) == actual


def test_configuration_page_lists_every_key_with_its_default() -> None:
    rows = re.findall(r"^``([a-z_.]+)`` +``(.+?)`` ", page("reference/configuration"), re.MULTILINE)
    documented = {key: yaml.safe_load(default) for key, default in rows}
    actual: dict[str, Any] = {}
    for section, value in Settings().model_dump(mode="json").items():
        if section in {"stat", "scales", "timezone", "machines", "auth"}:
            actual[section] = {name.upper(): mean for name, mean in value.items()} if section == "stat" else value
        else:
            # The record has a section of its own below it.
            if section == "record":
                value = {f"publish_to.{key}": default for key, default in value["publish_to"].items()}
            actual |= {f"{section}.{key}": default for key, default in value.items()}
    assert documented == actual


def test_configuration_page_names_every_key_of_a_scale() -> None:
    text = page("reference/configuration")
    for key in ScaleConnection.model_fields:
        assert f"``{key}``" in text, key


def test_example_configuration_has_every_key() -> None:
    text = (ROOT / "etc" / "cynow-gateway.yaml").read_text("utf-8")
    tree = yaml.safe_load(text)
    for section, value in Settings().model_dump(mode="json").items():
        assert section in tree
        if isinstance(value, dict) and section not in {"stat", "scales", "machines"}:
            assert set(tree[section]) == set(value), section


def test_commands_page_lists_every_command_and_option_of_the_daemon() -> None:
    text = page("reference/commands")
    assert set(re.findall(r"^``(\w+)``$", text, re.MULTILINE)) == set(COMMANDS)
    options = Options()
    for option in ("config", *(flag[0] for flag in options.optFlags)):
        assert f"``--{option}" in text, option


def test_rest_page_lists_every_path() -> None:
    documented = {
        path.rstrip("/") or "/"
        for title in re.findall(r"^((?:``(?:GET|POST) .*))\n~+$", page("reference/rest"), re.MULTILINE)
        for path in re.findall(r"/[^`,]*", title)
    }
    for prefix, app in REST_APPS.items():
        for rule in app.url_map.iter_rules():
            rest = rule.rule.replace("<machine>", "<name>").replace("<commit>", "<id or ticket>")
            rest = rest.replace("<path:cylinder>", "<number>")
            for path in [rest.replace("<any(hour,day,month,year):period>", period) for period in PERIODS]:
                assert (prefix + path).rstrip("/") in documented | {""}, path


def test_rest_page_lists_every_error() -> None:
    codes = set()
    for node in code_of(ROOT / "gateway" / "web"):
        match node:
            case ast.Call(func=ast.Name(id="Refusal"), args=[_, ast.Constant(value=str(code)), *_]):
                codes.add(code)
    assert len(codes) > 20
    text = page("reference/rest")
    for code in codes:
        assert f"``{code}``" in text, code


def columns_of(*scripts: Path) -> dict[str, list[str]]:
    """Return the columns of each table that SQL scripts for SQLite create."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for script in scripts:
            connection.executescript(script.read_text("utf-8"))
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for (table,) in tables.fetchall()
        }


@pytest.mark.parametrize(("name", "package"), [("gateway-sqlite", "sqlite"), ("spool", "spool")])
def test_page_of_a_sqlite_file_names_every_table_and_column(name: str, package: str) -> None:
    text = page(f"reference/files/{name}")
    tables = columns_of(*sorted((ROOT / "gateway" / "store" / package / "schema").glob("*.sql")))
    assert len(tables) >= 5
    for table, columns in tables.items():
        section = re.search(rf"^``{table}``\n((?:    .*\n|\n)+)", text, re.MULTILINE)
        assert section is not None, table
        for column in columns:
            assert f"``{column}``" in section[1], f"{table}.{column}"


def test_page_of_a_machines_file_names_every_column() -> None:
    text = page("reference/files/machine-db")
    for column in ("id", "time", "data", "start", *BUCKET_COLUMNS, "raw_end", "score", "threshold"):
        assert f"``{column}``" in text, column


def test_page_of_postgresql_tables_names_every_table_and_column() -> None:
    # It refers to the pages of the same tables in SQLite.
    text = "".join(page(f"reference/files/{name}") for name in ("postgresql-tables", "machine-db", "gateway-sqlite"))
    tables = {}
    for script in (ROOT / "gateway" / "store" / "postgres").rglob("*.sql"):
        found = re.findall(
            r"CREATE TABLE (?:IF NOT EXISTS )?(\w+) \((.*?)\n *\);", script.read_text("utf-8"), re.DOTALL
        )
        tables.update({table: re.findall(r"^ +([a-z_]+) [a-z]", columns, re.MULTILINE) for table, columns in found})
    assert len(tables) == 9
    for table, columns in tables.items():
        assert f"``{table}``" in text, table
        for column in columns:
            assert f"``{column}``" in text, f"{table}.{column}"


def test_dependencies_page_lists_every_package() -> None:
    text = page("explanation/dependencies")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    extras = setup["options.extras_require"]
    for requirements in (setup["options"]["install_requires"], extras["serial"], extras["test"], extras["docs"]):
        for name in re.findall(r"^[A-Za-z][\w-]*", requirements, re.MULTILINE):
            assert name.startswith("types-") or re.search(rf"\b{name}\b", text), name


# -- wire formats


def test_forms_on_page_of_scale_lines_parse_to_what_the_page_says() -> None:
    rows = re.findall(r"^\S.*? ``(\w\w ?,.*?|@.*?)`` +(\S.*)$", page("reference/scale-lines"), re.MULTILINE)
    assert len(rows) == 8
    for line, meaning in rows:
        read = parse_line(line.encode())
        if read.weight is None:
            assert meaning.startswith("no weight")
        else:
            weight, kind = re.findall(r"^([\d.]+) kg, (\w+)", meaning)[0]
            assert (read.weight, read.kind) == (Decimal(weight), kind), line


def test_messages_on_page_of_frames_are_read() -> None:
    rows = re.findall(r"^``(\w+)`` +``(.+?)``  ", page("reference/daq-frames"), re.MULTILINE)
    expected = {"name": Name, "DataUpdate": DataUpdate, "FaultDetect": FaultDetect}
    assert {event for event, _ in rows} == set(expected)
    for event, data in rows:
        content = json.loads(data)
        for frame in (
            pickle.dumps((event, content)) + b"\0",
            pickle.dumps((event, content)) + rb"\o",
            json.dumps([event, content]).encode() + b"\0",
            json.dumps({"event": event, "data": content}).encode() + b"\0",
        ):
            reader = FrameReader()
            if event != "name":
                reader.receive_data(b'["name", "ShotBlast"]\0')
                reader.next_message()
            reader.receive_data(frame)
            assert type(reader.next_message()) is expected[event], frame


def test_log_lines_on_page_of_frames_are_those_of_the_code() -> None:
    texts = {
        node.value
        for folder in ("wire", "ingest", "model")
        for node in code_of(ROOT / "gateway" / folder)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    table = page("reference/daq-frames").partition("Log lines\n---------\n")[2].partition("These lines cut")[0]
    lines = [" ".join(line.split()) for line in re.findall(r"^    \* - (.*(?:\n        .*)*)", table, re.MULTILINE)[1:]]
    assert len(lines) >= 10
    for line in lines:
        for fragment in re.split(r"'[^']*'|\.\.\.|[;:]|\d+", line):
            assert any(fragment.strip(" ,;:") in text for text in texts), f"{line}: {fragment}"
