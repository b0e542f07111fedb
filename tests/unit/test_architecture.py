"""The import table of the architecture page, and other rules about the code's structure."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "explanation" / "architecture.rst"

#: Every module of the gateway and its file.
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "gateway").rglob("*.py"))
}


def read_table() -> dict[str, tuple[set[str], set[str]]]:
    """Return, for each package, the packages of the project and those of others that it may import."""
    text = PAGE.read_text("utf-8").partition(".. import table\n")[2]
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
    return {package: (names_in(own), names_in(others)) for package, own, others in rows}


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"[\w.]+", cell)) - {"nothing"}


TABLE = read_table()


def package_of(module: str) -> str:
    """Return the row of the table that a module belongs to: the longest prefix of its name."""
    name = module.removeprefix("gateway").removeprefix(".")
    rows = [row for row in TABLE if name == row or name.startswith(row + ".") or row == "gateway" == module]
    assert rows, f"{module} belongs to no row of the import table"
    return max(rows, key=len)


def imported_names(path: Path) -> set[str]:
    """Return the names of all modules that a file imports, also within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in MODULES else node.module)
    return names


IMPORTS = {module: imported_names(path) - {module} for module, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_the_table_allows(module: str) -> None:
    row = package_of(module)
    own, others = TABLE[row]
    for name in IMPORTS[module]:
        top = name.partition(".")[0]
        if top == "gateway":
            package = package_of(name)
            assert package in {row, *own} or "everything" in own, f"{module} imports {name}"
        elif top not in sys.stdlib_module_names:
            assert top in others, f"{module} imports {name}"


def test_table_lists_only_imports_that_exist() -> None:
    for row, (own, others) in TABLE.items():
        used: set[str] = set()
        for module, names in IMPORTS.items():
            if package_of(module) == row:
                used |= {package_of(name) if name.startswith("gateway") else name.partition(".")[0] for name in names}
        assert own - {"everything"} <= used, row
        assert others <= used, row


def test_modules_have_no_import_cycle() -> None:
    graph = {module: {name for name in names if name in MODULES} for module, names in IMPORTS.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_packages_have_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        row = package_of(module)
        graph.setdefault(row, set()).update({package_of(name) for name in names if name in MODULES} - {row})
    assert list(TopologicalSorter(graph).static_order())


def test_store_backends_do_not_import_each_other() -> None:
    backends = {"store.sqlite", "store.postgres", "store.spool", "store.tickets"}
    for module, names in IMPORTS.items():
        row = package_of(module)
        if row in backends:
            assert not {package_of(name) for name in names if name in MODULES} & (backends - {row}), module


def test_web_and_replay_import_no_store_backend() -> None:
    allowed = {"gateway.store.interface", "gateway.store.event_numbers", "gateway.store.writer"}
    for module, names in IMPORTS.items():
        if module.startswith(("gateway.web", "gateway.replay")):
            assert {name for name in names if name.startswith("gateway.store")} <= allowed, module


def test_rights_are_checked_for_the_effective_user() -> None:
    users = [module for module, path in MODULES.items() if "os.access(" in path.read_text("utf-8")]
    assert users == ["gateway.runtime.access"]


def test_parsers_import_no_clock_and_no_file() -> None:
    for module, names in IMPORTS.items():
        if module.startswith("gateway.wire"):
            assert not names & {"time", "datetime", "os", "pathlib", "io", "socket", "threading"}, module


def test_timeseries_and_rollup_import_no_clock_and_no_file() -> None:
    for module, names in IMPORTS.items():
        if module.startswith(("gateway.timeseries", "gateway.stats.rollup")):
            assert not names & {"time", "os", "pathlib", "io", "threading", "twisted"}, module


def test_machine_registry_does_not_import_twisted() -> None:
    assert not [name for name in IMPORTS["gateway.ingest.machines"] if name.startswith("twisted")]


def test_plugin_imports_twisted_application_only() -> None:
    assert imported_names(ROOT / "twisted" / "plugins" / "cynow_gateway_plugin.py") == {"twisted.application.service"}


def test_package_files_contain_only_a_docstring() -> None:
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module != "gateway":
            body = ast.parse(path.read_text("utf-8")).body
            assert len(body) == 1, module
            assert isinstance(body[0], ast.Expr), module


def test_every_package_is_in_setup_cfg() -> None:
    text = (ROOT / "setup.cfg").read_text("utf-8")
    section = re.search(r"\npackages =\n((?:    .+\n)+)", text)
    assert section is not None
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert set(section[1].split()) == packages | {"twisted.plugins"}


def test_every_dependency_is_explained() -> None:
    setup = (ROOT / "setup.cfg").read_text("utf-8")
    section = re.search(r"\ninstall_requires =\n((?:    .+\n)+)", setup)
    assert section is not None
    text = (ROOT / "docs" / "explanation" / "dependencies.rst").read_text("utf-8")
    for line in section[1].splitlines():
        assert f"\n{line.split()[0]} " in text, line


def test_files_named_by_the_architecture_page_exist() -> None:
    text = PAGE.read_text("utf-8")
    for name in re.findall(r"``((?:gateway|wire|store|web|tests)/[\w/.*-]+)``", text):
        path = name if name.startswith(("gateway/", "tests/")) else f"gateway/{name}"
        assert list(ROOT.glob(path)), name
