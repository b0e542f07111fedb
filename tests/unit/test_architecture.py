"""The table of docs/architecture.rst: which room imports which."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "gateway").rglob("*.py"))
}


def table() -> dict[str, tuple[set[str], set[str]]]:
    """By room: what it may import of the project (rooms below ``gateway``) and of others."""
    text = (ROOT / "docs" / "architecture.rst").read_text("utf-8")
    ruler = next(line for line in text.splitlines() if re.fullmatch(r"=+ =+ =+", line))
    _, _, body, _ = text.split(ruler + "\n", 3)
    starts = [found.start() for found in re.finditer(r"=+", ruler)]
    rows: list[list[str]] = []
    for line in body.splitlines():
        cells = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
    return {room: (words(own), words(others)) for room, own, others in rows}


def words(cell: str) -> set[str]:
    return set(re.findall(r"\w+", cell)) - {"nothing"}


def room_of(module: str, rooms: set[str]) -> str:
    """The longest room that a module lies in."""
    found = [room for room in rooms if module == room or (room != "gateway" and module.startswith(room + "."))]
    assert found, f"{module} stands in no room of the table"
    return max(found, key=len)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            found.add(node.module)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_its_room_may(module: str) -> None:
    rooms = table()
    own, others = rooms[room_of(module, set(rooms))]
    for name in imports(MODULES[module]):
        package = name.partition(".")[0]
        if package == "gateway":
            wanted = name.split(".")[1] if "." in name else "gateway"
            assert wanted in own or "everything" in own, f"{module} imports {name}"
        elif package not in sys.stdlib_module_names:
            assert package in others, f"{module} imports {name}"


def test_every_room_of_the_table_is_there() -> None:
    for room in table():
        assert room in MODULES, room


def test_web_and_recovery_know_stores_by_their_interface_only() -> None:
    for module, path in MODULES.items():
        if module.startswith(("gateway.web", "gateway.replay.recovery")):
            stores = {name for name in imports(path) if name.startswith("gateway.store")}
            assert stores <= {"gateway.store.interface"}, module


def test_rights_are_asked_of_the_user_that_the_process_acts_as() -> None:
    assert [module for module, path in MODULES.items() if "os.access(" in path.read_text("utf-8")] == [
        "gateway.runtime.access"
    ]


def test_the_parsers_know_no_clock_and_no_file() -> None:
    for module, path in MODULES.items():
        if module.startswith("gateway.wire"):
            assert not imports(path) & {"time", "datetime", "os", "pathlib", "io", "socket", "threading"}, module


def test_rollups_and_buckets_know_no_clock_and_no_file() -> None:
    for module in ("gateway.timeseries.bucket", "gateway.timeseries.calendar", "gateway.stats.rollup"):
        assert not imports(MODULES[module]) & {"time", "os", "pathlib", "io", "threading", "twisted"}, module


def test_the_plugin_imports_twisted_application_only() -> None:
    assert imports(ROOT / "twisted" / "plugins" / "cynow_gateway_plugin.py") == {"twisted.application.service"}


def test_every_package_is_in_setup_cfg() -> None:
    text = (ROOT / "setup.cfg").read_text("utf-8")
    listed = set(re.search(r"\npackages =\n((?:    .+\n)+)", text)[1].split())  # type: ignore[index]  # it is there
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert listed == packages | {"twisted.plugins"}


def test_every_dependency_is_explained() -> None:
    setup = (ROOT / "setup.cfg").read_text("utf-8")
    needed = re.search(r"\ninstall_requires =\n((?:    .+\n)+)", setup)[1]  # type: ignore[index]  # it is there
    text = (ROOT / "docs" / "dependencies.rst").read_text("utf-8")
    for line in needed.splitlines():
        assert f"\n{line.split()[0]} " in text, line


def test_every_document_is_in_the_readme() -> None:
    text = (ROOT / "README.rst").read_text("utf-8")
    for path in (ROOT / "docs").glob("*.rst"):
        assert f"<docs/{path.name}>" in text
