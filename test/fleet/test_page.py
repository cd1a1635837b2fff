"""The examples of clusters on the fleet's page: they have not been run on real ones, but they are what Ray and Kubernetes read."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from come_ros.tools import fleet
from come_ros.tools.cli import command_parser

PAGE = Path(__file__).resolve().parents[2] / "come_ros" / "fleet" / "README.md"


@pytest.fixture(scope="module")
def examples() -> list[dict[str, Any]]:
    text = PAGE.read_text(encoding="utf-8")
    assert "has been run on a real cluster" in text
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


def test_the_cluster_is_one_of_ray(examples: list[dict[str, Any]]) -> None:
    cluster = examples[0]
    assert cluster["provider"]["type"] == "local" and cluster["provider"]["worker_ips"]
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert sum("RAY_USAGE_STATS_ENABLED=0 ray start" in command for command in starts) == 2
    found = importlib.util.find_spec("ray")
    if found is None or found.origin is None:
        pytest.skip("Ray is not installed, whose schema it is held against: pip install 'come_ros[fleet]'")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(Path(found.origin).with_name("autoscaler").joinpath("ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_the_job_is_one_of_kuberay_and_its_command_is_understood(examples: list[dict[str, Any]]) -> None:
    job = examples[1]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    command, name, *words = shlex.split(job["spec"]["entrypoint"])
    assert (command, name) == ("come_ros", "fleet") and command_parser(fleet, "fleet").parse_args(
        words
    ).address == "auto"
    spec = job["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}


def test_every_command_of_the_page_is_understood() -> None:
    lines = re.findall(r"^ {4}come_ros fleet (.*?)(?: {2,}#.*)?$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        command_parser(fleet, "fleet").parse_args(shlex.split(line))
