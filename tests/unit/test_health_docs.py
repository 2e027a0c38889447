"""The manifests of the page on health are valid, and their commands run as a probe runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.harness.workers import ROOT
from worker_guard.health.state import State
from worker_guard.metrics.http import LIVEZ, READYZ

PAGE = ROOT / "docs/health.md"

#: What Kubernetes requires of a container's probe (core/v1), as far as the page uses it.
PROBE = {
    "type": "object",
    "properties": {
        "exec": {
            "type": "object",
            "required": ["command"],
            "additionalProperties": False,
            "properties": {
                "command": {"type": "array", "minItems": 1, "items": {"type": "string"}}
            },
        },
        "httpGet": {
            "type": "object",
            "required": ["port"],
            "additionalProperties": False,
            "properties": {
                "path": {"type": "string", "pattern": "^/"},
                "port": {"type": "integer", "minimum": 1, "maximum": 65535},
            },
        },
        "periodSeconds": {"type": "integer", "minimum": 1},
        "timeoutSeconds": {"type": "integer", "minimum": 1},
        "failureThreshold": {"type": "integer", "minimum": 1},
        "successThreshold": {"const": 1},
        "initialDelaySeconds": {"type": "integer", "minimum": 0},
    },
    "additionalProperties": False,
    "oneOf": [{"required": ["exec"]}, {"required": ["httpGet"]}],
}
PROBES = dict.fromkeys(("startupProbe", "livenessProbe", "readinessProbe"), PROBE)
NAMED = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    """An object with these fields and no other."""
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


CONTAINER = closed(
    ["name", "image"],
    name=NAMED,
    image={"type": "string"},
    command={"type": "array", "items": {"type": "string"}},
    volumeMounts={
        "type": "array",
        "items": closed(["name", "mountPath"], name=NAMED, mountPath={"type": "string"}),
    },
    **PROBES,
)
POD = closed(
    ["containers"],
    terminationGracePeriodSeconds={"type": "integer", "minimum": 0},
    containers={"type": "array", "minItems": 1, "items": CONTAINER},
    volumes={
        "type": "array",
        "items": closed(
            ["name", "emptyDir"],
            name=NAMED,
            emptyDir=closed(
                [],
                medium={"enum": ["", "Memory"]},
                sizeLimit={"type": "string", "pattern": r"^\d+(Ki|Mi|Gi)?$"},
            ),
        ),
    },
)
DEPLOYMENT = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "apps/v1"},
    kind={"const": "Deployment"},
    metadata=closed(["name"], name=NAMED),
    spec=closed(
        ["selector", "template"],
        replicas={"type": "integer", "minimum": 0},
        selector=closed(["matchLabels"], matchLabels=LABELS),
        template=closed(["metadata", "spec"], metadata=closed([], labels=LABELS), spec=POD),
    ),
)
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
SERVICE = closed(
    ["image"],
    image={"type": "string"},
    command={"type": "array", "items": {"type": "string"}},
    tmpfs={"type": "array", "items": {"type": "string"}},
    healthcheck=closed(
        ["test"],
        test={"type": "array", "prefixItems": [{"const": "CMD"}], "minItems": 2},
        interval=DURATION,
        timeout=DURATION,
        retries={"type": "integer", "minimum": 1},
        start_period=DURATION,
    ),
)


def manifests() -> list[Any]:
    """The YAML of the page: the deployment, the probes by HTTP, and the Compose file."""
    yaml: Any = pytest.importorskip(
        "yaml", reason="PyYAML, which Sphinx's group brings, is missing"
    )
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


@pytest.mark.parametrize(
    ("number", "schema"),
    [
        (0, DEPLOYMENT),
        (1, closed(list(PROBES), **PROBES)),
        (2, closed(["services"], services={"type": "object", "additionalProperties": SERVICE})),
    ],
    ids=["deployment", "http", "compose"],
)
def test_the_manifests_are_valid(number: int, schema: dict[str, Any]) -> None:
    """By the constraints of Kubernetes and Compose on the fields that they use, and no other."""
    found = manifests()
    assert len(found) == 3
    assert list(Draft202012Validator(schema).iter_errors(found[number])) == []


def test_the_deployment_fits_together() -> None:
    """Labels, volume and the folder of the file; a restart takes as long as the page says."""
    spec = manifests()[0]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert [volume["name"] for volume in pod["volumes"]] == ["heartbeat"]
    (mount,) = container["volumeMounts"]
    for name in PROBES:
        assert container[name]["exec"]["command"][1] == f"{mount['mountPath']}/worker.json"
        assert container[name]["timeoutSeconds"] >= 5
    assert f'heartbeat_file = "{mount["mountPath"]}/%n.json"' in PAGE.read_text()
    http = manifests()[1]
    assert [http[name]["httpGet"]["path"] for name in PROBES] == [LIVEZ, LIVEZ, READYZ]


def commands() -> list[list[str]]:
    """Each command of the page's probes."""
    (container,) = manifests()[0]["spec"]["template"]["spec"]["containers"]
    health = manifests()[2]["services"]["worker"]["healthcheck"]["test"]
    return [*(container[name]["exec"]["command"] for name in PROBES), health[1:]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of this tree, installed as pip installs it."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    options = ["--no-deps", "--no-index", "--no-compile", "--target", str(folder)]
    done = subprocess.run([*pip, *options, wheel], capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr:
        pytest.skip("there is no pip in this environment")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("number", range(4))
def test_the_commands_run_as_an_exec_probe_runs_them(
    installed: Path, tmp_path: Path, number: int
) -> None:
    """Without a shell, by the name of the program, as the wheel installs it."""
    program, path, *options = commands()[number]
    file = tmp_path / Path(path).name
    file.write_text(
        json.dumps({"worker": "w@h", "state": "disconnected", "monotonic": time.monotonic()})
    )
    environ = {"PATH": f"{installed / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [program, str(file), *options],
        cwd="/", env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    ready = options == ["--ready"]
    assert (done.returncode, done.stderr) == (1 if ready else 0, "")
    assert done.stdout.startswith("no: " if ready else "yes: ")


def test_each_state_has_its_row() -> None:
    """And the page says of each whether it is alive and ready."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (yes|no) \| (yes|no) \|$", PAGE.read_text(), re.M)
    assert {name for name, _alive, _ready in rows} == set(State.__args__)  # type: ignore[attr-defined]
    assert [name for name, _alive, ready in rows if ready == "yes"] == ["ready"]
    assert {alive for _name, alive, _ready in rows} == {"yes"}
