"""Parameters: what is accepted, what is refused, and that each refusal says what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from come_ros.config import LEAST_VOXEL, MIN_SIDE, Config, parameters
from come_ros.config_text import load_config, with_words
from come_ros.errors import ComeRosError, ConfigError
from come_ros.parameter import Parameter

ALL = {p.name: p for p in parameters()}
KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def _values(p: Parameter) -> st.SearchStrategy[object]:
    """Allowed values of one parameter."""
    if p.choices:
        return st.sampled_from(p.choices)
    if p.type is bool:
        return st.booleans()
    if p.type is int:
        return st.integers(int(p.low), int(p.high))
    if p.type is float:
        return st.floats(p.low, p.high)
    if p.name == "cameras":
        return st.sampled_from(["", "left+right", "front+left+right_2"])
    if p.name == "input.range":
        return st.sampled_from(["auto", "full", "0 1023", "-5.5, 1e3"])
    return st.text()


def test_defaults_are_the_declared_ones() -> None:
    assert Config().to_flat() == {name: p.default for name, p in ALL.items()}
    assert list(Config().to_flat()) == list(ALL)


@pytest.mark.slow
@example({"map.voxel": 1e-300})
@example({"map.load": "0", "tf.mode": "off"})
@example({"map.load": "0", "map_frame": "a", "odom_frame": "a"})
@given(st.fixed_dictionaries({}, optional={name: _values(p) for name, p in ALL.items()}))
def test_allowed_values_survive_the_round_trip(values: dict[str, object]) -> None:
    wanted = {**Config().to_flat(), **values}
    together = (
        wanted["window.overlap"] < wanted["window.size"] < wanted["stream.most"]
        and wanted["keyframe.min_interval"] <= wanted["keyframe.max_interval"]
        and (wanted["input.max_side"] == 0 or wanted["input.max_side"] >= MIN_SIDE)
        and (wanted["map.voxel"] == 0 or wanted["map.voxel"] >= LEAST_VOXEL)
        and (wanted["map.mode"] == "build" or wanted["map.load"])
        and (not wanted["map.load"] or (wanted["tf.mode"] != "off" and wanted["map_frame"] != wanted["odom_frame"]))
        and not (wanted["cameras"] and (wanted["known.depth"] or wanted["known.odometry"]))
        and (wanted["scale.mode"] != "height" or wanted["scale.height"] > 0)
        and (wanted["scale.mode"] != "rig" or wanted["cameras"])
        and (wanted["scale.mode"] not in ("depth", "odometry") or (wanted["known.metric"] and not wanted["cameras"]))
    )
    if not together:
        with pytest.raises(ConfigError):
            Config.from_flat(values)
        return
    config = Config.from_flat(values)
    assert config.to_flat() == wanted
    assert Config.from_flat(config.to_flat()) == config
    assert config.replace() == config


@pytest.mark.parametrize("p", ALL.values(), ids=ALL)
def test_a_wrong_type_is_refused_with_name_value_and_type(p: Parameter) -> None:
    wrong = 3 if p.type in (str, bool) else "3"
    with pytest.raises(ConfigError, match=rf"{p.name} is {wrong!r} .*must be {KINDS[p.type]}"):
        Config.from_flat({p.name: wrong})


@pytest.mark.parametrize("p", [p for p in ALL.values() if p.low is not None], ids=lambda p: p.name)
def test_values_beyond_either_end_are_refused_with_the_range(p: Parameter) -> None:
    for value in (p.type(p.low - 1), p.type(p.high + 1), *([float("nan")] if p.type is float else [])):
        with pytest.raises(ConfigError) as caught:
            Config.from_flat({p.name: value})
        assert f"{p.name} is {value!r}" in str(caught.value)
        assert p.range_text() in str(caught.value)


@pytest.mark.parametrize("p", [p for p in ALL.values() if p.choices], ids=lambda p: p.name)
def test_an_unknown_choice_is_refused_with_the_choices(p: Parameter) -> None:
    with pytest.raises(ConfigError, match=f"must be one of {', '.join(p.choices)}"):
        Config.from_flat({p.name: "no such thing"})


def test_overlap_must_be_smaller_than_the_window() -> None:
    with pytest.raises(ConfigError, match=r"window\.overlap is 6.*window\.size \(6\).*1\.\.5"):
        Config.from_flat({"window.size": 6, "window.overlap": 6})


def test_a_stream_is_longer_than_the_window_it_begins_with() -> None:
    with pytest.raises(ConfigError, match=r"stream\.most is 8, but must be larger than window\.size \(8\)"):
        Config.from_flat({"stream.most": 8})
    assert Config.from_flat({"stream.most": 9}).stream.most == 9


@pytest.mark.parametrize(("size", "shared"), [(2, 1), (3, 1), (4, 2), (8, 4), (64, 32)])
def test_the_overlap_is_half_the_window_unless_it_is_set(size: int, shared: int) -> None:
    assert Config.from_flat({"window.size": size}).window.shared == shared
    assert Config.from_flat({"window.size": size, "window.overlap": size - 1}).window.shared == size - 1


def test_a_map_to_localize_in_is_named() -> None:
    with pytest.raises(ConfigError, match=r"map\.mode is localize, but map\.load is empty: set map\.load"):
        Config.from_flat({"map.mode": "localize"})
    assert Config.from_flat({"map.mode": "localize", "map.load": "x"}).localizes


def test_what_decides_the_frame_of_the_map_cannot_change_while_it_is_in_use() -> None:
    for name in (
        "known.metric",
        "known.depth",
        "known.odometry",
        "scale.mode",
        "scale.height",
        "map_frame",
        "tf.mode",
        "map.load",
        "loop.enabled",
    ):
        assert not ALL[name].dynamic, name


def test_a_voxel_is_chosen_by_itself_or_not_too_small() -> None:
    assert Config().map.voxel == 0.0
    with pytest.raises(ConfigError, match=r"map\.voxel is 0\.0001, but must be 0 \(auto\) or 0\.001 \.\. 10"):
        Config.from_flat({"map.voxel": 1e-4})


def test_tiny_images_are_refused() -> None:
    for side in (1, 111):
        with pytest.raises(ConfigError, match=rf"input\.max_side is {side}, but must be 0 .* or 112 \.\. 1036"):
            Config.from_flat({"input.max_side": side})
    assert Config.from_flat({"input.max_side": 112}).input.max_side == 112


def test_intervals_must_be_in_order() -> None:
    with pytest.raises(ConfigError, match=r"keyframe\.min_interval \(2\.0\) is above keyframe\.max_interval \(1\.0\)"):
        Config.from_flat({"keyframe.min_interval": 2.0})


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'window\.sise'; did you mean 'window\.size'"):
        Config.from_flat({"window.sise": 4})


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_flat({"qqq": 4})
    assert all(name in str(caught.value) for name in ALL)


def test_whole_numbers_pass_for_floats_but_nothing_else_is_guessed() -> None:
    config = Config.from_flat({"max_data_age": 1})
    assert config.max_data_age == 1.0 and isinstance(config.max_data_age, float)
    for name, value in (("window.size", 6.0), ("window.size", True), ("max_data_age", True), ("autostart", 1)):
        with pytest.raises(ConfigError):
            Config.from_flat({name: value})


def test_bare_off_of_yaml_is_a_word_where_it_is_a_choice() -> None:
    assert Config.from_flat({"tf.mode": False}).tf.mode == "off"
    with pytest.raises(ConfigError):
        Config.from_flat({"scale.mode": False})


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().device = "cpu"  # type: ignore[misc]


def test_config_errors_are_ours_and_value_errors() -> None:
    assert issubclass(ConfigError, ComeRosError) and issubclass(ConfigError, ValueError)


@pytest.mark.parametrize("root", ["/**", "come", "/come", "/**/come", "/*"])
def test_a_parameters_file_is_read_nested_or_dotted(tmp_path: Path, root: str) -> None:
    file = tmp_path / "my.yaml"
    body = "{use_sim_time: true, device: cpu, window: {size: 6}, cloud.stride: 2}"
    file.write_text(f"{root}:\n  ros__parameters: {body}\n")
    config = load_config(str(file), Config.from_flat({"threads": 1, "device": "auto"}))
    assert config == Config.from_flat({"threads": 1, "device": "cpu", "window.size": 6, "cloud.stride": 2})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("window: {size: 6}\n", "not a ROS parameters file"),
        ("- 1\n", "not a ROS parameters file"),
        ("/**: {ros__parameters: 3}\n", "holds no parameters"),
        ("/robot/come: {ros__parameters: {device: cpu}}\n", "gives parameters to /robot/come, but nothing to /come"),
        ("/**: {ros__parameters: {device: }}\n", "has no value"),
        ("/**: {ros__parameters: {cameras: [a, 1]}}\n", "several types"),
        ("/**: [", "cannot read the parameters file"),
        ("/**: {ros__parameters: {window: {sice: 6}}}\n", "did you mean 'window.size'"),
        ("/**: {ros__parameters: {window: {size: 600}}}\n", "2 .. 64"),
    ],
)
def test_a_bad_parameters_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(str(file))


def test_a_missing_parameters_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the parameters file .*nowhere\.yaml"):
        load_config(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"/**: \xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="cannot read the parameters file"):
        load_config(str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize("setting", ["", "wide", "1", "5 1", "0 nan", "1 2 3"])
def test_the_range_of_images_must_be_a_range(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"input.range is .* must be auto, full"):
        Config().replace(**{"input.range": setting})


def test_a_group_in_place_of_a_parameter_is_understood() -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter 'accelerator'; did you mean 'accelerator\.name'"):
        with_words(Config(), ["accelerator=come"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "/**:\n  ros__parameters: &a\n    threads: 1\ncome:\n  ros__parameters: *a\n",
            r"line 5: ROS reads no aliases \(\*a\)",
        ),
        pytest.param("[" * 5000, "nested more than 64 deep", marks=pytest.mark.slow),
        ("/**:\n  ros__parameters:\n    ? [a, b]\n    : 2\n", "a name must be a text"),
    ],
    ids=["alias", "deep", "a list as a name"],
)
def test_a_file_that_ros_would_not_read_is_refused_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_config(str(file))


@pytest.mark.parametrize("name", ["transforms.json", "sequence.json"])
def test_json_nested_without_end_is_refused(name: str, tmp_path: Path) -> None:
    from come_ros.datasets.sequence import open_sequence
    from come_ros.errors import DatasetError

    (tmp_path / name).write_text("[" * 200_000)
    (tmp_path / "rgb.txt").write_text("1.0 0.png\n")
    with pytest.raises(DatasetError):
        open_sequence(tmp_path)
