"""Alert rules, dashboard and how-to, held against a real Prometheus that scrapes a real gateway."""

import contextlib
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.runtime.metrics import Counters
from tests.conftest import ROOT, program
from tests.support.daemon import Daemon, running, until
from tests.support.prometheus import PrometheusServer, scraping

ALERTS = ROOT / "etc" / "prometheus-alerts.yaml"
ALERTS_TEST = ROOT / "tests" / "prometheus" / "alerts-test.yaml"
DASHBOARD = ROOT / "etc" / "grafana-dashboard.json"
HOWTO = ROOT / "docs" / "howto" / "monitor-with-prometheus.rst"
RUNBOOK = ROOT / "docs" / "howto" / "respond-to-alerts.rst"

#: Metrics without series in a gateway of this test: without PostgreSQL and TLS.
WITHOUT_DATA = {"cynow_spool_bytes", "cynow_tls_certificate_expiry_timestamp_seconds"}


def rules() -> dict[str, dict[str, Any]]:
    tree = yaml.safe_load(ALERTS.read_text("utf-8"))
    return {rule["alert"]: rule for group in tree["groups"] for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def expressions() -> list[str]:
    """Return the queries of all panels, with the values that Grafana would put into them."""
    texts = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    return [text.replace("$instance", ".*").replace("$__rate_interval", "10s") for text in texts]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:cynow|process)_\w+", expression))


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- files


def test_alert_rules_are_valid() -> None:
    assert f"{len(rules())} rules found" in run(program("promtool"), "check", "rules", ALERTS)


def test_each_alert_fires_and_does_not_fire_as_tested() -> None:
    run(program("promtool"), "test", "rules", ALERTS_TEST)


def test_each_alert_has_a_test_of_both() -> None:
    cases: dict[str, set[bool]] = {}
    for test in yaml.safe_load(ALERTS_TEST.read_text("utf-8"))["tests"]:
        for case in test["alert_rule_test"]:
            cases.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert cases == {alert: {False, True} for alert in rules()}


def test_each_alert_has_texts_and_a_section_of_the_runbook() -> None:
    titles = re.findall(r"^(Cynow\w+)\n~+$", RUNBOOK.read_text("utf-8"), re.MULTILINE)
    assert sorted(titles) == sorted(rules())
    for alert, rule in rules().items():
        texts = rule["annotations"]
        page, _, anchor = texts["runbook_url"].partition("#")
        assert page.endswith(f"/blob/main/{RUNBOOK.relative_to(ROOT)}")
        assert anchor == alert.lower()
        assert texts["summary"]
        assert texts["description"].endswith(".")
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}


def test_alerts_and_dashboard_use_metrics_that_exist() -> None:
    names = {name for names in Counters().registry._collector_to_names.values() for name in names}
    for text in [*(rule["expr"] for rule in rules().values()), *expressions()]:
        own = {name for name in metrics_in(text) if name.startswith("cynow_")}
        assert own <= names | WITHOUT_DATA, text


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    cells = [
        (column, line)
        for panel in panels()
        for column in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for line in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_dashboard_leaves_the_data_source_to_a_variable() -> None:
    names = [variable["name"] for variable in json.loads(DASHBOARD.read_text("utf-8"))["templating"]["list"]]
    assert names == ["datasource", "instance"]
    for panel in panels():
        for part in [*([] if panel["type"] == "row" else [panel]), *panel.get("targets", ())]:
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


# -- a real Prometheus


def write_config(folder: Path, port: int) -> Path:
    """Write the configuration of the how-to, for a gateway on a port of the loopback."""
    (block,) = re.findall(r"::\n\n((?:       .*\n|\n)+)", HOWTO.read_text("utf-8"))
    tree = yaml.safe_load(block)
    (job,) = tree["scrape_configs"]
    assert (tree["rule_files"], job["job_name"]) == (["/etc/prometheus/cynow-alerts.yaml"], "cynow-gateway")
    (folder / "cynow-token").write_text("any", "utf-8")
    tree["rule_files"] = [str(ALERTS)]
    job["scrape_interval"] = "1s"
    job["authorization"]["credentials_file"] = str(folder / "cynow-token")
    job["static_configs"][0]["targets"] = [f"127.0.0.1:{port}"]
    tree["global"] = {"evaluation_interval": "1s"}
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(tree), "utf-8")
    return config


@contextlib.contextmanager
def busy(daemon: Daemon) -> Iterator[None]:
    """A scale, a machine, commits and requests of all kinds, for a block."""
    scale = daemon.scale()
    machine = daemon.daq(b'["name", "ShotBlast"]\0')
    stopped = threading.Event()

    def work() -> None:
        number = 0
        while not stopped.wait(0.1):
            number += 1
            scale.sendall(b"ST , +000053.26 _kg\r\nnot a reading\r\n")
            machine.sendall(b'["DataUpdate", {"vib1": {"type": "VIB", "data": [1, -2]}}]\0')
            daemon.commit(f"CY{number}")
            for path in ("/api/scale-gateway/latest/", "/stat/machineList", "/api/v1/nothing", "/nothing"):
                daemon.get(path)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        stopped.set()
        worker.join()


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, PrometheusServer]]:
    """A busy gateway, and a Prometheus that scrapes it."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("plant")
    with (
        running(folder) as daemon,
        busy(daemon),
        scraping(write_config(folder, daemon.port)) as server,
    ):
        until(lambda: server.query('up{job="cynow-gateway"} == 1'), "the first scrape")
        yield daemon, server


@pytest.fixture
def server(plant: tuple[Daemon, PrometheusServer]) -> PrometheusServer:
    return plant[1]


def test_prometheus_gets_openmetrics(server: PrometheusServer) -> None:
    # The older format has no type "info".
    described = until(lambda: server.api("targets/metadata", metric="cynow_build"), "the metadata")
    assert [item["type"] for item in described] == ["info"]
    types = {item["metric"]: item["type"] for item in server.api("targets/metadata", match_target="{}")}
    assert (types["cynow_events"], types["cynow_http_request_seconds"]) == ("counter", "histogram")
    assert not server.query('{__name__=~".*_created"}')


def test_prometheus_loads_the_alert_rules(server: PrometheusServer) -> None:
    def health() -> dict[str, str]:
        groups = server.api("rules")["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    until(lambda: set(health().values()) == {"ok"}, "all rules are evaluated")
    assert list(health()) == list(rules())


def has_data(server: PrometheusServer, expression: str) -> bool:
    return any(series["value"][1] != "NaN" for series in server.query(expression))


def test_each_query_of_the_dashboard_has_data(server: PrometheusServer) -> None:
    for expression in expressions():
        if metrics_in(expression) & WITHOUT_DATA:
            assert server.query(expression) == []
        else:
            until(partial(has_data, server, expression), expression)


def test_variable_of_the_dashboard_has_the_gateway(plant: tuple[Daemon, PrometheusServer]) -> None:
    daemon, server = plant
    # Grafana asks so for label_values(cynow_build_info, instance).
    values = server.api("label/instance/values", **{"match[]": "cynow_build_info"})
    assert values == [f"127.0.0.1:{daemon.port}"]


def test_presence_follows_scale_and_machine(tmp_path: Path, daemon: Daemon, tool: Callable[[str], str]) -> None:
    tool("prometheus")
    with scraping(write_config(tmp_path, daemon.port)) as server:
        scale, machine = daemon.scale(), daemon.daq(b'["name", "Press"]\0')
        until(lambda: server.query('cynow_scale_connected{scale_id="default", plant="incheon"} == 1'), "the scale")
        until(lambda: server.query('cynow_machine_connected{machine="Press"} == 1'), "the machine")
        scale.close()
        machine.close()
        until(lambda: server.query('cynow_scale_connected{scale_id="default"} == 0'), "the scale has gone")
        until(lambda: server.query('cynow_machine_connected{machine="Press"} == 0'), "the machine has gone")
        pending = 'ALERTS{alertname="CynowScaleDisconnected", scale_id="default"}'
        until(lambda: server.query(pending), "the alert about the scale")
        until(lambda: server.query('ALERTS{alertname="CynowMachineStopped", machine="Press"}'), "the alert")
