"""Files that belong to one set of weights: one rule says where all of them lie."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from come_ros.accelerators import make_accelerator
from come_ros.backbones.checkpoint import bundled_weights, load_model
from come_ros.companions import COMPANIONS, LAYER_PLAN, NETWORKS, PREDICTOR
from come_ros.config import Config
from come_ros.errors import CheckpointError
from come_ros.plugins import ACCELERATORS

OF = {"come": PREDICTOR, "pace": NETWORKS, "good_token_hunting": LAYER_PLAN}
"""accelerator -> its file"""


@pytest.fixture(scope="module")
def shape():
    return load_model("", bundled_weights()).shape


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """The bundled weights and all that belongs to them, elsewhere and under another name."""
    path = str(tmp_path / "my.own.safetensors")
    shutil.copyfile(bundled_weights(), path)
    for kind in COMPANIONS:
        shutil.copyfile(kind.next_to(bundled_weights()), kind.next_to(path))
    return path


def config(name: str, **more: str) -> Config:
    return Config().replace(**{"accelerator.name": name, **{f"accelerator.{key}": word for key, word in more.items()}})


def test_all_kinds_lie_next_to_the_weights_by_one_rule() -> None:
    assert set(OF.values()) == set(COMPANIONS)
    names = {kind: kind.next_to("/a/b.c/{x}.v2.pt") for kind in COMPANIONS}
    assert names == {
        PREDICTOR: "/a/b.c/come_{x}.v2.safetensors",
        NETWORKS: "/a/b.c/pace_{x}.v2.safetensors",
        LAYER_PLAN: "/a/b.c/{x}.v2.attention.json",
    }
    for kind in COMPANIONS:
        assert Path(kind.next_to(bundled_weights())).is_file(), "all of them ship"
        assert kind.parameter.partition(".")[2] in Config().accelerator.__dataclass_fields__


@pytest.mark.parametrize("name", sorted(OF))
def test_what_lies_next_to_the_weights_is_used_whatever_they_are_called(name: str, weights: str, shape) -> None:
    assert OF[name].of(weights) == OF[name].next_to(weights)
    plan = Path(LAYER_PLAN.next_to(weights))
    content = json.loads(plan.read_text())
    plan.write_text(json.dumps({**content, "grid": 1}))  # no other plan has it
    made = make_accelerator(config(name), shape, weights)
    assert made.name == name and ACCELERATORS.load(name) is type(made)
    if name == "good_token_hunting":
        assert made.layers.grid == 1


@pytest.mark.parametrize("name", ["come", "pace"])
def test_a_missing_one_is_an_error_that_says_how_it_is_made(name: str, weights: str, shape, tmp_path: Path) -> None:
    kind = OF[name]
    Path(kind.next_to(weights)).unlink()
    elsewhere = str(tmp_path / "elsewhere.safetensors")
    command = f"`come_ros {kind.command} --weights {weights}`"
    for given, path in (({}, kind.next_to(weights)), ({kind.parameter.partition(".")[2]: elsewhere}, elsewhere)):
        with pytest.raises(CheckpointError, match=f"{re.escape(path)}.*{re.escape(command)}.*{kind.parameter}"):
            make_accelerator(config(name, **given), shape, weights)
    shutil.copyfile(kind.next_to(bundled_weights()), elsewhere)
    make_accelerator(config(name, **given), shape, weights)


def test_a_command_that_makes_each_of_them_is_there() -> None:
    from come_ros.tools.cli import COMMANDS

    assert {kind.command.split()[0] for kind in COMPANIONS} <= set(COMMANDS)
