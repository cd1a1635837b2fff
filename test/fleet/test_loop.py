"""What is started, tried again, given up, and left: with an executor that does as it is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from come_ros.fleet.executors import Here
from come_ros.fleet.loop import Ended, Job, Progress, Rules, run_all
from come_ros.fleet.record import DONE, PARTIAL, Inputs
from come_ros.fleet.sources import Source
from come_ros.fleet.work import FAILED, FULL, HUNG, KILLED, LOST, STOPPED, Outcome, Work

RULES = Rules(retries=1, least_free=0)


class Scripted:
    """Has room for `most`; what becomes of a unit of work is told by `script`. Ends the one that was started first."""

    def __init__(self, script: Callable[[Work], Outcome], most: int = 2) -> None:
        self.script, self.most = script, most
        self.running: deque[Work] = deque()
        self.started: list[Work] = []
        self.stopped = False

    def room(self) -> int:
        return self.most - len(self.running)

    def submit(self, work: Work) -> None:
        self.running.append(work)
        self.started.append(work)
        assert len(self.running) <= self.most

    def wait(self, timeout_s: float) -> list[tuple[Work, Outcome]]:
        if self.stopped:
            ended = [(work, Outcome(LOST, "cancelled")) for work in self.running]
            self.running.clear()
            return ended
        work = self.running.popleft()
        return [(work, self.script(work))]

    def stop(self) -> None:
        self.stopped = True


def unit(out: Path, name: str, part: str = "") -> Work:
    return Work(name, "commands", (), Source(name), Inputs("", name), str(out), part)


def jobs(out: Path, *names: str) -> list[Job]:
    return [Job(name, ((unit(out, name),),)) for name in names]


def done(work: Work) -> Outcome:
    return Outcome(DONE, seconds=1.0, node="n1")


def run(
    out: Path, executor: Scripted, *names: str, rules: Rules = RULES, stopped: Callable[[], bool] = lambda: False
) -> dict[str, Ended]:
    return run_all(jobs(out, *names), executor, rules, out, stopped)


def test_every_recording_is_worked_on_once(tmp_path: Path) -> None:
    executor, seen = Scripted(done), []

    def watch(progress: Progress) -> None:
        seen.append((progress.waiting, progress.running, len(progress.ended)))

    ended = run_all(jobs(tmp_path, *"abcde"), executor, RULES, tmp_path, lambda: False, watch)
    assert [w.name for w in executor.started] == list("abcde")
    assert ended == {name: Ended(DONE, "", 1, 1.0, "n1") for name in "abcde"}
    assert seen[0] == (3, 2, 0) and seen[-1][2] == 5


@pytest.mark.parametrize("state", [FAILED, HUNG, KILLED, LOST])
def test_what_fails_is_tried_again_elsewhere_and_the_others_go_on(tmp_path: Path, state: str) -> None:
    def script(work: Work) -> Outcome:
        bad = work.name == "b" or (work.name == "c" and work.attempt == 1)
        return Outcome(state, "broken", 1.0, "n1") if bad else done(work)

    executor = Scripted(script)
    ended = run(tmp_path, executor, *"abcd", rules=Rules(2, 0))
    assert {name: e.state for name, e in ended.items()} == {"a": DONE, "b": state, "c": DONE, "d": DONE}
    assert (ended["b"].attempts, ended["b"].reason, ended["c"].attempts) == (3, "broken", 2)
    assert [w.avoid for w in executor.started if w.name == "b"] == [(), ("n1",), ("n1", "n1")]


def test_partial_results_may_become_whole_and_are_kept_in_the_end(tmp_path: Path) -> None:
    executor = Scripted(lambda work: done(work) if (work.name, work.attempt) == ("b", 2) else Outcome(PARTIAL, "half"))
    ended = run(tmp_path, executor, *"ab")
    assert (ended["a"], ended["b"].state) == (Ended(PARTIAL, "half", 2), DONE)
    assert [(w.name, w.last) for w in executor.started] == [("a", False), ("b", False), ("a", True), ("b", True)]


def test_a_full_disk_stops_new_tasks_and_lets_the_others_end(tmp_path: Path) -> None:
    executor = Scripted(lambda work: Outcome(FULL, "no space") if work.name == "a" else done(work))
    ended = run(tmp_path, executor, *"abcd")
    assert [w.name for w in executor.started] == ["a", "b"]
    assert {name: e.state for name, e in ended.items()} == {"a": FULL, "b": DONE, "c": FULL, "d": FULL}
    assert "no space" in ended["d"].reason


def test_nothing_starts_on_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    executor = Scripted(done)
    ended = run(tmp_path, executor, "a", rules=Rules(1, 1 << 62))
    assert not executor.started and ended["a"].state == FULL and "--min-free" in ended["a"].reason


def test_a_signal_ends_what_runs_and_keeps_what_is_finished(tmp_path: Path) -> None:
    executor = Scripted(done)
    ended = run(tmp_path, executor, *"abcde", stopped=lambda: len(executor.started) >= 4)
    assert [ended[name].state for name in "abcde"] == [DONE, DONE, DONE, STOPPED, STOPPED]
    assert len(executor.started) == 4 and executor.stopped


def test_phases_follow_one_another_and_what_has_begun_is_finished_first(tmp_path: Path) -> None:
    parts = (("windows",), ("s1", "s2"), ("joined",))
    long = Job("long", tuple(tuple(unit(tmp_path, "long", part) for part in phase) for phase in parts))
    executor = Scripted(done, most=2)
    ended = run_all([long, *jobs(tmp_path, *"ab")], executor, RULES, tmp_path, lambda: False)
    order = [w.part or w.name for w in executor.started]
    assert order == ["windows", "a", "s1", "s2", "b", "joined"]
    assert ended["long"].state == DONE and ended["long"].seconds == 4.0


def test_a_segment_that_fails_ends_its_recording_only(tmp_path: Path) -> None:
    phases = ((unit(tmp_path, "long", "s1"), unit(tmp_path, "long", "s2")), (unit(tmp_path, "long", "joined"),))
    executor = Scripted(lambda work: Outcome(FAILED, "bad") if work.part == "s1" else done(work))
    ended = run_all([Job("long", phases), *jobs(tmp_path, "a")], executor, RULES, tmp_path, lambda: False)
    assert ended["long"] == Ended(FAILED, "bad", 2, ended["long"].seconds, "") and ended["a"].state == DONE
    assert "joined" not in [w.part for w in executor.started]


def test_threads_of_this_process_run_work_and_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from come_ros.fleet import executors

    monkeypatch.setattr(executors, "run", lambda work, stop, node: Outcome(STOPPED if stop() else DONE, node=node))
    with Here(2) as here:
        ended = run_all(jobs(tmp_path, *"abc"), here, RULES, tmp_path, lambda: False)
        assert {e.state for e in ended.values()} == {DONE} and here.room() == 2
        here.stop()
        here.submit(unit(tmp_path, "d"))
        (result,) = here.wait(10.0)
    assert result[1].state == STOPPED
