"""The dashboard and the alerts: every query has data in a real Prometheus that scraped a server."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from radixserve.metrics_table import METRICS
from tests.e2e.server import running
from tests.test_prometheus import needs_prometheus, query_values, running_prometheus

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
ALERTS = CONFIGS / "prometheus-alerts.yml"
TENANTS = ("one", "two")
DASHBOARD = json.loads((CONFIGS / "grafana" / "radixserve.json").read_text())


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard", ROOT / "tools" / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def panel_queries() -> list[tuple[str, str]]:
    return [(each["title"], target["expr"]) for each in panels() for target in each["targets"]]


def test_the_file_is_what_the_tool_writes() -> None:
    tool = _tool()
    assert tool.text() == tool.TARGET.read_text()


def test_panels_have_titles_units_and_places_of_their_own() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        fields = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & fields, panel["title"]
        taken |= fields
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert panels()[0]["title"] == "Hit share"


def test_every_metric_of_a_query_is_declared() -> None:
    suffixes = ("", "_bucket", "_sum", "_count")
    declared = {each.name + suffix for each in METRICS for suffix in suffixes}
    text = " ".join([query for _, query in panel_queries()] + [rule["expr"] for rule in rules()])
    assert set(re.findall(r"radixserve_\w+", text)) - declared == set()


def test_every_alert_is_told_what_to_do_about() -> None:
    document = (ROOT / "docs" / "operations.md").read_text()
    assert [rule["alert"] for rule in rules() if f"**{rule['alert']}**" not in document] == []
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]


def test_provisioning_and_compose_name_files_that_exist() -> None:
    compose = yaml.safe_load((CONFIGS / "compose.yml").read_text())
    assert set(compose["services"]) == {"radixserve", "prometheus", "grafana"}
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (CONFIGS / source).exists(), source
    provisioning = CONFIGS / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "radixserve.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "radixserve.yml").read_text())[
        "providers"
    ]
    mounts = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/radixserve.json" in mounts
    scraped = yaml.safe_load((CONFIGS / "prometheus-compose.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["job_name"] == "radixserve"
    assert job["static_configs"][0]["targets"] == ["radixserve:8000"]


@needs_prometheus
@pytest.mark.slow
def test_promtool_finds_no_fault_with_the_alerts() -> None:
    command = ["promtool", "check", "rules", str(ALERTS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    assert f"{len(rules())} rules found" in result.stdout


# With data.


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has scraped a server with all tiers, two tenants, cold and warm prompts and
    an error.
    """
    folder = tmp_path_factory.mktemp("store")
    keys = folder / "keys.toml"
    keys.write_text("".join(f"[tenants.{each}]\nkeys = ['key-{each}']\n" for each in TENANTS))
    options = {"--kv-budget": "64MiB", "--host-budget": "64MiB", "--disk-path": str(folder / "kv")}
    options |= {"--api-key-file": str(keys), "--metrics-access": "open"}
    with running(*chain.from_iterable(options.items())) as server:
        port = int(server.url.rpartition(":")[2])
        with running_prometheus(port, tmp_path_factory.mktemp("prometheus")) as address:
            _wait_for_a_scrape(address)
            for round in range(4):  # rates need more than one scrape
                for tenant in TENANTS:
                    _ask(server.url, tenant, f"Prompt {round} is new, and it is long enough. " * 8)
                    _ask(server.url, tenant, "The same prompt every time, also long enough. " * 8)
                _ask(server.url, "one", "")
                time.sleep(0.5)
            yield address


def _wait_for_a_scrape(address: str) -> None:
    for _ in range(300):
        if query_values(address, "up") == [1]:
            return
        time.sleep(0.1)
    raise AssertionError("Prometheus scrapes nothing")


def _ask(url: str, tenant: str, text: str) -> None:
    body = {"prompt": text, "max_tokens": 4} if text else {"prompt": "a", "max_tokens": -1}
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        f"{url}/v1/completions",
        data,
        {"Content-Type": "application/json", "x-api-key": f"key-{tenant}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        assert not text
        error.close()


def _has_data(address: str, query: str) -> bool:
    """Whether at least one value is a number."""
    return any(math.isfinite(value) for value in query_values(address, query))


@needs_prometheus
@pytest.mark.slow
@pytest.mark.model
def test_panels_of_tenants_tell_them_apart(prometheus: str) -> None:
    (query,) = (query for title, query in panel_queries() if title == "Hit share by tenant")
    query = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert len(query_values(prometheus, query)) == len(TENANTS)


@needs_prometheus
@pytest.mark.slow
@pytest.mark.model
def test_every_panel_has_data(prometheus: str) -> None:
    empty = []
    for title, query in panel_queries():
        query = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
        if not _has_data(prometheus, query):
            empty.append((title, query))
    assert empty == []


@needs_prometheus
@pytest.mark.slow
@pytest.mark.model
def test_every_alert_has_data_to_decide_on(prometheus: str) -> None:
    """The side of the comparison that is measured; the threshold may not be reached."""
    empty = []
    for rule in rules():
        measured, _, threshold = re.split(r"\s([<>])\s(?=[\d.]+$)", rule["expr"])
        assert float(threshold) >= 0
        if not _has_data(prometheus, measured):
            empty.append((rule["alert"], measured))
    assert empty == []
