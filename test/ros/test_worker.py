"""The worker under streams of all faults: every frame ends in exactly one place, and what is published is in order."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros.backbones.fake import FakeBackbone
from come_ros.config import Config
from come_ros.errors import FrameError
from come_ros.pipeline import ReconstructionPipeline
from come_ros.ros.telemetry import Telemetry
from come_ros.ros.worker import Worker
from come_ros.types import Frame

START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
FAULTS = ("none", "none", "size", "encoding", "camera", "duplicate", "late", "jump", "gap", "broken", "strip")


def stream(faults: list[str]) -> list[Frame | None]:
    """Frames of which each has the fault of that name; None stands for a message that cannot be decoded."""
    height, encoding, camera, stamp = 56, "rgb8", "cam", START_NS
    out: list[Frame | None] = []
    for i, fault in enumerate(faults):
        stamp += {"duplicate": 0, "late": -STEP_NS // 2, "jump": -20 * STEP_NS, "gap": 60 * STEP_NS}.get(fault, STEP_NS)
        height = 126 - height - 14 * (fault != "size") if fault == "size" else height
        encoding = {"rgb8": "mono8", "mono8": "rgb8"}[encoding] if fault == "encoding" else encoding
        camera = {"cam": "other", "other": "cam"}[camera] if fault == "camera" else camera
        image = np.full((2 if fault == "strip" else height, 70, 3), i % 256, np.uint8)
        out.append(None if fault == "broken" else Frame(image, stamp, camera, None, time.monotonic_ns(), encoding))
    return out


def read(message: Frame | None, arrival_ns: int) -> Frame:
    if message is None:
        raise FrameError("broken")
    return message


def run(faults: list[str], **parameters: object) -> tuple[Worker, list[Frame]]:
    config = Config().replace(**{"keyframe.mode": "every", "window.size": 4, "window.overlap": 2, **parameters})
    published: list[Frame] = []
    telemetry = Telemetry()
    worker = Worker(config, read, lambda submap, row, _: published.append(submap.frames[row]), telemetry, lambda: None)
    worker.pipeline = ReconstructionPipeline(config, FakeBackbone())
    worker.activate()
    for message in stream(faults):
        worker.put(message, time.monotonic_ns())
        assert worker.counters.snapshot().balanced()
        if len(worker.ring) == 4:  # as many as a busy worker finds when it comes back
            worker._step(worker.pipeline, worker._session)
    while worker._kept or len(worker.ring):
        worker._step(worker.pipeline, worker._session)
    return worker, published


@settings(max_examples=150)
@given(st.lists(st.sampled_from(FAULTS), max_size=30), st.sampled_from(["reset", "keep_pose", "ignore"]))
def test_every_frame_of_any_stream_is_accounted_for(faults, how) -> None:
    worker, published = run(faults, on_time_jump=how)
    counts = worker.counters.snapshot()
    assert counts.balanced() and counts.pending == 0 and counts.received == len(faults)
    assert counts.used == len(published)
    assert counts.dropped["decode"] == faults.count("broken") + faults.count("strip")
    assert counts.dropped["rejected"] == counts.dropped["busy"] == counts.dropped["old"] == 0
    assert len({id(frame) for frame in published}) == len(published)


@pytest.mark.parametrize("fault", ["size", "encoding", "camera", "gap"])
def test_a_change_in_mid_stream_loses_no_frame(fault) -> None:
    faults = ["none"] * 7 + [fault] + ["none"] * 6
    worker, published = run(faults)
    assert worker.counters.snapshot().used == len(faults) == len(published)
    assert worker.pipeline.counts["gaps"] + worker.pipeline.counts["changes"] == 1
    assert [f.stamp_ns for f in published] == sorted(f.stamp_ns for f in published)


@pytest.mark.parametrize(("fault", "lost"), [("duplicate", 1), ("late", 1), ("broken", 1), ("strip", 1)])
def test_a_single_bad_frame_costs_itself_only(fault, lost) -> None:
    worker, _ = run(["none"] * 7 + [fault] + ["none"] * 6)
    counts = worker.counters.snapshot()
    assert counts.used == 14 - lost and sum(counts.dropped.values()) == lost
    assert counts.dropped["time" if fault in ("duplicate", "late") else "decode"] == lost


@pytest.mark.parametrize("at_once", [1, 3, 20])
def test_backpressure_all_makes_the_windows_of_the_bag_tool(at_once):
    config = Config().replace(
        **{"keyframe.mode": "every", "window.size": 4, "window.overlap": 2, "backpressure": "all"}
    )
    published: list[tuple[int, np.ndarray]] = []

    def publish(submap, row, _):
        published.append((submap.frames[row].stamp_ns, submap.odom_from_camera[row]))

    worker = Worker(config, read, publish, Telemetry(), lambda: None)
    worker.pipeline = ReconstructionPipeline(config, FakeBackbone())
    worker.activate()
    frames = stream(["none"] * 11)
    for i, frame in enumerate(frames):
        worker.put(frame, time.monotonic_ns())
        if i % at_once == 0:  # a worker that falls behind finds several
            worker._step(worker.pipeline, worker._session)
    while len(worker.ring):
        worker._step(worker.pipeline, worker._session)
    offline = ReconstructionPipeline(config, FakeBackbone()).run(frames)
    want = [(f.stamp_ns, p) for s in offline for f, p in zip(s.frames, s.odom_from_camera, strict=True)]
    assert [stamp for stamp, _ in published] == [stamp for stamp, _ in want][:10]  # the last waits for its window
    np.testing.assert_array_equal([p for _, p in published], [p for _, p in want][:10])
    counts = worker.counters.snapshot()
    assert (counts.used, counts.pending) == (10, 1) and counts.balanced()
