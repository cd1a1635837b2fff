"""come.yaml, come.rviz, come.foxglove.json and the launch files against what the node really has."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from come_ros.config import Config, parameters
from come_ros.config_text import load_config

ROOT = Path(__file__).resolve().parents[2]


def test_come_yaml_lists_every_parameter_with_its_default_and_a_comment():
    path = ROOT / "config" / "come.yaml"
    assert load_config(str(path)) == Config()
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(tree) == ["/**"]

    def flat(group, prefix=""):
        for key, value in group.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]

    assert list(flat(tree["/**"]["ros__parameters"])) == [p.name for p in parameters()]
    lines = [x for x in path.read_text(encoding="utf-8").splitlines() if ":" in x and not x.rstrip().endswith(":")]
    docs = {p.name.rpartition(".")[2]: p.doc for p in parameters()}
    for line in (x for x in lines if not x.lstrip().startswith("#")):
        assert "  # " in line, f"no comment: {line}"
    assert all(any(doc in line for line in lines) for doc in docs.values())


def test_rviz_subscribes_to_what_the_node_publishes_with_a_matching_qos():
    from come_ros.outputs.topics import LATCHED, OUTPUTS

    ours = {"come/" + topic: output.kind.rpartition("/")[2] for topic, output in (OUTPUTS | LATCHED).items()}
    manager = yaml.safe_load((ROOT / "config" / "come.rviz").read_text(encoding="utf-8"))["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == Config().odom_frame
    shown, hidden = set(), set()
    for display in manager["Displays"]:
        if "Topic" not in display:
            continue
        topic, kind = display["Topic"], display["Class"].rpartition("/")[2]
        name = topic["Value"]
        (shown if display["Enabled"] else hidden).add(name)
        latched = name.removeprefix("come/") in LATCHED
        assert topic["Durability Policy"] == ("Transient Local" if latched else "Volatile"), name
        if name == "image":  # a camera's, most often best effort: asking for more would show nothing
            assert topic["Reliability Policy"] == "Best Effort"
        else:
            assert topic["Reliability Policy"] == "Reliable"
            assert ours[name] == kind, name
            depth = 1 if latched else OUTPUTS[name.removeprefix("come/")].depth
            assert topic["Depth"] == depth, name
    assert shown == {
        "image",
        "come/points",
        "come/map_points",
        "come/odometry",
        "come/path",
        "come/depth/image",
        "come/landmarks",
    }
    # the input and the depth are seen already; the second display of the points colours them by confidence
    assert hidden == {"come/rgb/image_rect", "come/confidence", "come/points", "come/merge_overlay"}


def frames_of(tree: object, keys: tuple[str, ...]) -> set[str]:
    """Every value of one of `keys`, at any depth."""
    if isinstance(tree, list):
        return set().union(*(frames_of(each, keys) for each in tree))
    if not isinstance(tree, dict):
        return set()
    inside = set().union(*(frames_of(each, keys) for each in tree.values()))
    return inside | {tree[key] for key in keys if isinstance(tree.get(key), str)}


def test_every_frame_that_rviz_and_foxglove_name_is_one_of_the_node():
    import json

    ours = {Config().odom_frame, Config().map_frame}
    rviz = yaml.safe_load((ROOT / "config" / "come.rviz").read_text(encoding="utf-8"))
    assert frames_of(rviz, ("Fixed Frame", "Reference Frame", "Target Frame")) == ours | {"<Fixed Frame>"}
    layout = json.loads((ROOT / "config" / "come.foxglove.json").read_text(encoding="utf-8"))
    assert frames_of(layout, ("followTf", "fixedFrame", "frameId")) == {Config().odom_frame}
    listed = set(layout["configById"]["3D!scene"]["transforms"])
    assert listed <= {f"frame:{name}" for name in ours}


def panels(layout) -> list[str]:
    """Names of the panels in a Foxglove layout's tree."""
    return [layout] if isinstance(layout, str) else [*panels(layout["first"]), *panels(layout["second"])]


def foxglove_topics(config: dict) -> dict[str, set[str]]:
    """Topic -> the types that its panels can show."""
    topics: dict[str, set[str]] = {}
    for name, panel in config.items():
        kind = name.partition("!")[0]
        if kind == "3D":
            for topic in panel["topics"]:
                topics.setdefault(topic, set()).update({"PointCloud2", "Odometry", "Path"})
        elif kind == "Image":
            topics.setdefault(panel["imageMode"]["imageTopic"], set()).add("Image")
            topics.setdefault(panel["imageMode"]["calibrationTopic"], set()).add("CameraInfo")
        elif kind == "Plot":
            topics.update((path["value"].partition(".")[0], {"Odometry"}) for path in panel["paths"])
        elif kind == "DiagnosticSummary":
            topics[panel["topicToRender"]] = {"DiagnosticArray"}
        else:
            raise AssertionError(f"{name}: say here what its topics are")
    return topics


def test_foxglove_shows_what_the_node_publishes():
    import json

    from come_ros.outputs.topics import LATCHED, OUTPUTS

    layout = json.loads((ROOT / "config" / "come.foxglove.json").read_text(encoding="utf-8"))
    assert set(layout) == {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}
    config = layout["configById"]
    assert sorted(panels(layout["layout"])) == sorted(config), "each panel has a place, and each place a panel"
    ours = {"/come/" + topic: output.kind.rpartition("/")[2] for topic, output in (OUTPUTS | LATCHED).items()}
    ours |= {"/camera/image_raw": "Image", "/camera/camera_info": "CameraInfo", "/diagnostics": "DiagnosticArray"}
    for topic, kinds in foxglove_topics(config).items():
        assert ours[topic] in kinds, topic
    scene = config["3D!scene"]
    assert scene["followTf"] == scene["fixedFrame"] == Config().odom_frame
    assert all(topic["visible"] for topic in scene["topics"].values()), "Foxglove subscribes to visible topics only"
    assert all(path["enabled"] for path in config["Plot!position"]["paths"])


def test_the_fast_dds_profile_is_well_formed_and_fits_a_docker_container():
    import xml.etree.ElementTree as ET

    root = ET.parse(ROOT / "config" / "fastdds_large_messages.xml").getroot()
    sizes = [int(e.text) for e in root.iter() if e.tag.endswith("segment_size")]
    assert sizes == [16 * 2**20]  # 1.5 times a 10 MB cloud, and two processes still fit into Docker's 64 MiB


COME = {
    "namespace", "image_topic", "camera_info_topic", "image_transport", "cameras", "params_file", "odom_frame", "base_frame",
    "backbone", "device",
    "weights", "use_sim_time", "rviz", "fixed_frame", "autostart", "log_level",
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "names", "required"),
    [
        ("come.launch.py", COME, set()),
        (
            "bag.launch.py",
            {"bag", "rate", "loop", "start_offset", "image_topic", "record", "use_sim_time", "rviz"},
            {"bag"},
        ),
        (
            "usb_cam.launch.py",
            {"video_device", "image_width", "image_height", "framerate", "pixel_format", "camera_info_url"},
            set(),
        ),
        (
            "realsense.launch.py",
            {
                "camera_namespace",
                "camera_name",
                "serial_no",
                "color_profile",
                "enable_depth",
                "image_topic",
                "base_frame",
            },
            set(),
        ),
        (
            "zed.launch.py",
            {"camera_model", "camera_name", "serial_number", "publish_tf", "image_topic"},
            {"camera_model"},
        ),
        ("view.launch.py", {"namespace", "host", "port", "open", "max_points"}, set()),
        ("multi_camera.launch.py", {"cameras", "image_topic", "video_devices"}, {"cameras"}),
    ],
)
def test_launch_arguments_are_described_and_the_file_compiles(file, names, required):
    tree = ast.parse((ROOT / "launch" / file).read_text(encoding="utf-8"))
    calls = [
        n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "DeclareLaunchArgument"
    ]
    assert {c.args[0].value for c in calls} == names
    for call in calls:
        keywords = {k.arg: k.value for k in call.keywords}
        assert "description" in keywords, call.args[0].value
        assert ("default_value" in keywords) == (call.args[0].value not in required)
        default = getattr(keywords.get("default_value"), "value", None)
        assert default not in ("true", "false") or "choices" in keywords, call.args[0].value


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["view", "--live", "--node", "/come", "--host", "127.0.0.1", "--port", "8080"]),
        (
            {"namespace": "robot", "port": "0", "open": "true", "max_points": "9000"},
            [
                "view",
                "--live",
                "--node",
                "/robot/come",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--open",
                "--max-points",
                "9000",
            ],
        ),
    ],
)
def test_view_launch_starts_the_command_as_it_takes_its_options(given, words, monkeypatch):
    """Stand-ins for launch, which is not on PyPI: they keep what they are given."""
    import runpy
    import sys
    from types import ModuleType, SimpleNamespace

    from come_ros.tools import cli, view

    kept = lambda *arguments, **values: SimpleNamespace(arguments=arguments, **values)  # noqa: E731
    modules = {name: ModuleType(name) for name in ("launch", "launch.actions", "launch.substitutions")}
    for name, made in (
        ("launch.LaunchContext", object), ("launch.LaunchDescription", list), ("launch.actions.DeclareLaunchArgument", kept),
        ("launch.actions.ExecuteProcess", kept), ("launch.actions.OpaqueFunction", kept),
        ("launch.substitutions.LaunchConfiguration", lambda name: SimpleNamespace(perform=lambda context: context[name])),
    ):  # fmt: skip
        module, _, attribute = name.rpartition(".")
        setattr(modules[module], attribute, made)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    *declared, start = runpy.run_path(str(ROOT / "launch" / "view.launch.py"))["generate_launch_description"]()
    values = {each.arguments[0]: each.default_value for each in declared} | given
    (process,) = start.function(values)
    assert process.cmd == [sys.executable, "-m", "come_ros.tools.cli", *words]
    options = cli.command_parser(view, "view").parse_args(words[1:])
    assert options.live and options.node == words[3]


def test_launch_starts_the_node_with_arguments_over_file_over_defaults(tmp_path):
    """Needs launch and launch_ros, which are not on PyPI: runs in a ROS workspace."""
    pytest.importorskip(
        "launch_ros", reason="launch and launch_ros are not installed (they come with a ROS installation)"
    )
    from launch import LaunchContext, LaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    source = PythonLaunchDescriptionSource(str(ROOT / "launch" / "come.launch.py"))
    description = source.get_launch_description(LaunchContext())
    assert isinstance(description, LaunchDescription)
