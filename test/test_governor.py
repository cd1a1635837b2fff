"""The governor with a model of known cost and memory, in time that only pretends to pass: it keeps the target, and its calm."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fakes import PretendedTime, live_in_pretended_time, trajectory, truth_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from come_ros.backbones.fake import FakeBackbone, Load
from come_ros.config import Config
from come_ros.errors import OutOfMemory
from come_ros.governor import HOLD_S, LEAST_WINDOW, MOST_RATIO, Effort, Governor
from come_ros.pipeline import ReconstructionPipeline

WANTED = {"accelerator.name": "come", "accelerator.ratio": 0.3, "window.size": 8, "window.overlap": 4}


def load_of(effort: Effort) -> Load:
    return Load(effort.window, round(0.75 * effort.side / 14) * 14, effort.side, effort.ratio)


class Machine:
    """latency = overhead + slope * tokens ** power, times noise; slope may change while it runs."""

    def __init__(self, overhead: float, power: float, dense: float, noise: float = 0.05, seed: int = 0) -> None:
        self.overhead, self.power, self.noise = overhead, power, noise
        self.slope = dense / load_of(Effort(0.3, 8, 518)).tokens ** power  # `dense` s at full effort
        self._rng = np.random.default_rng(seed)

    def latency(self, effort: Effort) -> float:
        return self.overhead + self.slope * load_of(effort).tokens ** self.power

    def measured(self, effort: Effort) -> float:
        return self.latency(effort) * float(np.exp(self.noise * self._rng.standard_normal()))


def steer(governor: Governor, machine: Machine, clock: PretendedTime, seconds: float) -> list[tuple[float, Effort]]:
    """Runs windows for so long; (time, effort) whenever that changed."""
    end, changes = clock.now + seconds, []
    while clock.now < end:
        latency = machine.measured(governor.effort)
        clock.now += max(latency, 0.1)
        if governor.observe(latency, governor.effort.window):
            changes.append((clock.now, governor.effort))
    return changes


def made(clock: PretendedTime, target_ms: float, **more: object) -> Governor:
    config = Config().replace(**WANTED, latency_target_ms=target_ms, **more)
    return Governor(config, 518, 14, clock)


def assert_in_order(governor: Governor, changes: list[tuple[float, Effort]]) -> None:
    base, before = governor.levels[0], governor.levels[0]
    times = [t for t, _ in changes]
    assert all(later - earlier >= HOLD_S for earlier, later in itertools.pairwise(times))
    for _, effort in changes:
        assert sum(a != b for a, b in zip(before, effort, strict=True)) == 1, "one knob at a time"
        assert effort.window == base.window or effort.ratio == MOST_RATIO
        assert effort.side == base.side or effort.window == LEAST_WINDOW
        assert effort.ratio >= base.ratio and effort.window <= base.window and effort.side <= base.side
        assert effort.side % 14 == 0
        before = effort


def turns(changes: list[tuple[float, Effort]]) -> int:
    """How often cheaper was followed by dearer, or dearer by cheaper."""
    dearer = [after.tokens() > before.tokens() for (_, before), (_, after) in itertools.pairwise(changes)]
    return sum(a != b for a, b in itertools.pairwise(dearer))


@settings(max_examples=25)
@example(overhead=0.0, power=1.75, dense=0.625, target_ms=200.0, seed=0)  # went up and down every five seconds
# noise alone exceeds the target once, at full effort: one step down, and some back up
@example(overhead=0.0308759177210651, power=1.0, dense=0.150390625, target_ms=200.0, seed=7)
@given(
    st.floats(0.0, 0.05),
    st.floats(1.0, 2.0),
    st.floats(0.15, 5.0),
    st.sampled_from([100.0, 200.0, 400.0]),
    st.integers(0, 9),
)
@pytest.mark.slow
def test_the_target_is_kept_where_it_can_be_and_nothing_swings(overhead, power, dense, target_ms, seed) -> None:
    clock, machine = PretendedTime(), Machine(overhead, power, dense, seed=seed)
    governor = made(clock, target_ms)
    changes = steer(governor, machine, clock, 120)
    settled = (clock.now, governor.effort)
    late = steer(governor, machine, clock, 120)
    assert_in_order(governor, changes + late)
    cheapest = machine.latency(governor.levels[-1])
    if cheapest < 0.75e-3 * target_ms:
        assert machine.latency(governor.effort) <= 1e-3 * target_ms
        assert not governor.state.limited
    if cheapest > 1.1e-3 * target_ms:
        assert governor.effort == governor.levels[-1] and governor.state.limited
    assert turns([settled, *late]) <= 1, "it swings"
    # nothing is given up without need
    if machine.latency(governor.levels[0]) < 0.7e-3 * target_ms:
        assert governor.level == 0 and not changes


def test_what_was_given_up_comes_back_with_the_time_for_it() -> None:
    clock, machine = PretendedTime(), Machine(0.01, 1.3, 0.15)
    governor = made(clock, 200)
    assert not steer(governor, machine, clock, 30)
    slope, machine.slope = machine.slope, 8 * machine.slope  # another process needs the machine
    down = steer(governor, machine, clock, 60)
    assert machine.latency(governor.effort) < 0.2 and 2 <= len(down) <= 4, "15 s are enough for three knobs"
    machine.slope = slope
    up = steer(governor, machine, clock, 300)
    assert governor.effort == governor.levels[0]
    assert_in_order(governor, down + up)


@settings(max_examples=10)
@given(st.floats(0.0, 0.05), st.floats(1.0, 2.0), st.floats(0.15, 0.6), st.floats(2.0, 10.0), st.floats(3.0, 60.0))
def test_load_may_come_and_go_and_nothing_of_it_is_held_against_a_level(overhead, power, share, factor, busy_s) -> None:
    clock, machine = PretendedTime(), Machine(overhead, power, 0.4 * share)
    governor = made(clock, 400)
    steer(governor, machine, clock, 20)
    slope = machine.slope
    for _ in range(4):
        machine.slope = factor * slope
        changes = steer(governor, machine, clock, busy_s)
        machine.slope = slope
        changes += steer(governor, machine, clock, 120)
        assert governor.level == 0, "a level that was too slow under load is as good as ever without it"
        assert len(changes) <= 12, "it swings"


def measured(governor: Governor, clock: PretendedTime, latency: float, seconds: float) -> None:
    for _ in range(round(seconds / 0.1)):
        clock.now += 0.1
        governor.observe(latency, 8)


def test_what_a_step_cost_is_measured_and_believed() -> None:
    for cheaper, back in ((0.16, False), (0.145, True)):  # by the guess there is room in neither case
        clock = PretendedTime()
        governor = made(clock, 200)
        while governor.level == 0:
            measured(governor, clock, 0.21, 0.1)
        level = governor.level
        measured(governor, clock, cheaper, 20)
        assert (governor.level < level) == back, cheaper


def test_without_a_target_or_an_accelerator() -> None:
    clock, machine = PretendedTime(), Machine(0.0, 1.0, 5.0)
    governor = made(clock, 0.0, max_data_age=0.0)
    assert not steer(governor, machine, clock, 60) and governor.apply() is governor.config
    governor = Governor(Config(latency_target_ms=300.0), 518, 14, clock)
    steer(governor, machine, clock, 120)
    assert governor.effort.ratio == 0.5, "there is nothing to merge, so the ratio stays as it is"
    assert governor.effort.window == LEAST_WINDOW and governor.effort.side < 518


def test_a_ratio_that_does_not_pay_is_given_up() -> None:
    """As with tome, pace, fast, temporal on short windows: more is merged, and it is no faster."""

    class Useless(Machine):
        def latency(self, effort: Effort) -> float:
            return super().latency(effort._replace(ratio=0.3))

    clock, machine = PretendedTime(), Useless(0.0, 1.0, 0.3)
    governor = made(clock, 200)
    steer(governor, machine, clock, 120)
    assert governor.effort.ratio == 0.3 and governor.effort.window < 8
    assert machine.latency(governor.effort) < 0.2
    assert all(level.ratio == 0.3 for level in governor.levels)
    governor.configure(governor.config.replace(**{"window.size": 7}))
    assert any(level.ratio > 0.3 for level in governor.levels), "another window: it is tried again"


def test_a_number_of_frames_makes_the_ratio_no_knob() -> None:
    config = Config.from_flat(
        {"accelerator.name": "good_token_hunting", "accelerator.frames": 2, "latency_target_ms": 200.0}
    )
    assert all(level.ratio == 0.5 for level in Governor(config, 518, 14).levels)
    both = config.replace(**{"accelerator.name": "come+good_token_hunting"})
    assert any(level.ratio > 0.5 for level in Governor(both, 518, 14).levels), "Co-Me's ratio still counts"


def test_a_new_target_counts_at_once_and_other_parameters_start_again() -> None:
    clock, machine = PretendedTime(), Machine(0.0, 1.0, 2.0)
    governor = made(clock, 300, max_data_age=0.0)
    steer(governor, machine, clock, 60)
    level = governor.level
    governor.configure(governor.config.replace(**{"cloud.stride": 2}))
    assert governor.level == level > 0
    governor.configure(governor.config.replace(latency_target_ms=5000.0))
    steer(governor, machine, clock, 300)
    assert governor.level == 0
    governor.configure(governor.config.replace(latency_target_ms=300.0))
    steer(governor, machine, clock, 60)
    governor.configure(governor.config.replace(**{"window.size": 6}))
    assert governor.effort == governor.levels[0] == Effort(0.3, 6, 518)
    governor.configure(governor.config.replace(latency_target_ms=0.0))
    assert governor.apply() is governor.config


def test_one_slow_window_is_no_reason() -> None:
    clock = PretendedTime()
    governor = made(clock, 200)
    for i in range(200):
        clock.now += 0.15
        assert not governor.observe(2.0 if i % 40 == 7 else 0.15, 8)


def test_results_too_old_to_be_published_shrink_the_window_at_once_and_come_back() -> None:
    """Without any target, windows of 3 s where 2 s are allowed: nothing would ever be published."""
    clock, machine = PretendedTime(), Machine(0.0, 1.0, 3.0)
    governor = Governor(Config.from_flat({"window.size": 8}), 518, 14, clock)
    machine.slope = 3.0 / load_of(governor.effort).tokens
    published = []
    for _ in range(12):
        latency = machine.measured(governor.effort)
        clock.now += latency
        published.append(latency <= 2.0)
        governor.observe(latency, governor.effort.window)
    assert not published[0] and all(published[2:]), "two windows are lost, no more"
    assert governor.effort.window < 8 and governor.effort.side == 518
    assert governor.apply().window.shared < governor.apply().window.size
    machine.slope /= 10
    steer(governor, machine, clock, 200)
    assert governor.apply() is governor.config, "all is given back when the machine is free again"


@pytest.mark.parametrize("given", [{"max_data_age": 0.0}, {"backpressure": "all"}])
def test_where_late_results_are_published_nothing_shrinks(given: dict[str, object]) -> None:
    clock = PretendedTime()
    governor = Governor(Config.from_flat({"window.size": 8, **given}), 518, 14, clock)
    for _ in range(40):
        clock.now += 9.0
        assert not governor.observe(9.0, 8)


# Memory


def test_the_ladder_has_the_steps_of_the_table() -> None:
    governor = Governor(Config().replace(**WANTED), 518, 14, PretendedTime())
    assert governor.ladder == (
        Effort(0.3, 8, 518), Effort(0.3, 4, 518), Effort(0.3, 4, 392), Effort(0.75, 4, 392), Effort(0.75, 2, 392)
    )  # fmt: skip
    # steps that would change nothing are none
    governor = Governor(Config().replace(**{"window.size": 2, "window.overlap": 1}), 112, 14, PretendedTime())
    assert governor.ladder == (Effort(0.5, 2, 112),)


def test_memory_goes_down_at_once_and_up_after_a_minute_without_failure() -> None:
    clock = PretendedTime()
    governor = Governor(Config().replace(**WANTED), 518, 14, clock)
    assert governor.out_of_memory(8) and governor.effort.window == 4
    assert governor.out_of_memory(4) and governor.effort.side == 392
    tried = []
    for _ in range(2500):
        clock.now += 0.2
        if governor.fitted():
            tried.append(clock.now)
            if governor.effort.window == 8:  # which still does not fit
                assert governor.out_of_memory(8)
    assert np.diff(tried)[:3] == pytest.approx([60, 120, 240], abs=1), "ever more rarely while it fails"
    assert tried[0] == pytest.approx(60, abs=1) and governor.oom_count == 2 + len(tried) - 1


def test_a_failure_long_after_the_step_up_is_another_one() -> None:
    clock = PretendedTime()
    governor = Governor(Config().replace(**WANTED), 518, 14, clock)

    def seconds_until_tried() -> float:
        begun = clock.now
        while not governor.fitted():
            clock.now += 1
        return clock.now - begun

    governor.out_of_memory(8)
    waits = []
    for held_s in (1, 1, 500, 1):  # what another process leaves comes and goes
        waits.append(seconds_until_tried())
        clock.now += held_s
        governor.out_of_memory(8)
    assert waits + [seconds_until_tried()] == [60, 120, 240, 60, 120]


def test_the_ladder_makes_other_levels_whose_cost_is_not_known() -> None:
    clock, machine = PretendedTime(), Machine(0.01, 1.3, 1.0)
    governor = made(clock, 400)
    steer(governor, machine, clock, 60)
    level = governor.level
    assert level > 0 and governor.out_of_memory(8) and governor.level == level and governor.effort.window == 4
    steer(governor, machine, clock, 120)
    assert governor.level < level, "half the window leaves time for more"
    assert governor.fitted() and governor.effort.window > 4
    steer(governor, machine, clock, 120)
    assert machine.latency(governor.effort) <= 0.4
    assert len(steer(governor, machine, clock, 120)) <= 2


def test_a_window_that_was_small_anyhow_goes_down_as_far_as_helps() -> None:
    governor = Governor(Config().replace(**WANTED), 518, 14, PretendedTime())
    assert governor.out_of_memory(3), "half of eight is no less than three"
    assert governor.effort == Effort(0.3, 4, 392)
    while governor.out_of_memory(2):
        pass
    assert governor.effort == governor.ladder[-1] and governor.state.exhausted
    governor.fitted()
    assert not governor.state.exhausted


# The whole pipeline

TRUTH = truth_of(trajectory("curve", 60))


def pipeline_of(clock: PretendedTime, backbone: FakeBackbone, **parameters: object) -> ReconstructionPipeline:
    # tracks and the bundle would take most of the time, and the governor sees nothing of them
    plain = {"keyframe.mode": "every", "refine.mode": "none", "odometry.rate": "keyframe"}
    config = Config().replace(**{**plain, **WANTED, **parameters})
    return ReconstructionPipeline(config, backbone, clock)


@pytest.mark.slow
def test_the_pipeline_gives_the_model_what_the_governor_allows() -> None:
    clock = PretendedTime()
    backbone = FakeBackbone(cost=lambda load: 0.4 * load.tokens / (8 * 12 * 16), sleep=clock.sleep)
    pipeline = pipeline_of(clock, backbone, latency_target_ms=130.0)
    seen = live_in_pretended_time(pipeline, clock, TRUTH.frames(), 40, hz=10)
    assert max(s.latency_s for s in seen[:20]) > 0.2 > 0.13 > max(s.latency_s for s in seen[-10:])
    last = backbone.loads[-1]
    effort = pipeline.governor.effort
    assert (last.frames, last.width, last.ratio) == (effort.window, effort.side, effort.ratio)
    assert effort.ratio == MOST_RATIO
    assert all(s.accepted for s in seen), "windows go on from each other at every size"


def test_a_window_that_does_not_fit_comes_out_smaller() -> None:
    clock = PretendedTime()
    backbone = FakeBackbone(needs=lambda load: load.tokens, free_mib=5 * 12 * 16 * 0.74, sleep=clock.sleep)
    pipeline = pipeline_of(clock, backbone)
    frames = TRUTH.frames()
    for frame in frames[:8]:
        pipeline.add_frame(frame)
    submap = pipeline.reconstruct(pipeline.take_window(1))
    assert [f.stamp_ns for f in submap.frames] == [f.stamp_ns for f in frames[4:8]], "the newest ones"
    assert submap.alignment.accepted and pipeline.governor.state.oom_count == 1
    for frame in frames[8:10]:
        pipeline.add_frame(frame)
    submap = pipeline.reconstruct(pipeline.take_window(1))
    assert len(submap) == 2 and submap.alignment.shared == 2

    backbone.free_mib = 1.0  # not even two frames
    for frame in frames[10:15]:
        while pipeline.room() == 0:
            pipeline.make_room()
        pipeline.add_frame(frame)
        with pytest.raises(OutOfMemory, match="are free"):
            pipeline.reconstruct(pipeline.take_window(1))
    state = pipeline.governor.state
    assert state.exhausted and state.ladder_step == state.ladder_steps
    assert {load.frames for load in list(backbone.loads)[-2:]} == {2}

    backbone.free_mib = np.inf
    pipeline.add_frame(frames[30])
    assert len(pipeline.reconstruct(pipeline.take_window(1))) == 1 and not pipeline.governor.state.exhausted


@pytest.mark.slow
def test_memory_short_for_a_while_is_all_used_again() -> None:
    clock = PretendedTime()
    backbone = FakeBackbone(cost=lambda _: 1.0, needs=lambda load: load.tokens, free_mib=400.0, sleep=clock.sleep)
    pipeline = pipeline_of(clock, backbone)
    seen = live_in_pretended_time(pipeline, clock, TRUTH.frames(), 10, hz=2)
    assert pipeline.governor.step > 0 and all(s.accepted for s in seen)
    backbone.free_mib = 1e6
    live_in_pretended_time(pipeline, clock, TRUTH.frames(), 135, hz=1)
    assert pipeline.governor.step == 0 and backbone.loads[-1].frames == 8


def test_the_policy_error_drops_the_window_and_changes_nothing() -> None:
    clock = PretendedTime()
    pipeline = pipeline_of(clock, FakeBackbone(needs=lambda load: load.frames, free_mib=4), **{"oom.policy": "error"})
    for frame in TRUTH.frames()[:8]:
        pipeline.add_frame(frame)
    with pytest.raises(OutOfMemory, match=r"8 frames .* lower window.size or input.max_side"):
        pipeline.reconstruct(pipeline.take_window(1))
    assert pipeline.governor.effort.window == 8 and pipeline.backbone.windows == 1


def test_warming_up_finds_what_fits() -> None:
    backbone = FakeBackbone(needs=lambda load: load.tokens, free_mib=100)
    pipeline = pipeline_of(PretendedTime(), backbone)
    pipeline.warm_up()
    assert pipeline.governor.effort.side < 224
    backbone.free_mib = 1
    with pytest.raises(OutOfMemory):
        pipeline.warm_up()
