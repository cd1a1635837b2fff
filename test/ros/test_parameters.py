"""Every parameter of Config is a ROS parameter with its meaning and range; YAML is read as people write it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter

from come_ros.config import Config, parameters
from come_ros.config_text import load_config
from come_ros.errors import ConfigError
from come_ros.parameter_file import read_entries
from come_ros.ros.parameters import declare_parameters, follow_parameters

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def make_node() -> Iterator[Any]:
    """make_node(*ros_arguments) -> Node in a context of its own."""
    made = []

    def make(*arguments: str) -> Node:
        context = rclpy.Context()
        rclpy.init(args=["x", "--ros-args", *arguments], context=context)
        made.append((Node("come", context=context), context))
        return made[-1][0]

    yield make
    for node, context in made:
        node.destroy_node()
        context.try_shutdown()


def test_all_are_declared_with_default_meaning_range_and_read_only_flag(make_node):
    node = make_node()
    assert declare_parameters(node) == Config()
    for p in parameters():
        told = node.describe_parameter(p.name)
        assert node.get_parameter(p.name).value == p.default, p.name
        assert (told.description, told.read_only) == (p.doc, not p.dynamic), p.name
        ranges = [*told.integer_range, *told.floating_point_range]
        if p.low is not None:
            assert [(r.from_value, r.to_value) for r in ranges] == [(p.low, p.high)], p.name
        if p.choices:
            assert all(choice in told.additional_constraints for choice in p.choices), p.name


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_each_file_of_ours_means_the_same_to_ros_and_to_the_tools(make_node, file: Path):
    for_others = all(entry.node.startswith(("/local_", "/global_")) for entry in read_entries(str(file)))
    config = declare_parameters(make_node("--params-file", str(file)))  # rcl reads every file, or raises
    assert config == (Config() if for_others else load_config(str(file)))


def test_a_file_may_say_1_for_a_float_and_off_for_a_word(make_node, tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "/**:\n  ros__parameters:\n    cloud: {max_range: 8}\n    tf: {mode: off}\n    use_sim_time: true\n"
    )
    node = make_node("--params-file", str(path), "-p", "keyframe.max_interval:=2")
    config = declare_parameters(node)
    assert (config.cloud.max_range, config.tf.mode, config.keyframe.max_interval) == (8.0, "off", 2.0)
    assert node.get_parameter("cloud.max_range").value == 8.0 and node.get_parameter("tf.mode").value == "off"


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("cloud.strid:=2", "did you mean 'cloud.stride'"),
        ("window.size:=100", "2 .. 64"),
        ("window.size:=4.0", "must be an integer"),
        ("keyframe.mode:=never", "every, time, flow"),
        ("max_data_age:=.nan", "0 .. 60"),
        ("device:=[cpu]", "must be text"),
    ],
)
def test_what_is_unknown_or_wrong_is_refused_at_start(make_node, argument, told):
    with pytest.raises(ConfigError, match=told.replace("[", r"\[")):
        declare_parameters(make_node("-p", argument))


def test_changes_reach_the_node_all_or_none(make_node):
    node, seen = make_node(), []
    follow_parameters(node, declare_parameters(node), seen.append)

    def assign(**values: Any):
        return node.set_parameters_atomically([Parameter(k.replace("__", "."), value=v) for k, v in values.items()])

    assert assign(window__size=16, window__overlap=10).successful
    refused = assign(window__size=4, cloud__stride=2)
    assert not refused.successful and "window.overlap is 10" in refused.reason
    assert not assign(weights="x").successful, "read-only"
    assert not assign(cloud__organized=1).successful
    assert not assign(cov__rotation_floor=None).successful
    assert assign(cov__rotation_floor=1).successful
    assert [c.window.size for c in seen] == [16, 16] and seen[-1].cov.rotation_floor == 1.0
    assert seen[-1].cloud.stride == 1 and node.get_parameter("cloud.stride").value == 1


PLUGIN = """
from dataclasses import dataclass

from come_ros.accelerators import Accelerator
from come_ros.parameter import parameter


class Every(Accelerator):
    @dataclass(frozen=True)
    class Parameters:
        step: int = parameter(2, "patches between those that are read", low=1, high=8, dynamic=True)
        file: str = parameter("", "a file of its own")
"""


def test_a_plug_ins_own_parameters_are_declared_and_live(make_node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    (tmp_path / "plugin_for_ros.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = ("-p", "accelerator.name:=plugin_for_ros:Every")
    node = make_node(*name, "-p", "accelerator.params.step:=3")
    config, seen = declare_parameters(node), []
    follow_parameters(node, config, seen.append)
    assert config.accelerator.params.step == node.get_parameter("accelerator.params.step").value == 3
    told = node.describe_parameter("accelerator.params.step")
    assert told.description == "patches between those that are read" and not told.read_only
    assert node.describe_parameter("accelerator.params.file").read_only
    assert node.set_parameters([Parameter("accelerator.params.step", value=5)])[0].successful
    assert [c.accelerator.params.step for c in seen] == [5]
    refused = node.set_parameters([Parameter("accelerator.params.step", value=9)])[0]
    assert not refused.successful and node.get_parameter("accelerator.params.step").value == 5
    with pytest.raises(ConfigError, match=r"did you mean 'accelerator\.params\.step'"):
        declare_parameters(make_node(*name, "-p", "accelerator.params.stp:=3"))
