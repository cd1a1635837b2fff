"""Files that belong to one set of weights: one rule says where all of them lie, and each says which weights these are."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from come_ros.accelerators import make_accelerator
from come_ros.accelerators.good_token_hunting import LayerPlan
from come_ros.backbones.checkpoint import bundled_weights, load_model
from come_ros.companions import (
    COMPANIONS,
    FINGERPRINT,
    LAYER_PLAN,
    NETWORKS,
    OF_ENDS,
    PREDICTOR,
    Companion,
    made_for,
    said_by,
)
from come_ros.config import Config
from come_ros.errors import CheckpointError
from come_ros.files import write_safetensors
from come_ros.plugins import ACCELERATORS
from come_ros.training.loop import load_state_of, save_state
from come_ros.weights import PART, fingerprint_of_tensors, read_checkpoint

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


def other(weights: str, path: str) -> str:
    """Weights of the same sizes, in which one tensor differs, that is neither at the beginning nor at the end of the file."""
    tensors, metadata = read_checkpoint(weights)
    names = sorted(tensors)
    tensors[names[len(names) // 2]] += 1
    write_safetensors(path, tensors, metadata)
    return path


def say(kind: Companion, path: str, about: dict[str, str]) -> None:
    """Makes that the file says this, and nothing else of its weights."""
    if kind is LAYER_PLAN:
        content = {k: v for k, v in said_by(path).items() if k not in (FINGERPRINT, OF_ENDS)}
        Path(path).write_text(json.dumps({**content, "local": 1, "grid": 3, **about}))  # no other plan has these
    else:
        tensors, metadata = read_checkpoint(path)
        write_safetensors(path, tensors, {**{k: v for k, v in metadata.items() if k != FINGERPRINT}, **about})


@pytest.mark.parametrize("name", sorted(OF))
def test_what_was_made_for_other_weights_of_the_same_sizes_is_said_once(
    name: str, weights: str, shape, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = OF[name]
    theirs = made_for(other(weights, str(tmp_path / "before.safetensors")))
    say(kind, kind.next_to(weights), theirs)
    for _ in range(2):
        made = make_accelerator(config(name), shape, weights)
    (record,) = caplog.records
    told = record.getMessage()
    assert record.levelno == logging.WARNING and kind.next_to(weights) in told
    assert f"before.safetensors (fingerprint {theirs[FINGERPRINT]})" in told
    assert f"{weights} (fingerprint {made_for(weights)[FINGERPRINT]})" in told
    assert kind.made(weights) in told and kind.parameter in told
    if name == "good_token_hunting":  # a plan that is named is used, as the files of the others are
        assert made.layers == LayerPlan.published(4) and "until then the published layer plan is used" in told
        assert make_accelerator(config(name, layer_plan=kind.next_to(weights)), shape, weights).layers.grid == 3
        assert "until then it is used as it is" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("name", sorted(OF))
def test_what_was_made_for_the_weights_or_says_nothing_is_used_silently(
    name: str, weights: str, shape, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = OF[name]
    tensors, _ = read_checkpoint(weights)
    renamed, of_others = str(tmp_path / "renamed.safetensors"), other(weights, str(tmp_path / "o.safetensors"))
    write_safetensors(renamed, tensors, {"licence": "another"})  # the same weights
    for about, of in (
        ({}, weights),
        (made_for(renamed), weights),
        ({}, of_others),
        (made_for(of_others), "random tiny2"),
    ):
        path = kind.next_to(weights)
        say(kind, path, about)
        made = make_accelerator(config(name, **{kind.parameter.partition(".")[2]: path}), shape, of)
        assert not caplog.records and (name != "good_token_hunting" or made.layers.grid == 3)


def test_what_ships_fits_the_weights_that_ship(weights: str, tmp_path: Path) -> None:
    for kind in COMPANIONS:
        path = kind.next_to(bundled_weights())
        assert kind.misfit(path, said_by(path), bundled_weights()) == ""
    path = LAYER_PLAN.next_to(bundled_weights())  # of an earlier version, which looked at the ends of the file
    with open(other(weights, str(tmp_path / "o.safetensors")), "ab") as stream:
        stream.write(b"x")
    assert "was made for other weights" in LAYER_PLAN.misfit(path, said_by(path), str(tmp_path / "o.safetensors"))


def test_weights_are_told_apart_by_their_tensors_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        "a": torch.rand(3, PART // 4),
        "b": torch.rand(2, 3).bfloat16(),
        "c": torch.tensor(1),
        "d": torch.zeros(0, 2),
    }
    count = iter(range(99))

    def of(content: dict, ending: str = ".safetensors", metadata: dict[str, str] | None = None) -> str:
        path = str(tmp_path / f"{next(count)}{ending}")
        if ending == ".safetensors":
            write_safetensors(path, content, metadata or {})
        else:
            torch.save(content, path)
        return fingerprint_of_tensors(path)

    ours = of(tensors)
    same = [of(tensors, metadata={"x": str(i), "y": "z"}) for i in range(3)]
    same += [of(tensors, ".pt"), of({"model": dict(reversed(tensors.items()))}, ".pth")]
    legacy = str(tmp_path / "legacy.pt")
    torch.save(tensors, legacy, _use_new_zipfile_serialization=False)
    assert {*same, fingerprint_of_tensors(legacy)} == {ours} and len(ours) == 16
    changed = [{**tensors, "a": tensors["a"].clone().index_fill_(1, torch.tensor([5]), 9.0)}]
    changed += [
        {**tensors, "b": tensors["b"].view(3, 2)},
        {**tensors, "b": tensors["b"].half()},
        {**tensors, "c": torch.tensor(2)},
    ]
    changed += [{"e" if k == "d" else k: v for k, v in tensors.items()}, {k: v for k, v in tensors.items() if k != "d"}]
    assert len({ours, *map(of, changed)}) == 1 + len(changed)
    path = str(tmp_path / "0.safetensors")  # the file changes under its name
    write_safetensors(path, changed[-1], {})
    assert fingerprint_of_tensors(path) == of(changed[-1])
    with pytest.raises(CheckpointError, match=r"none\.pt does not exist"):
        fingerprint_of_tensors(str(tmp_path / "none.pt"))


def test_a_run_is_not_resumed_with_other_weights_of_the_same_name(tmp_path: Path) -> None:
    path, now = str(tmp_path / "state.pt"), {"weights": "w.safetensors", FINGERPRINT: "1" * 16, "dim": 8}
    save_state(path, {"settings": {**now, FINGERPRINT: "2" * 16}})
    with pytest.raises(
        CheckpointError, match=rf"other weights of the name w.safetensors \(fingerprint {'2' * 16}, not {'1' * 16}\)"
    ):
        load_state_of(path, now)
    for before in (now, {"weights": "w.safetensors", "dim": 8}):  # the latter: of an earlier version
        save_state(path, {"settings": before})
        assert load_state_of(path, now)["settings"] == before
    with pytest.raises(CheckpointError, match="--dim 8, not 9: give the same"):
        load_state_of(path, {**now, "dim": 9})
