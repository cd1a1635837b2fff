"""parameter_file.py reads files and values as rcl does: the same text gives node and tools the same parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rclpy
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.node import Node

from come_ros.errors import ConfigError
from come_ros.parameter_file import read_parameters, read_value

SPACED = """1 1.0 1e-3 1.e3 .5 5e-01 +3 -3 0x10 0XfF 010 08 0o10 00 -010 1_000 0b1 1e5 1E+5 1e 1e+ .e3 + . .. - -0 -0.0 0.0e9 0x1p3 0x.8
true True TRUE tRue yes Yes y Y no N on On ON off Off null ~ = .nan .NaN .nAn -.nan nan NaN -nan nan(3) .inf -.inf +.inf .iNF inf iNf
-infinity infx 12:30 2020-01-01 1,5 hello a+b 9223372036854775807 9223372036854775808 -9223372036854775809 1e308 1e400 1e-400 5e-324
'3' "3" '' "on" [] [1,2] [1,2.0] [1e-3] [on,off] [a,b] [[1],[2]] 1d3 % @a `a !!str !foo"""
WORDS = SPACED.split()
WORDS += ["hello world", "!!str 1.5", "!!float 3", "!!bool off", "a: b", "'it''s'", "3 # three"]

P6, P9 = "  ros__parameters:\n    a: 6\n", "  ros__parameters:\n    a: 9\n    b: {c: 1}\n"
FILES = {
    "own name": "come:\n" + P6,
    "full name": "/come:\n" + P6,
    "all last": "come:\n" + P6 + "/**:\n" + P9,
    "all first": "/**:\n" + P9 + "come:\n" + P6,
    "one token": "/*:\n" + P6,
    "any namespace": "/**/come:\n" + P6,
    "several nodes": "/usb_cam:\n" + P9 + "/come:\n" + P6,
    "dotted and nested": "/**:\n  ros__parameters:\n    w: {size: 3}\n    w.b: 4\n",
    "two documents": "/**:\n" + P6 + "---\n/**:\n" + P9,
    "twice": "/**:\n  ros__parameters:\n    a: 1\n    a: 2\n",
    "byte order mark": "\ufeff/**:\n" + P6,
    "crlf": ("/**:\n" + P6).replace("\n", "\r\n"),
    "empty": "",
    "no ros__parameters": "/**:\n  window.size: 6\n",
    "nothing below": "/**:\n  ros__parameters:\n",
    "no value": "/**:\n  ros__parameters:\n    a:\n",
    "tab": "/**:\n\tros__parameters:\n",
    "list": "- a\n",
    "alias to itself": "/**:\n  ros__parameters: &x\n    a: *x\n",
}


def by_rcl(path: Path, *more: str) -> dict[str, Any] | None:
    """What a node called come gets; None if rcl refuses the file."""
    context = rclpy.Context()
    try:
        rclpy.init(args=["x", "--ros-args", "--params-file", str(path), *more], context=context)
    except Exception:
        return None
    node = Node("come", context=context, enable_rosout=False, start_parameter_services=False)
    try:
        return {name: parameter.value for name, parameter in node._parameter_overrides.items()}
    finally:
        node.destroy_node()
        context.try_shutdown()


def by_tools(path: Path, node: str = "/come") -> dict[str, Any] | None:
    try:
        return read_parameters(path, node)
    except ConfigError:
        return None


def agree_on(words: list[str], path: Path) -> None:
    """One file holds all that the tools take: each file costs a start of ROS."""
    taken = []
    for word in words:
        path.write_text(f"/**:\n  ros__parameters:\n    a: {word}\n")
        if by_tools(path) is None:
            assert by_rcl(path) is None, word
        else:
            taken.append(word)
    path.write_text("/**:\n  ros__parameters:\n" + "".join(f"    w{i}: {word}\n" for i, word in enumerate(taken)))
    ours, theirs = by_tools(path), by_rcl(path)
    assert ours is not None and theirs is not None, taken
    for i, word in enumerate(taken):
        assert repr(ours[f"w{i}"]) == repr(theirs[f"w{i}"]), word  # repr: NaN equals NaN, and 1 is not 1.0


def test_every_value_has_the_type_that_ros_gives_it(tmp_path: Path) -> None:
    agree_on(WORDS, tmp_path / "p.yaml")


@settings(max_examples=8)
@given(st.lists(st.text("0123456789+.eExXpPinfaN_", min_size=1, max_size=6), min_size=20, max_size=40))
@pytest.mark.slow
def test_what_looks_like_a_number_is_one_where_ros_says_so(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    agree_on(words, tmp_path_factory.mktemp("p") / "p.yaml")


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_files_as_bring_ups_have_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(text.encode("utf-8"))
    assert by_tools(path) == by_rcl(path)


@pytest.mark.parametrize(
    "key", ["come", "robot1/come", "/robot1/come", "robot1:\n  come", "/*", "/*/come", "/**/come", "/**"]
)
def test_a_node_in_a_namespace_takes_the_same_entries(tmp_path: Path, key: str) -> None:
    path = tmp_path / "p.yaml"
    indent = "  " * key.count("\n")
    path.write_text(f"{key}:\n{indent}  ros__parameters:\n{indent}    a: 6\n")
    # where nothing applies, rcl gives nothing and says nothing; the tools say so
    assert (by_tools(path, "/robot1/come") or {}) == by_rcl(path, "-r", "__ns:=/robot1")


def test_a_file_for_others_is_refused_by_the_tools(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("my_come:\n" + P6 + "usb_cam:\n" + P6)
    with pytest.raises(ConfigError, match=r"to /my_come, /usb_cam, but nothing to /come: write '/\*\*:'"):
        read_parameters(path)


def test_a_value_of_the_command_line_is_read_alike() -> None:
    assert [read_value(w) for w in ("1e-3", "010", "off", "6", "6.0", "[1, 2]", "'6'")] == [
        1e-3,
        8,
        False,
        6,
        6.0,
        [1, 2],
        "6",
    ]
    with pytest.raises(ConfigError, match="several types"):
        read_value("[1, a]")
    with pytest.raises(ConfigError, match="not a value that YAML can read"):
        read_value("[1")
