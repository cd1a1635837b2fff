"""Accelerators, backbones and readers of other packages: found by entry point or as module:Class, with parameters of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from come_ros.config import Config, load_config, parameters, with_accelerator, with_words
from come_ros.errors import ConfigError
from come_ros.plugins import ACCELERATORS, BACKBONES, READERS

MODULE = """
from dataclasses import dataclass

from come_ros.accelerators import Accelerator
from come_ros.config import parameter


class Every(Accelerator):
    name = "every"

    @dataclass(frozen=True)
    class Parameters:
        step: int = parameter(2, "patches between those that are read", low=1, high=8, dynamic=True)
        file: str = parameter("", "a file of its own")
        strict: bool = parameter(False, "whether to be strict")

    @classmethod
    def create(cls, config, model, weights):
        made = cls()
        made.step = config.accelerator.params.step
        return made


class Plain(Accelerator):
    name = "plain"


class NotOne:
    pass


class Loose(Accelerator):
    @dataclass
    class Parameters:
        step: int = parameter(2, "patches")


class Undeclared(Accelerator):
    @dataclass(frozen=True)
    class Parameters:
        step: int = 2
"""


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module plugin_of_somebody with those classes, some broken ones, and a distribution with entry points."""
    pytest.importorskip("torch")
    (tmp_path / "plugin_of_somebody.py").write_text(MODULE)
    (tmp_path / "plugin_that_fails.py").write_text("raise RuntimeError('no licence\\nfor this')\n")
    (tmp_path / "plugin_that_needs.py").write_text("import a_package_that_nobody_has\n")
    folder = tmp_path / "somebody-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[come_ros.accelerators]\nevery = plugin_of_somebody:Every\nbroken = plugin_that_fails:X\ncome = plugin_of_somebody:Plain\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ACCELERATORS.__dict__.pop("others", None)
    yield
    ACCELERATORS.__dict__.pop("others", None)
    for name in [n for n in sys.modules if n.startswith("plugin_")]:
        del sys.modules[name]


def test_built_in_names_lead_to_classes_of_that_name() -> None:
    for registry in (ACCELERATORS, BACKBONES, READERS):
        for name in registry.own:
            assert registry.load(name).name == name
            assert registry.parameters_of(name) is None


def test_an_entry_point_is_chosen_by_its_name() -> None:
    config = with_words(Config(), ["accelerator.name=every", "accelerator.ratio=0.25"])
    assert ACCELERATORS.load(config.accelerator.name).__name__ == "Every"
    assert config.accelerator.params.step == 2
    assert "every" in ACCELERATORS.allowed()


def test_a_built_in_name_cannot_be_taken_over(caplog: pytest.LogCaptureFixture) -> None:
    assert ACCELERATORS.load("come").__name__ == "CoMe" and "come" not in ACCELERATORS.others
    assert "the accelerator come of plugin_of_somebody:Plain is left out" in caplog.text


def test_own_parameters_are_like_all_others(tmp_path: Path) -> None:
    config = with_words(
        Config(),
        ["accelerator.name=plugin_of_somebody:Every", "accelerator.params.step=3", "accelerator.params.file=1.5"],
    )
    assert (config.accelerator.params.step, config.accelerator.params.file) == (3, "1.5")
    assert config.get("accelerator.params.step") == config.to_flat()["accelerator.params.step"] == 3
    assert config == with_accelerator(Config(), "plugin_of_somebody:Every:step=3,file=1.5")
    assert config == Config.from_flat(config.to_flat())
    assert config.replace(**{"window.size": 6}).accelerator == config.accelerator
    file = tmp_path / "my.yaml"
    file.write_text("/**:\n  ros__parameters:\n    accelerator: {name: every, params: {step: 3, strict: true}}\n")
    assert load_config(str(file)).accelerator.params.strict is True
    names = [p.name for p in config.parameters()]
    assert names[: len(list(parameters()))] == [p.name for p in parameters()]
    own = {p.name: p for p in config.parameters() if p.name.startswith("accelerator.params.")}
    assert [*own] == ["accelerator.params.step", "accelerator.params.file", "accelerator.params.strict"]
    assert own["accelerator.params.step"].dynamic and not own["accelerator.params.file"].dynamic


def test_they_go_with_their_plug_in() -> None:
    config = with_accelerator(Config(), "every:step=3")
    other = config.replace(**{"accelerator.name": "come"})
    assert other.accelerator.params is None and not any("params" in name for name in other.to_flat())
    assert with_accelerator(config, "plugin_of_somebody:Plain").accelerator.params is None
    assert with_accelerator(config, "every:ratio=0.25").accelerator.params.step == 3  # the same one keeps them


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["accelerator.name=every", "accelerator.params.step=9"], "accelerator.params.step is 9, but must lie in 1 .. 8"),
        (["accelerator.name=every", "accelerator.params.step=two"], "accelerator.params.step is 'two' (str), but must be"),
        (["accelerator.name=every", "accelerator.params.stp=3"], "did you mean 'accelerator.params.step'?"),
        (["accelerator.params.step=3"], "accelerator.name is none, which has no parameters of its own"),
        (["accelerator.name=evry"], "must be one of none, come, tome, good_token_hunting, pace, fast, temporal, random, every, broken"),
        (["accelerator.name=plugin_of_somebody:Evry"], "has no class 'Evry'"),
        (["accelerator.name=plugin_of_nobody:Every"], "there is no module 'plugin_of_nobody': install it into this Python"),
        (["accelerator.name=plugin_that_needs:X"], "there is no module 'a_package_that_nobody_has': install that"),
        (["accelerator.name=broken"], "the accelerator broken (plugin_that_fails:X): RuntimeError: no licence for this"),
        (["accelerator.name=plugin_of_somebody:NotOne"], "class NotOne must inherit from come_ros.accelerators.Accelerator"),
        (["accelerator.name=plugin_of_somebody:Loose"], "frozen=True"),
        (["accelerator.name=plugin_of_somebody:Undeclared"], "declare step of its Parameters with come_ros.config.parameter"),
        (["backbone=plugin_of_somebody:Every"], "must inherit from"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_wrong_is_one_clear_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        with_words(Config(), words)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_command_ends_with_that_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from come_ros.tools import cli

    assert cli.main(["bag", str(tmp_path), "-o", str(tmp_path / "out"), "--set", "accelerator.name=broken"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("come_ros bag: cannot import the accelerator broken")
