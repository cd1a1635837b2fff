"""A start that fails: one line with the fix, and an exit code that a supervisor sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from come_ros.errors import ConfigError
from come_ros.ros.arguments import check_environment, params_files, ros_arguments

# Each case: arguments, environment, exit code, what the one line says. "tab.yaml" and the like are made by the test.
CASES = {
    "parameter with =": (["--ros-args", "-p", "window.size=6"], {}, 1, "NAME:=VALUE"),
    "remapping with =": (["--ros-args", "-r", "image=/camera/image_raw"], {}, 1, "FROM:=TO"),
    "remapping with a space": (["--ros-args", "-r", "image:=/cam-1/image raw"], {}, 1, "FROM:=TO"),
    "no such file": (["--ros-args", "--params-file", "nowhere.yaml"], {}, 1, "check its path"),
    "file with tabs": (["--ros-args", "--params-file", "tab.yaml"], {}, 1, "check its path and its form"),
    "file without ros__parameters": (["--params", "flat.yaml"], {}, 1, "check its path and its form"),
    "unknown parameter": (["--set", "window.sice=6"], {}, 1, "did you mean 'window.size'"),
    "out of range": (["--set", "window.size=600"], {}, 1, "2 .. 64"),
    "node name": (["--ros-args", "-r", "__node:=3come"], {}, 1, "FROM:=TO"),
    "namespace": (["--ros-args", "-r", "__ns:=robot1"], {}, 1, "FROM:=TO"),
    "log level": (["--ros-args", "--log-level", "verbose"], {}, 1, "debug, info, warn"),
    "QoS with a mistake": (
        ["--set", "qos_overrides./come/points.publisher.reliability=best-effort"],
        {},
        1,
        "best_effort",
    ),
    "QoS without a meaning": (["--set", "qos_overrides./come/points.publisher.depth=0"], {}, 1, "1 or more"),
    "QoS of no policy": (
        ["--set", "qos_overrides./image.subscription.liveliness=automatic"],
        {},
        1,
        "one of reliability",
    ),
    "domain is no number": ([], {"ROS_DOMAIN_ID": "robot"}, 1, "0 .. 232"),
    "domain too large": ([], {"ROS_DOMAIN_ID": "300"}, 1, "0 .. 232"),
    "no such middleware": (
        [],
        {"RMW_IMPLEMENTATION": "rmw_nothing_cpp"},
        1,
        "'rmw_nothing_cpp', which is not installed",
    ),
    "no ROS argument": (["foo"], {}, 2, "'foo' is not an argument of the node"),
    "ROS argument without --ros-args": (["-p", "window.size:=6"], {}, 2, "after --ros-args"),
    "--set without =": (["--set", "window.size"], {}, 2, "NAME=VALUE"),
    "--params without a file": (["--params"], {}, 2, "needs a value"),
}
SCRIPT = """
import json, os, sys
from come_ros.ros.main import main
before = dict(os.environ)
for arguments, environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    code = main(arguments)
    for name in environment:
        os.environ.pop(name)
        os.environ |= {name: before[name]} if name in before else {}
    print("CODE", code, flush=True)
    print("NEXT", file=sys.stderr, flush=True)
"""


@pytest.mark.ros
def test_each_start_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    """All in one process: ROS is loaded once."""
    (tmp_path / "tab.yaml").write_text("/**:\n\tros__parameters:\n")
    (tmp_path / "flat.yaml").write_text("/**:\n  window.size: 6\n")
    work = json.dumps([(arguments, environment) for arguments, environment, _, _ in CASES.values()])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, work], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("CODE")]
    assert dict(zip(CASES, codes, strict=True)) == {name: code for name, (_, _, code, _) in CASES.items()}
    assert "Traceback" not in done.stderr
    for (name, (_, _, _, text)), said in zip(CASES.items(), done.stderr.split("NEXT\n"), strict=False):
        lines = [line for line in said.splitlines() if "come_ros node:" in line or "[FATAL]" in line]
        assert len(lines) == 1 and text in lines[0], f"{name}: {said}"


def test_what_the_other_commands_take_becomes_ros_arguments() -> None:
    words = [
        "--params",
        "a.yaml",
        "--set",
        "extrinsics=cam: 0 0=1",
        "--ros-args",
        "-r",
        "image:=/x",
        "--",
        "--set=window.size=6",
    ]
    expected = ["--params-file", "a.yaml", "-p", "extrinsics:=cam: 0 0=1", "-p", "window.size:=6", "-r", "image:=/x"]
    assert ros_arguments(words) == ["--ros-args", *expected]
    assert params_files(ros_arguments(words)) == ["a.yaml"]
    assert ros_arguments([]) == []
    # as ros2 launch and ros2 run write them
    assert ros_arguments(["--ros-args", "-r", "a:=b", "--ros-args", "--log-level", "info"])[1:] == [
        "-r",
        "a:=b",
        "--log-level",
        "info",
    ]


def test_ros_gets_a_folder_for_its_log_where_there_is_no_home() -> None:
    environment = {"HOME": ""}
    check_environment(environment)
    assert environment["ROS_LOG_DIR"]
    environment = {"HOME": "/home/robot", "ROS_DOMAIN_ID": "232"}
    check_environment(environment)
    assert "ROS_LOG_DIR" not in environment
    for domain in ("233", "-1", "1.0", "robot", " 3"):
        with pytest.raises(ConfigError, match="ROS_DOMAIN_ID is"):
            check_environment({"ROS_DOMAIN_ID": domain})


def test_a_middleware_that_is_not_there_is_named_before_ros_ends_the_process(tmp_path: Path) -> None:
    there = tmp_path / "share/ament_index/resource_index/rmw_typesupport"
    there.mkdir(parents=True)
    for name in ("rmw_implementation", "rmw_zenoh_cpp"):
        (there / name).touch()
    environment = {"AMENT_PREFIX_PATH": str(tmp_path), "RMW_IMPLEMENTATION": "rmw_zenoh_cpp", "HOME": "/"}
    check_environment(environment)
    with pytest.raises(ConfigError, match=r"rmw_nothing_cpp.*not installed: unset it, set it to .*rmw_zenoh_cpp"):
        check_environment(environment | {"RMW_IMPLEMENTATION": "rmw_nothing_cpp"})
