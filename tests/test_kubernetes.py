"""The manifests in configs/kubernetes: by Kubernetes' own schemas, and against the server's
settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from radixserve.config import Settings
from radixserve.config_table import TABLE
from radixserve.metrics_table import METRICS

FOLDER = Path(__file__).parent.parent / "configs" / "kubernetes"
OWN = {"Kustomization", "PodMonitor"}  # of other projects, so Kubernetes has no schema for them
VERSIONS = ("1.29", "1.37")


def objects() -> dict[str, dict[str, Any]]:
    """Every object by its kind."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(FOLDER.rglob("*.yaml")):
        for each in yaml.safe_load_all(path.read_text()):
            if each["kind"] != "Kustomization":
                assert each["kind"] not in found, path
                found[each["kind"]] = each
    return found


OBJECTS = objects()
WORKLOADS = ("Deployment", "StatefulSet")


def pod(kind: str) -> dict[str, Any]:
    return dict(OBJECTS[kind]["spec"]["template"]["spec"])


def container(kind: str) -> dict[str, Any]:
    (only,) = pod(kind)["containers"]
    return dict(only)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", sorted(set(OBJECTS) - OWN))
def test_the_schema_of_kubernetes_finds_no_fault(kind: str, version: str) -> None:
    """Strictly: a field that the schema does not have is a fault, too."""
    kubernetes_validate.validate(OBJECTS[kind], version, strict=True)


def test_a_mistake_would_be_found() -> None:
    wrong = {**OBJECTS["Service"], "spec": {"ports": [{"port": "http"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_pod_monitor_names_the_port_the_path_and_the_job() -> None:
    """Its schema comes with the Prometheus operator, which no package for Python has."""
    monitor = OBJECTS["PodMonitor"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"jobLabel", "selector", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == container("Deployment")["ports"][0]["name"]
    assert endpoint["path"] == "/metrics"
    labels = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"] == labels
    assert labels[monitor["spec"]["jobLabel"]] == "radixserve"


def test_every_folder_lists_its_files() -> None:
    for path in FOLDER.glob("*/kustomization.yaml"):
        listed = {name for name in yaml.safe_load(path.read_text())["resources"] if name[0] != "."}
        assert listed == {each.name for each in path.parent.glob("*.yaml")} - {path.name}


def test_both_workloads_run_the_same_pod_apart_from_the_claim() -> None:
    one, several = pod("Deployment"), pod("StatefulSet")
    assert [each["name"] for each in one.pop("volumes")] == ["memory", "data"]
    assert [each["name"] for each in several.pop("volumes")] == ["memory"]
    assert one == several
    (claim,) = OBJECTS["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"] == OBJECTS["PersistentVolumeClaim"]["spec"]


@pytest.mark.parametrize("kind", WORKLOADS)
def test_a_pod_has_time_to_drain(kind: str) -> None:
    (_, seconds) = container(kind)["lifecycle"]["preStop"]["exec"]["command"]
    variables = {each["name"]: each.get("value") for each in container(kind)["env"]}
    drain = float(str(variables["RADIXSERVE_DRAIN_SECONDS"]))
    assert drain == Settings().drain_seconds
    assert pod(kind)["terminationGracePeriodSeconds"] >= float(seconds) + drain + 15


@pytest.mark.parametrize("kind", WORKLOADS)
def test_settings_probes_and_metrics_exist(kind: str) -> None:
    flags = {row.flag for row in TABLE}
    assert {word for word in container(kind)["args"] if word.startswith("--")} <= flags
    known = {row.variable for row in TABLE} | {"RADIXSERVE_CACHE_DIR", "HF_HOME"}
    assert {each["name"] for each in container(kind)["env"]} <= known
    probes = [container(kind)[f"{word}Probe"] for word in ("startup", "liveness", "readiness")]
    paths = [probe["httpGet"]["path"] for probe in probes]
    assert paths == ["/health/ready", "/health/live", "/health/ready"]
    names = {each.name for each in METRICS if each.kind == "gauge"}
    scaled = OBJECTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert {each["pods"]["metric"]["name"] for each in scaled} <= names


def test_what_is_kept_fits_on_the_claim() -> None:
    words = container("Deployment")["args"]
    assert words[words.index("--disk-budget") + 1] == "20GiB"
    assert OBJECTS["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"] == "40Gi"
