"""The worker under streams of all faults: every frame ends in exactly one place, and what is published is in order."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros.backbones.fake import FakeBackbone
from come_ros.config import Config
from come_ros.errors import DeviceLost, FrameError, OutOfMemory
from come_ros.pipeline import ReconstructionPipeline
from come_ros.ros.diagnostics.telemetry import Telemetry
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


def run(faults: list[str], at_once: int = 2, **parameters: object) -> tuple[Worker, list[Frame]]:
    """`at_once`: as many wait when a busy worker comes back; a window has room for two next to the two it shares."""
    config = Config().replace(**{"keyframe.mode": "every", "window.size": 4, "window.overlap": 2, **parameters})
    published: list[Frame] = []
    telemetry = Telemetry()
    worker = Worker(config, read, lambda submap, row, _: published.append(submap.frames[row]), telemetry, lambda: None)
    worker.pipeline = ReconstructionPipeline(config, FakeBackbone())
    worker.activate()
    for message in stream(faults):
        worker.put(message, time.monotonic_ns())
        assert worker.counters.snapshot().balanced()
        if len(worker.ring) == at_once:
            worker._step(worker.pipeline, worker._session)
    while worker._kept or len(worker.ring):
        worker._step(worker.pipeline, worker._session)
    return worker, published


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(st.sampled_from(FAULTS), max_size=30), st.sampled_from(["reset", "keep_pose", "ignore"]))
def test_every_frame_of_any_stream_is_accounted_for(faults, how) -> None:
    worker, published = run(faults, on_time_jump=how)
    counts = worker.counters.snapshot()
    assert counts.balanced() and counts.pending == 0 and counts.received == len(faults)
    assert counts.used == len(published)
    assert counts.dropped["decode"] == faults.count("broken") + faults.count("strip")
    assert counts.dropped["rejected"] == counts.dropped["old"] == 0
    # each change ends a window early, so that many of them keep the worker busy
    assert counts.dropped["busy"] == 0 or {"size", "encoding", "camera", "gap"} & set(faults)
    assert len({id(frame) for frame in published}) == len(published)


@pytest.mark.slow
@settings(max_examples=50)
@given(st.lists(st.sampled_from(FAULTS), max_size=30), st.sampled_from(["reset", "keep_pose"]), st.integers(1, 4))
def test_the_newest_win_and_the_others_are_busy(faults, how, at_once) -> None:
    worker, published = run([*faults, "none", "none"], at_once, on_time_jump=how)
    counts = worker.counters.snapshot()
    assert counts.balanced() and counts.pending == 0 and counts.used == len(published)
    assert counts.dropped["rejected"] == 0 and counts.dropped["decode"] == faults.count("broken") + faults.count(
        "strip"
    )
    last = stream([*faults, "none", "none"])[-1]
    assert published[-1].stamp_ns == last.stamp_ns, "the newest frame is never the one that is given up"


@pytest.mark.slow
@settings(max_examples=12)
@given(st.data())
def test_the_sum_holds_whatever_is_asked_of_a_running_worker(data) -> None:
    """Frames, sessions, pauses, resets, loads and failures in any order, while the thread does its work."""
    config = Config().replace(**{"keyframe.mode": "every", "window.size": 4, "window.overlap": 2})
    fails = iter(
        data.draw(st.lists(st.sampled_from([None, None, None, RuntimeError("x"), OutOfMemory("y")]), max_size=20))
    )

    def fail_on(images) -> None:
        if (error := next(fails, None)) is not None:
            raise error

    worker = Worker(
        config, read, lambda *_: None, Telemetry(), lambda: None,
        lambda config: ReconstructionPipeline(config, FakeBackbone(fail_on=fail_on)),
    )  # fmt: skip
    worker.start()
    frames = iter(stream(["none"] * 60))

    def check() -> None:
        counts = worker.counters.snapshot()
        assert counts.balanced() and counts.pending >= 0 and worker.is_alive()

    try:
        worker.load(config).result(10)
        worker.activate()
        active = True
        for what in data.draw(st.lists(st.sampled_from(
            ["frame"] * 6 + ["pause", "go on", "reset", "deactivate", "activate", "cleanup"]), max_size=50)):  # fmt: skip
            if what == "frame" and active:
                worker.put(next(frames), time.monotonic_ns())
            elif what in ("pause", "go on"):
                worker.pause(what == "pause")
            elif what == "reset":
                worker.reset(lambda: None)
            elif what == "activate":
                worker.activate()
                active = True
            elif what in ("deactivate", "cleanup"):
                worker.deactivate()
                active = False
                if what == "cleanup":
                    worker.unload()
                    worker.load(config).result(10)
                    assert worker.counters.snapshot().received == 0, "counted from zero at configure"
            check()
        worker.deactivate()
        worker.unload().result(10)
        check()
        assert worker.counters.snapshot().pending == 0
    finally:
        worker.stop(10)


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
@pytest.mark.slow
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


def test_a_lost_device_ends_the_thread_and_says_so_once() -> None:
    config = Config().replace(**{"keyframe.mode": "every"})
    told: list[DeviceLost] = []

    def fail_on(images) -> None:
        raise DeviceLost("CUDA error: an illegal memory access was encountered")

    worker = Worker(config, read, lambda *_: None, Telemetry(), lambda: None, lost=told.append)
    worker.pipeline = ReconstructionPipeline(config, FakeBackbone(fail_on=fail_on))
    worker.activate()
    for frame in stream(["none"] * 3):
        worker.put(frame, time.monotonic_ns())
    worker.start()
    worker.join(10)
    assert not worker.is_alive() and [str(error) for error in told] == [str(worker.lost)]
    assert worker.pipeline.backbone.windows == 1, "it is never tried again"
    counts = worker.counters.snapshot()
    assert counts.balanced() and counts.dropped["rejected"] == 3


def test_frames_that_memory_had_no_room_for_are_counted() -> None:
    config = Config().replace(**{"keyframe.mode": "every"})
    published: list[Frame] = []
    worker = Worker(config, read, lambda s, row, _: published.append(s.frames[row]), Telemetry(), lambda: None)
    worker.pipeline = ReconstructionPipeline(config, FakeBackbone(needs=lambda load: load.frames, free_mib=5))
    worker.activate()
    for frame in stream(["none"] * 8):
        worker.put(frame, time.monotonic_ns())
    worker._step(worker.pipeline, worker._session)
    counts = worker.counters.snapshot()
    assert (counts.used, counts.dropped["rejected"], counts.pending) == (4, 4, 0) and len(published) == 4
