"""The last lines of the training commands: a verdict that a bad result cannot escape, and a command that exists."""

from __future__ import annotations

import argparse
import importlib
import re

import pytest

from come_ros.tools.report.next_steps import (
    of_layer_plan,
    of_long_run,
    of_model,
    of_networks,
    of_predictor,
    of_results,
)

ROOM_SCORES = {
    "delta": 0.6, "constant delta": 0.4, "mean map delta": 0.5, "rotation_deg": 2.0, "identity rotation_deg": 6.0,
}  # fmt: skip


def test_a_predictor_is_compared_with_the_one_that_ships():
    worse, better = of_predictor("p", 300, 0.2, 0.5)[0], of_predictor("p", 300, 0.6, 0.5)[0]
    assert "has 0.500 on the same windows, so this one is worse: train longer" in worse and "--steps above 300" in worse
    assert better.endswith("so this one is better")
    assert "no better" in of_predictor("p", 300, 0.501, 0.5)[0], "within noise"
    assert "hardly better than chance" in of_predictor("p", 300, 0.02, None)[0]
    assert "train longer" not in of_predictor("p", 300, 0.4, None)[0]
    assert "no better" in of_predictor("p", 300, float("nan"), 0.5)[0]


def test_the_next_command_is_for_the_weights_that_the_file_was_made_for():
    scores = {"refined, restored": 1.0, "refined, at random": 2.0}
    for weights, option in (("", ""), ("out/w.safetensors", " --weights out/w.safetensors")):
        for said in (
            of_predictor("p", 9, 0.5, None, weights),
            of_networks("p", scores, weights),
            of_layer_plan("p", weights),
        ):
            assert said[-1].startswith(f"next: come_ros eval{option} --accelerator ")


def test_a_model_that_has_learned_nothing_is_told_so():
    assert "Nothing has been learned" not in of_model(ROOM_SCORES, "out")[0]
    assert "rotation (2.00 deg, no rotation 6.00 deg): better" in of_model(ROOM_SCORES, "out")[0]
    line = of_model({**ROOM_SCORES, "delta": 0.501, "rotation_deg": 6.0}, "out")[0]
    assert line.count("no better") == 2 and "Nothing has been learned yet: train longer, with -o out --resume" in line
    assert "delta 0.600, best trivial baseline 0.500" in of_model(ROOM_SCORES, "out")[0], "the best of both counts"


def test_a_model_is_compared_with_the_weights_before():
    def line(**before: float) -> str:
        return of_model(ROOM_SCORES, "out", ("w.safetensors", {"delta": 0.6, "rotation_deg": 2.0} | before))[1]

    assert line(delta=0.5).startswith(
        "against w.safetensors, on the same rooms: depth (delta 0.600, before 0.500): better"
    )
    assert line(delta=0.5).endswith("The new one is better")
    assert line(delta=0.7).endswith("Keep the one before") and "before 0.700): worse" in line(delta=0.7)
    assert "Better in some, worse in some" in line(delta=0.7, rotation_deg=4.0)
    assert line(delta=0.601).endswith("No difference that counts")
    assert len(of_model(ROOM_SCORES, "out")) == 2, "there were none"


LONG, TRIVIAL = (
    {"rooms": {"delta": 0.8, "rotation_deg": 3.0, "direction_deg": 30.0}, "cabinet": {"delta": 0.7, "rotation_deg": 6.0}},
    {
        "rooms": {"constant delta": 0.5, "mean map delta": 0.6, "no rotation_deg": 13.0, "line x deg": 90.0, "line z deg": 80.0},
        "cabinet": {"constant delta": 0.6, "mean map delta": 0.5, "no rotation_deg": 13.0},
    },
)  # fmt: skip


def long_run(scores=LONG, **changed):
    before = {source: {name: value * changed.get(name, 1.0) for name, value in s.items()} for source, s in LONG.items()}
    return of_long_run(scores, TRIVIAL, ("the bundled model", before), 500, "tiny2", "out")


def test_a_long_run_is_compared_source_by_source():
    first, rooms, cabinet, overall, following = long_run(delta=0.5, direction_deg=2.0)
    assert first == "best checkpoint: step 500, which --export writes"
    assert rooms.startswith("rooms: depth 0.800, before 0.400: better (best trivial baseline 0.600: better); rotation")
    assert "direction of motion 30 deg, before 60: better (best trivial baseline 80: better)" in rooms
    assert cabinet.count(";") == 1, "no direction is known there"
    assert overall == "against the bundled model, on the same windows: The new one is better"
    assert following.startswith("next: come_ros train --variant tiny2 -o out --export out/model.safetensors")
    assert long_run(delta=2.0)[3].endswith("Keep the one before")
    assert "Better in some, worse in some" in long_run(delta=2.0, rotation_deg=2.0)[3]
    assert long_run()[3].endswith("No difference that counts")


def test_a_long_run_that_has_learned_nothing_is_told_so():
    nothing = {source: {"delta": 0.6, "rotation_deg": 13.0} for source in LONG}
    assert any("Nothing has been learned yet" in line for line in long_run(nothing))
    assert not any("Nothing has been learned yet" in line for line in long_run())


def test_a_layer_plan_is_compared_with_the_one_before():
    def lines(depth: float, read: float) -> list[str]:
        return of_layer_plan("p", "", [{"depth": depth, "read": read}, {"depth": 0.02, "read": 0.4}])

    assert (
        "depth changes by 0.0100 (before 0.0200): better; 40% of the keys are read (before 40%): no better"
        in lines(0.01, 0.4)[0]
    )
    assert lines(0.01, 0.4)[0].endswith("The new one is better") and lines(0.03, 0.4)[0].endswith("Keep the one before")
    assert "Better in some, worse in some" in lines(0.01, 0.5)[0]
    assert of_layer_plan("p", "", [])[0] == "the plan that held before is the same: nothing changes"
    assert len(of_layer_plan("p", "", None)) == 1, "it was not compared"


def test_learned_choices_are_compared_with_random_ones():
    assert "is better than a random one" in of_networks("p", {"refined, restored": 0.05, "refined, at random": 0.07})[0]
    alike = of_networks("p", {"refined, restored": 0.07, "refined, at random": 0.07})[0]
    assert "is not distinguishable from a random one; train longer" in alike


@pytest.mark.parametrize(
    "lines",
    [of_predictor("p", 1, 0.5, None), of_model(ROOM_SCORES, "out"), of_networks("p", {"refined, restored": 1, "refined, at random": 2}),
     of_results("out"), of_layer_plan("plan.json", "w.safetensors"), of_layer_plan("plan.json", "", []),
     of_model(ROOM_SCORES, "out", ("w", ROOM_SCORES)), long_run()],
)  # fmt: skip
def test_the_next_commands_parse(lines: list[str]) -> None:
    commands = re.findall(r"come_ros (\S+) ([^&]+)", lines[-1])
    assert lines[-1].startswith("next: ") and commands
    for name, words in commands:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"come_ros.tools.{name.replace('-', '_')}").add_arguments(parser)
        parser.parse_args(words.split())
