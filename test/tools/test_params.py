"""`come_ros params`: what it lists is what is declared, what it writes is read back, and its schema agrees with the node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from come_ros.config import Config, parameters
from come_ros.config_text import load_config
from come_ros.errors import ConfigError
from come_ros.parameter_text import commented_yaml, differences, schema, yaml_scalar
from come_ros.tools import cli

CONFIG = Path(__file__).resolve().parents[2] / "config"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["params", *words]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["params", *words]) == 1
    return capsys.readouterr().err


def test_all_are_listed_and_groups_alone(capsys: Any) -> None:
    names = [p.name for p in parameters()]
    assert [line.split()[0] for line in said(capsys).splitlines()] == names
    assert said(capsys, "list") == said(capsys)
    some = [line.split()[0] for line in said(capsys, "list", "window", "tf.mode").splitlines()]
    assert some == [n for n in names if n.startswith("window.") or n == "tf.mode"]
    assert "did you mean 'window'" in refused(capsys, "list", "windwo")


def test_lines_fit_a_terminal(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = said(capsys, "list", "loop", "window").splitlines()
    assert max(map(len, lines)) <= 120 and any(line.endswith("...") for line in lines)


def test_words_are_searched_in_names_and_meanings(capsys: Any) -> None:
    found = [line.split()[0] for line in said(capsys, "search", "drift").splitlines()]
    assert "loop.enabled" in found
    assert found == [p.name for p in parameters() if "drift" in f"{p.name} {p.doc}".lower()]
    both = said(capsys, "search", "VOXEL", "edge").splitlines()
    assert [line.split()[0] for line in both] == ["map.voxel"]
    assert "another word" in refused(capsys, "search", "xyzzy") and "needs a word" in refused(capsys, "search")


def test_one_is_explained_with_its_value(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("/**:\n  ros__parameters:\n    window: {size: 5}\n")
    text = said(
        capsys, "explain", "window.size", "base_frame", "accelerator.group", "--params", str(tmp_path / "my.yaml")
    )
    size, base, group = text.split("\n\n")
    assert "default    8" in size and "value      5" in size and "2 .. 64" in size and "ros2 param set" in size
    assert "at start only" in base and "value " not in base
    assert "only with  accelerator.name: come or random" in group
    assert "did you mean" in refused(capsys, "explain", "window.siez") and "needs the name" in refused(
        capsys, "explain"
    )
    (fact,) = json.loads(said(capsys, "explain", "window.size", "--json", "--set", "window.size=7"))
    assert (fact["value"], fact["default"], fact["low"], fact["high"], fact["live"]) == (7, 8, 2, 64, True)
    assert len(json.loads(said(capsys, "--json"))) == len(list(parameters()))


def test_a_file_of_differences_is_what_the_node_reads(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    sets = {"window.size": "6", "tf.mode": "off", "cov.position_floor": "1e-9", "base_frame": "on", "weights": "a: #b"}
    words = [w for name, value in sets.items() for w in ("--set", f"{name}={value}")]
    assert "5 parameters" in said(capsys, "write", str(file), *words)
    config = load_config(str(file))
    wanted = {"window.size": 6, "tf.mode": "off", "cov.position_floor": 1e-9, "base_frame": "on", "weights": "a: #b"}
    assert {p.name: value for p, value in differences(config)} == wanted
    assert "# number of keyframes reconstructed together [2 .. 64] (live)" in file.read_text()
    assert said(capsys, "write", "--params", str(file)) == file.read_text()
    before = file.read_bytes()
    assert (
        "--overwrite" in refused(capsys, "write", str(file), "--set", "window.size=7") and file.read_bytes() == before
    )
    assert "1 parameter in" in said(capsys, "write", str(file), "--set", "window.size=7", "--overwrite")
    assert load_config(str(file)).window.size == 7
    assert "nothing to write" in refused(capsys, "write", str(tmp_path / "other.yaml"))
    assert "makes one file" in refused(capsys, "write", "a", "b", *words)
    assert not (tmp_path / "other.yaml").exists()


def test_nested_groups_are_written_as_ros_reads_them(tmp_path: Path) -> None:
    import dataclasses

    size = next(p for p in parameters() if p.name == "window.size")
    rows = [(dataclasses.replace(size, name=n), i) for i, n in enumerate(("a.b.c", "a.b.d", "a.e.f", "z", "a.b.g.h"))]
    (tmp_path / "f.yaml").write_text(commented_yaml("# head\n", rows))
    from come_ros.parameter_file import read_parameters

    assert read_parameters(tmp_path / "f.yaml") == {"z": 3, "a.b.c": 0, "a.b.d": 1, "a.e.f": 2, "a.b.g.h": 4}


@pytest.mark.parametrize(
    "value", ["", "off", "1e-3", "a: b", "x # y", "'", '"', "010", "null", True, 3, 2.5, "a\nb", "~/x"]
)
def test_scalars_come_back(value: Any, tmp_path: Path) -> None:
    from come_ros.parameter_file import read_parameters

    (tmp_path / "f.yaml").write_text(f"/**:\n  ros__parameters:\n    a: {yaml_scalar(value)}\n")
    assert read_parameters(tmp_path / "f.yaml") == {"a": value}


@pytest.fixture(scope="module")
def valid() -> Any:
    """Whether the schema, by a validator that is not ours, accepts a text as an editor reads it: YAML 1.2."""
    fastjsonschema = pytest.importorskip("fastjsonschema", reason="not installed: pip install '.[test]'")
    yaml = pytest.importorskip("ruamel.yaml", reason="not installed: pip install '.[tools]'").YAML(
        typ="safe", pure=True
    )
    validate = fastjsonschema.compile(schema())

    def check(text: str) -> bool:
        try:
            validate(yaml.load(text))
        except fastjsonschema.JsonSchemaValueException:
            return False
        return True

    return check


@pytest.mark.parametrize("file", ["come.yaml", "jetson.yaml", "accurate.yaml"])
def test_the_schema_accepts_our_files_which_name_it(file: str, valid: Any) -> None:
    text = (CONFIG / file).read_text()
    assert valid(text) and "# yaml-language-server: $schema=come.schema.json\n" in text


@pytest.mark.parametrize(
    "lines",
    [
        "window: {size: 6}",
        "window.size: 6",
        "use_sim_time: true",
        'tf: {mode: "off"}',
        "tf: {mode: false}",
        "cameras: [left, right]",
        "accelerator: {name: come+good_token_hunting}",
        "accelerator: {name: my_package.mine:Mine, own: {rate: 3}}",
        "backbone: my_package.mine:Mine",
        "cloud: {max_range: 5}",
    ],
)
def test_the_schema_accepts_what_the_node_accepts(lines: str, valid: Any) -> None:
    assert valid(f"/**:\n  ros__parameters:\n    {lines}\n") and valid(
        f"/ns:\n  come:\n    ros__parameters:\n      {lines}\n"
    )


@pytest.mark.parametrize(
    "lines",
    [
        "window: {size: 1}",
        "window: {siez: 6}",
        "windwo: {size: 6}",
        "window.size: large",
        "threads: 1.5",
        "backbone: vgtt",
        "keyframe: {mode: sometimes}",
        "known: {depth: 1}",
        "cloud: {max_range: far}",
    ],
)
def test_the_schema_refuses_what_the_node_refuses(lines: str, valid: Any, tmp_path: Path) -> None:
    text = f"/**:\n  ros__parameters:\n    {lines}\n"
    assert not valid(text)
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(str(tmp_path / "f.yaml"), Config())


def test_the_schema_that_is_printed_is_the_one_that_is_shipped(capsys: Any) -> None:
    assert json.loads(said(capsys, "schema")) == json.loads((CONFIG / "come.schema.json").read_text())
    assert "takes no words" in refused(capsys, "schema", "x")
