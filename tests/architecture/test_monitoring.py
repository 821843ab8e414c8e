"""Alerts and dashboard ask for metrics that there are, and Prometheus takes them as they are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.metrics import ALL
from tests.snippets import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "overnight.json"
_NAME = re.compile(r"\bovernight_\w+")
_LABELS = re.compile(r"\b(overnight_\w+)\{([^}]*)\}")
_PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    _PROMTOOL is None, reason="promtool is not here: it comes with Prometheus"
)


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in alerts())
    yield from (each["expr"] for panel in panels() for each in panel.get("targets", []))


def series_of(name: str) -> str:
    """The metric that a series is of: histograms have three."""
    for suffix in ("_bucket", "_count", "_sum"):
        base = name.removesuffix(suffix)
        if base != name and base in ALL and ALL[base].kind == "histogram":
            return base
    return name


def test_every_metric_that_is_asked_for_is_told() -> None:
    asked = {series_of(name) for expression in expressions() for name in _NAME.findall(expression)}
    assert asked - ALL.keys() == set()
    assert ALL.keys() - asked == {
        "overnight_build_info",
        "overnight_calls_in_flight",
    }, "a metric that no alert and no panel shows: show it, or list it here"


def test_every_label_that_is_asked_for_is_there() -> None:
    for expression in expressions():
        for name, chosen in _LABELS.findall(expression):
            labels = set(re.findall(r"(\w+)\s*[=!]", chosen))
            assert labels <= {*ALL[series_of(name)].labels, "job", "instance"}, expression


def test_every_alert_says_what_is_wrong_and_is_tried() -> None:
    stories = (PROMETHEUS / "alerts_test.yml").read_text()
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert f'alertname="{rule["alert"]}"' in stories


def test_panels_have_their_own_ids_and_places() -> None:
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        squares = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not squares & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= squares


def test_the_dashboard_is_provisioned_with_its_datasource() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (datasource,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert datasource["type"] == "prometheus"
    board = json.loads(DASHBOARD.read_text())
    kinds = {each["name"]: each["type"] for each in board["templating"]["list"]}
    assert kinds["datasource"] == "datasource"
    (provider,) = yaml.safe_load((folder / "dashboards/overnight.yml").read_text())["providers"]
    assert provider["type"] == "file"


@needs_promtool
def test_the_alerts_fire_in_their_stories_and_only_there() -> None:
    promtool("test", "rules", str(PROMETHEUS / "alerts_test.yml"))


@needs_promtool
def test_prometheus_takes_its_configuration() -> None:
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


@needs_promtool
def test_every_expression_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"panel:{number}",
            "expr": expression.replace("$__rate_interval", "1m").replace("$upstream", ".*"),
        }
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(file))


def promtool(*arguments: str) -> None:
    assert _PROMTOOL is not None
    done = subprocess.run(
        [_PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
