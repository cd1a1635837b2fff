"""What /diagnostics says of given conditions, and that every warning carries a fix."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from come_ros.config import Config
from come_ros.outputs.world import Whereabouts
from come_ros.ros import node, reader
from come_ros.ros.diagnostics.counters import DROP_FIXES, DROP_REASONS, FrameCounters, Lately, drops_text
from come_ros.ros.diagnostics.keys import STATUSES
from come_ros.ros.diagnostics.statuses import NodeView, statuses
from come_ros.ros.diagnostics.telemetry import Telemetry, Throttle
from come_ros.scale.decide import by_map
from come_ros.scale.metric import given
from come_ros.types import NO_SCALE
from come_ros.verdict.judge import Facts

METRES = Config().replace(**{"scale.mode": "fixed"})
VIEW = NodeView("active", "/image", 1, "best_effort volatile 5", "system", "forward", scale=given(METRES, False))
BY_MAP = by_map(NO_SCALE, 2.0, 0.03)


@pytest.mark.parametrize(
    ("located", "metres", "unit"),
    [(False, float("nan"), "the model's own"), (False, 1.0, "metre"), (True, float("nan"), "metre")],
)
def test_the_map_has_the_unit_of_the_saved_one_until_the_session_is_found_in_it(located, metres, unit) -> None:
    place = Whereabouts("map", 9, located, 3, 4, "", 0.1, 1.0, metres)
    found = statuses(replace(VIEW, whereabouts=place), METRES, Telemetry(), FrameCounters().snapshot())[2]
    assert {v.key: v.value for v in found.values}["map_unit"] == unit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def made(clock: Clock) -> Telemetry:
    telemetry = Telemetry(clock)
    telemetry.active_since, telemetry.camera_info = clock.now, "ok"
    return telemetry


def test_all_is_well():
    clock = Clock()
    telemetry = made(clock)
    telemetry.arrived()
    for status in statuses(VIEW, METRES, telemetry, FrameCounters().snapshot()):
        assert (status.level, status.message) == (DiagnosticStatus.OK, "ok"), status.name
    keys = {v.key for v in statuses(VIEW, METRES, telemetry, FrameCounters().snapshot())[0].values}
    assert {f"dropped_{reason}" for reason in DROP_REASONS} | {"received", "used", "pending"} <= keys


def test_every_key_has_its_meaning_and_every_meaning_its_key():
    from come_ros.backbones import load_backbone

    telemetry = made(Clock())
    # what is told only where it is used: each of these reaches telemetry.known through the node
    known = set(re.findall(r'(?:tell_known\(|known\[)"(\w+)"', inspect.getsource(node) + inspect.getsource(reader)))
    assert {"depth", "odometry", "base_frame", "extrinsics", "sync"} <= known
    telemetry.known = dict.fromkeys(known, "ok")
    view = replace(VIEW, backbone=load_backbone(Config()).description)
    for status in statuses(view, Config(), telemetry, FrameCounters().snapshot()):
        keys, meanings = [value.key for value in status.values], STATUSES[status.name.removeprefix("come: ")]
        assert len(set(keys)) == len(keys) and not set(keys) ^ set(meanings), status.name
        assert all(meanings.values())


@pytest.mark.parametrize(
    ("name", "level", "fix", "change"),
    [
        ("input", 1, "start the camera", {"publishers": 0, "_silent": 3}),
        ("input", 1, "remap `image`", {"publishers": 0, "elsewhere": "images are on /a: remap `image`", "_silent": 60}),
        ("output", 1, "__node:=", {"twin": "another node is called /come too: -r __node:=NAME"}),
        ("input", 2, "input.reliability", {"_silent": 6}),
        ("input", 2, "publish one of", {"_decode": "encoding 'x' cannot be read: publish one of y"}),
        ("input", 1, "set input.reliability", {"qos_conflict": "does not fit: set input.reliability to best_effort"}),
        ("input", 1, "--clock", {"clock": "sim without /clock"}),
        ("input", 1, "remap `camera_info`", {"_camera_info": "no camera_info received: remap `camera_info`"}),
        ("inference", 2, "restart the node", {"worker_alive": False}),
        ("inference", 2, "weights", {"fault": "cannot configure: weights"}),
        ("inference", 2, "log of the node", {"_inference": "RuntimeError: out of memory"}),
        ("output", 2, "set tf.mode", {"tf_conflict": "TF conflict: set tf.mode to auto"}),
        ("output", 1, "max_data_age", {"_old": "a result took 3 s"}),
        ("output", 1, "slower", {"_rejected": "residual 0.5"}),
        ("output", 0, "that of the loaded map: visual_odom keeps", {"scale": BY_MAP, "_config": Config()}),
        (
            "output",
            0,
            "scale.fixed",
            {"scale": NO_SCALE, "_config": Config()},
        ),  # as it is with one camera: never yellow for that alone
    ],
)
def test_a_fault_has_its_level_and_its_fix(name, level, fix, change):
    clock, counters = Clock(), FrameCounters()
    telemetry = made(clock)
    counters.receive()
    telemetry.arrived()
    clock.now += change.pop("_silent", 0)
    config = change.pop("_config", METRES)
    telemetry.camera_info = change.pop("_camera_info", "ok")
    for kind in [k for k in change if k.startswith("_")]:
        telemetry.trouble(kind[1:], change.pop(kind))
    found = {s.name: s for s in statuses(replace(VIEW, **change), config, telemetry, counters.snapshot())}
    status = found[f"come: {name}"]
    assert status.level[0] == level and fix in status.message
    assert all(s.level == DiagnosticStatus.OK for s in found.values() if s is not status)


@pytest.mark.parametrize(
    ("facts", "verdict", "level"),
    [
        (Facts(keyframes=2), "none", 0),
        (Facts(keyframes=9, agreement=0.9, extent=0.5), "usable", 0),
        (Facts(keyframes=9, agreement=0.9, extent=0.01), "doubtful", 0),
        (Facts(keyframes=9, agreement=0.1, extent=0.5), "unusable", 1),
    ],
)
def test_the_verdict_is_a_warning_only_where_the_result_is_unusable(
    facts, verdict, level, monkeypatch: pytest.MonkeyPatch
):
    telemetry = made(Clock())
    telemetry.arrived()
    monkeypatch.setattr(telemetry.evidence, "facts", lambda: facts)
    status = statuses(VIEW, METRES, telemetry, FrameCounters().snapshot())[2]
    values = {v.key: v.value for v in status.values}
    assert values["verdict"] == verdict and status.level[0] == level
    assert ("verdict: " in status.message) == (verdict in ("doubtful", "unusable"))
    assert (values["verdict_advice"] != "none") == (verdict in ("doubtful", "unusable"))


def test_a_camera_that_was_never_activated_is_no_fault():
    clock = Clock()
    telemetry = Telemetry(clock)
    clock.now += 60
    status = statuses(replace(VIEW, state="inactive"), METRES, telemetry, FrameCounters().snapshot())[0]
    assert status.level == DiagnosticStatus.OK


def test_troubles_fade_and_rates_follow():
    clock = Clock()
    telemetry = made(clock)
    telemetry.trouble("decode", "bad")
    for _ in range(50):
        clock.now += 0.1
        telemetry.arrived()
        telemetry.published(0.25)
    rates = telemetry.rates()
    assert rates.fps_in == pytest.approx(10, rel=0.05) and rates.fps_out == pytest.approx(10, rel=0.05)
    assert rates.latency_ms_mean == pytest.approx(250) and telemetry.silence_s() == 0
    clock.now += 20
    assert telemetry.recent("decode") == "" and telemetry.silence_s() == pytest.approx(20)
    assert np.isnan(telemetry.rates().latency_ms_p95)


def test_each_kind_of_log_line_comes_once_in_five_seconds():
    clock = Clock()
    may_log = Throttle(5.0, clock)
    assert [may_log("a"), may_log("b"), may_log("a")] == [True, True, False]
    clock.now += 5
    assert may_log("a")


def lately(received: int, used: int = 0, over_s: float = 6.0, **dropped: int):
    """What `Lately` says some seconds after counting began."""
    clock, counters = Clock(), FrameCounters()
    recently = Lately(5.0, clock)
    assert recently(counters.snapshot()) is None
    for _ in range(received):
        counters.receive()
    counters.use(used)
    for reason, frames in dropped.items():
        counters.drop(reason, frames)
    clock.now += over_s
    return recently(counters.snapshot())


def input_of(**change):
    clock = Clock()
    telemetry = made(clock)
    telemetry.arrived()
    return statuses(replace(VIEW, **change), METRES, telemetry, FrameCounters().snapshot())[0]


def test_what_came_and_was_dropped_is_told_apart_from_what_never_came():
    busy = input_of(lately=lately(52, busy=47, decode=3))
    assert busy.level == DiagnosticStatus.WARN and "no image" not in busy.message and "camera" not in busy.message
    assert "52 images came in 6 s, but none was used; dropped: 47 busy, 3 decode" in busy.message
    assert "window.size" in busy.message
    assert "whole images" in input_of(lately=lately(20, decode=20)).message


@pytest.mark.parametrize(
    "counts",
    [
        {"received": 52, "used": 1, "busy": 51},
        {"received": 52, "not_keyframe": 50},  # a camera at rest
        {"received": 52, "paused": 52},  # on request
        {"received": 2, "busy": 2},
        {"received": 52},  # the first window is not done yet
        {"received": 52, "busy": 52, "over_s": 4.0},  # too early to tell
    ],
)
def test_drops_that_are_no_fault_are_none(counts):
    assert input_of(lately=lately(**counts)).level == DiagnosticStatus.OK


def test_counts_of_the_last_seconds_only_and_after_a_restart():
    clock, counters = Clock(), FrameCounters()
    recently = Lately(5.0, clock)
    for _ in range(30):
        counters.receive()
        counters.drop("busy")
        seconds, found = recently(counters.snapshot()) or (5.0, None)
        assert 5.0 <= seconds < 6.5 and (found is None or found.dropped["busy"] in (5, 6))
        clock.now += 1
    counters.restart()
    counters.receive()
    assert recently(counters.snapshot()) is None


def test_every_reason_for_a_drop_has_a_fix_or_is_no_fault():
    assert set(DROP_REASONS) - set(DROP_FIXES) == {"not_keyframe", "paused"}
    assert drops_text(dict.fromkeys(DROP_REASONS, 0)) == ("", "")
