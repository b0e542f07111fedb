"""The documentation says what the code says."""

import json
import re
from pathlib import Path

import pytest
import yaml

from gateway.commands.main import COMMANDS
from gateway.config.settings import Settings
from gateway.runtime.metrics import Counters

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.rst"), *ROOT.glob("*.rst")])


def page(name: str) -> str:
    return (DOCS / f"{name}.rst").read_text("utf-8")


def test_metrics_page_lists_every_metric_with_type_labels_and_meaning() -> None:
    documented = {
        (name, kind, tuple(re.findall(r"\w+", labels)), " ".join(text.split()))
        for name, labels, kind, text in re.findall(
            r"^``(\w+)(\{.*?\})?`` \((\w+)\)\n((?:    .+\n?)+)", page("reference/metrics"), re.MULTILINE
        )
    }
    counters = Counters()
    actual = set()
    for metric in vars(counters).values():
        for family in metric.describe() if hasattr(metric, "describe") else ():
            labels = tuple(getattr(metric, "_labelnames", None) or getattr(metric, "_labels", ()) or ())
            name = family.name + ("_total" if family.type == "counter" else "")
            actual.add((name, family.type, labels, family.documentation))
    # Those without labels are held as the counter itself, which does not describe itself.
    unlabelled = {"cynow_daq_samples_total", "cynow_events_total"}
    assert {entry for entry in documented if entry[0] not in unlabelled} == actual
    assert unlabelled <= {name for name, *_ in documented}


def test_configuration_page_and_example_name_every_key() -> None:
    text = page("reference/configuration") + (ROOT / "etc" / "cynow-gateway.yaml").read_text("utf-8")
    for section, field in Settings.model_fields.items():
        assert section in text
        for key in getattr(field.annotation, "model_fields", ()):
            assert key in text, f"{section}.{key}"


def test_commands_page_lists_every_command() -> None:
    assert set(re.findall(r"^``(\w+)``$", page("reference/commands"), re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_of_a_page_resolve(path: Path) -> None:
    for target in re.findall(r"<((?!https?:)[\w./-]+\.(?:rst|yaml|service|conf|py))>`_", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_of_a_page_is_a_valid_configuration(path: Path) -> None:
    for block in blocks_of(path.read_text("utf-8")):
        first = block.split(":")[0].strip()
        if first in Settings.model_fields and "\n" in block and not block.startswith("{"):
            tree = yaml.safe_load(block)
            assert isinstance(tree, dict), block
            Settings.model_validate(tree)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_json_messages_of_a_page_parse(path: Path) -> None:
    for block in blocks_of(path.read_text("utf-8")):
        if block.startswith(('{"type"', '{"ok"')) and "..." not in block:
            json.loads(block)


def blocks_of(text: str) -> list[str]:
    """Return the literal blocks of a page, without their indentation."""
    found = re.findall(r"::\n\n((?:    .*\n|\n)+)", text + "\n")
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip() for block in found]
