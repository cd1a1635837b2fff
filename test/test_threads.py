"""How long threads wait, how many a run starts with, and how the live node's number follows a machine whose load comes and goes."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fakes import PretendedTime

from come_ros import thread_governor
from come_ros.thread_governor import ThreadGovernor, choices, measured_cost
from come_ros.threads import FIRST, Cores, go_first, multiply_alone, spin_briefly, threads_at_start, usable_threads

ROOT = Path(__file__).resolve().parents[1]
ALONE = {1: 0.211, 2: 0.121}  # s: a window of 8 frames on two idle cores, as measured


class Machine:
    """So many cores, which `others` processes share with us. A pass waits for its slowest thread."""

    def __init__(self, cost: dict[int, float], cores: int, noise: float = 0.05, seed: int = 0) -> None:
        self.cost, self.cores, self.noise, self.others = cost, cores, noise, 0
        self._rng = np.random.default_rng(seed)

    def expected(self, threads: int) -> float:
        """The slowest thread has its core for itself, or shares it with as many as there are on the fullest one."""
        crowd = math.ceil((self.others + threads) / self.cores)
        return self.cost[threads] * max(1, crowd)

    def measured(self, threads: int) -> float:
        return self.expected(threads) * float(np.exp(self.noise * self._rng.standard_normal()))

    def spare(self, threads: int) -> float:
        return max(0.0, self.cores - self.others - threads)

    def best(self) -> int:
        return min(self.cost, key=self.expected)


def run(governor: ThreadGovernor, machine: Machine, clock: PretendedTime, seconds: float, kinds: int = 1):
    """Passes for so long: (time, threads, seconds of the pass) of each."""
    end, passes = clock.now + seconds, []
    for i in itertools.count():
        if clock.now >= end:
            return passes
        threads, kind = governor.threads, i % kinds
        took = machine.measured(threads) * (1 + kind)
        clock.now += took
        passes.append((clock.now, threads, took))
        governor.observe(took, kind, machine.spare(threads))


def made(machine: Machine) -> tuple[ThreadGovernor, PretendedTime]:
    clock = PretendedTime()
    return ThreadGovernor(machine.cost, clock), clock


def changes(passes) -> int:
    return sum(a != b for (_, a, _), (_, b, _) in itertools.pairwise(passes))


def test_an_idle_machine_keeps_the_fastest_number() -> None:
    for cost, fastest in ((ALONE, 2), ({1: 0.1, 2: 0.11}, 1), ({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.39}, 4)):
        machine = Machine(cost, cores=max(cost))
        governor, clock = made(machine)
        passes = run(governor, machine, clock, 300)
        assert governor.threads == fastest and passes[0][1] == fastest
        assert np.mean([n == fastest for _, n, _ in passes]) > 0.97
        assert governor.state.slowdown < 1.3


@pytest.mark.parametrize("kinds", [1, 3])
@pytest.mark.parametrize("others", [1, 2, 4])
def test_it_steps_down_at_once_and_comes_back_when_the_load_has_gone(others: int, kinds: int) -> None:
    machine = Machine(ALONE, cores=2)
    governor, clock = made(machine)
    run(governor, machine, clock, 20, kinds)
    machine.others, begun = others, clock.now
    best = machine.best()
    busy = run(governor, machine, clock, 120, kinds)
    assert governor.state.slowdown > 1.3
    settled = [t for t, n, _ in busy if n == best]
    assert settled and settled[0] - begun < (8 if best == 1 else 1) * max(took for *_, took in busy)
    assert np.mean([n == best for _, n, _ in busy]) > 0.8, "it goes on trying"
    machine.others, begun = 0, clock.now
    free = run(governor, machine, clock, 60, kinds)
    back = next(t for t, n, _ in free if n == 2)
    assert back - begun < 30 and governor.threads == 2 and governor.state.slowdown < 1.3


def test_load_that_flickers_does_not_make_it_swing() -> None:
    machine = Machine(ALONE, cores=2)
    governor, clock = made(machine)
    passes = []
    for _ in range(60):
        machine.others = 1
        passes += run(governor, machine, clock, 4)
        machine.others = 0
        passes += run(governor, machine, clock, 4)
    # eight minutes, 120 changes of load: never more than one change of threads for each, and ever fewer
    assert changes(passes) < 60 and changes(passes[-len(passes) // 2 :]) < 20
    times = [took for *_, took in passes[-200:]]
    assert np.percentile(times, 95) <= 1.5 * np.median(times)


def test_fewer_threads_are_given_up_where_they_get_less_of_a_crowded_machine() -> None:
    """The scheduler shares by threads: with eight others on two cores, two threads get nearly twice as much as one."""

    class Fair(Machine):
        def expected(self, threads: int) -> float:
            return self.cost[threads] * max(1.0, (self.others + threads) / self.cores)

    machine = Fair(ALONE, cores=2)
    governor, clock = made(machine)
    run(governor, machine, clock, 10)
    machine.others = 8
    passes = run(governor, machine, clock, 600)
    assert np.mean([n == 2 for _, n, _ in passes]) > 0.9 and changes(passes[-len(passes) // 2 :]) <= 4


def test_a_start_under_load_learns_what_the_machine_can_do() -> None:
    machine = Machine(ALONE, cores=2)
    clock = PretendedTime()
    governor = ThreadGovernor({1: 0.21, 2: 0.24}, clock)  # measured next to another process
    machine.others = 1
    run(governor, machine, clock, 30)
    assert governor.threads == 1
    machine.others = 0
    run(governor, machine, clock, 60)
    assert governor.threads == 2


def test_a_start_under_load_without_a_measurement_finds_the_better_number() -> None:
    machine = Machine(ALONE, cores=2)
    machine.others = 1
    clock = PretendedTime()
    governor = ThreadGovernor({1: 1.0, 2: 0.5}, clock)
    run(governor, machine, clock, 15)
    assert governor.threads == 1


@pytest.mark.parametrize("seed", range(5))
def test_many_cores_are_left_one_step_after_another(seed: int) -> None:
    cost = {n: 0.02 + 0.48 / n for n in choices(16)}
    machine = Machine(cost, cores=16, seed=seed)
    governor, clock = made(machine)
    run(governor, machine, clock, 20)
    assert governor.threads == 16
    machine.others = 8
    run(governor, machine, clock, 60)
    assert machine.expected(governor.threads) <= 1.05 * machine.expected(machine.best())
    machine.others = 0
    run(governor, machine, clock, 600)
    assert governor.threads == 16


def test_memory_of_kinds_is_bounded() -> None:
    governor = ThreadGovernor(ALONE, PretendedTime())
    for kind in range(1000):
        governor.observe(0.1, kind, 0.0)
    assert len(governor._alone) <= thread_governor.KINDS


def test_numbers_worth_a_try() -> None:
    assert [choices(n) for n in (1, 2, 6, 16)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8, 16)]


def test_costs_are_measured_or_guessed_in_the_time_there_is() -> None:
    clock, seen = PretendedTime(), []

    def one_pass(threads: int) -> None:
        seen.append(threads)
        clock.now += 0.3 if len(seen) == 1 else 0.2 / threads  # the first one starts threads

    assert measured_cost(one_pass, (1, 2), 10, clock) == pytest.approx({1: 0.2, 2: 0.1})
    assert seen == [2, 2, 2, 1, 1, 1]
    seen.clear()
    assert measured_cost(one_pass, (1, 2), 0.5, clock) == {1: 1, 2: 0.5} and seen == [2]

    def ever_slower(threads: int) -> None:
        clock.now += 1 if clock.now > 100 else 0.1
        clock.now = max(clock.now, 101.0) if seen.append(threads) or len(seen) > 3 else clock.now

    seen.clear()
    assert set(measured_cost(ever_slower, (1, 2, 4), 3, clock)) == {1, 2, 4}


@pytest.mark.parametrize(
    ("most", "taken", "threads"),
    [(2, 0.0, 2), (2, 0.3, 2), (2, 0.9, 1), (2, 7.0, 1), (16, 2.1, 14), (16, 30.0, 8), (1, 5.0, 1), (3, 1.0, 2)],
)
def test_a_run_starts_with_what_others_leave(most: int, taken: float, threads: int) -> None:
    assert threads_at_start(most, taken) == threads


def stat(path: Path, idle: int, busy: int) -> Path:
    path.write_text(
        "cpu 1 1 1 1 1 1 1 1 0 0\n"
        + "".join(f"cpu{i} {busy} 0 0 {idle} 0 0 0 0 0 0\n" for i in range(os.cpu_count() or 1))
        + "intr 1\n"
    )
    return path


def test_idle_and_taken_cores_are_read_from_the_kernel(tmp_path: Path) -> None:
    cores, ticks = len(os.sched_getaffinity(0)), os.sysconf("SC_CLK_TCK")
    clock = PretendedTime()
    load = Cores(stat(tmp_path / "stat", 0, 0), clock)
    assert (load.spare(), load.taken()) == (0, 0)
    clock.now = 10.0
    stat(tmp_path / "stat", 4 * ticks, 6 * ticks)
    assert load.spare() == pytest.approx(0.4 * cores)
    # less what this process itself has used meanwhile, which is next to nothing
    assert load.taken() == pytest.approx(0.6 * cores, abs=0.2)
    clock.now = 10.1
    assert load.spare() == pytest.approx(0.4 * cores), "too soon for another look"
    nothing = Cores(tmp_path / "none", clock)
    clock.now = 20.0
    assert (nothing.spare(), nothing.taken()) == (0, 0)


def test_a_container_gets_no_more_threads_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for i, (text, threads) in enumerate(
        {"max 100000": 8, "150000 100000": 2, "1600000 100000": 8, "nonsense": 8}.items()
    ):
        (tmp_path / f"{i}").write_text(text)
        assert usable_threads(tmp_path / f"{i}") == threads
    assert usable_threads(tmp_path / "not there") == 8


def test_how_threads_wait_is_left_to_who_has_chosen_it() -> None:
    for given in ({"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "ACTIVE"}):
        environment = dict(given)
        spin_briefly(environment)
        assert environment == given
    environment = {}
    spin_briefly(environment)
    assert 0 < int(environment["GOMP_SPINCOUNT"]) <= 10_000


def test_numpy_multiplies_in_one_thread_unless_the_user_has_chosen() -> None:
    for given in ({"OPENBLAS_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "2"}):
        environment = dict(given)
        multiply_alone(environment)
        assert environment == given
    environment = {}
    multiply_alone(environment)
    assert environment == {"OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("program", ["from come_ros.tools.cli import main; main(['bench', '--help'])"])
def test_it_is_set_before_torch_is_imported(program: str) -> None:
    code = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': sys.exit('torch came too early')\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"try:\n    {program}\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.split()[-1].isdigit(), done.stderr


def niceness_in_a_thread() -> tuple[bool, int, int]:
    """What go_first says in a new thread; the niceness of that thread, and of one that it starts."""
    found: list[int] = []

    def note() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def work() -> None:
        found.append(go_first())
        note()
        child = threading.Thread(target=note)
        child.start()
        child.join()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return bool(found[0]), found[1], found[2]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_a_thread_goes_first_where_that_is_permitted_and_others_stay() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    permitted, own, childs = niceness_in_a_thread()
    assert own == childs == (FIRST if permitted else before)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before, "only that thread"


def test_a_thread_that_may_not_go_first_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setpriority", refuse)
    assert go_first() is False
    monkeypatch.delattr(os, "setpriority")
    assert go_first() is False, "a system without"
