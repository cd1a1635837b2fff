"""A unit of work in a process of its own: its results appear whole, with their record, or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from recordings import write_images

from come_ros import __version__
from come_ros.fleet import work as fleet_work
from come_ros.fleet.record import DONE, PARTIAL, Inputs, finished, read_record
from come_ros.fleet.sources import Source
from come_ros.fleet.work import FAILED, FULL, HUNG, KILLED, STOPPED, THREADS, Work, run

HERE = Path(__file__).parent


def work(tmp_path: Path, what: str, *more: str, name: str = "r", **fields: object) -> Work:
    source = Source(str(tmp_path / "in" / name))
    if not source.place.exists():
        write_images(source.place, 1)
    fields = {"folder": str(HERE), **fields}
    inputs = Inputs(__version__, source.path, source.path)
    return Work(name, "commands", (what, source.path, *more), source, inputs, str(tmp_path / "out"), **fields)  # type: ignore[arg-type]


def left(tmp_path: Path) -> list[str]:
    """What of unfinished work is there."""
    return sorted(path.name for path in (tmp_path / "out" / ".fleet").iterdir())


def test_results_come_with_a_record_of_what_made_them(tmp_path: Path) -> None:
    unit = work(tmp_path, "good")
    outcome = run(unit, node="n1")
    assert (outcome.state, outcome.reason, outcome.node) == (DONE, "", "n1") and outcome.seconds > 0
    record = read_record(tmp_path / "out" / "r")
    assert record is not None and record.state == DONE and record.inputs.source == unit.source.path
    assert set(record.made) == {"map.ply", "metrics.json", "words", "fleet.json"} and len(record.inputs.content) == 32
    assert "working on" in unit.log.read_text() and left(tmp_path) == []


def test_a_fleets_folder_names_its_finished_recordings(tmp_path: Path) -> None:
    for what, name in (("good", "b"), ("damaged", "c"), ("good", "a")):
        run(work(tmp_path, what, name=name))
    assert finished(tmp_path / "out") == [str(tmp_path / "in" / name) for name in "ab"]
    assert finished(tmp_path / "in") == finished(tmp_path / "nowhere") == []


def test_what_is_partial_is_kept_in_the_last_attempt_only(tmp_path: Path) -> None:
    assert run(work(tmp_path, "damaged", last=False)).state == PARTIAL
    assert not (tmp_path / "out" / "r").exists() and left(tmp_path) == []


def test_a_damaged_recording_gives_what_can_be_made_of_it(tmp_path: Path) -> None:
    outcome = run(work(tmp_path, "damaged"))
    assert outcome.state == PARTIAL and "half of it" in outcome.reason
    record = read_record(tmp_path / "out" / "r")
    assert record is not None and record.state == PARTIAL and record.reason == outcome.reason


@pytest.mark.parametrize(
    ("what", "state", "reason"),
    [
        ("wrong", FAILED, "nothing to read"),
        ("full", FULL, "No space left"),
        ("killed", KILLED, "SIGKILL"),
        ("touches", FAILED, "written to while it was read"),
    ],
)
def test_nothing_appears_where_it_fails(tmp_path: Path, what: str, state: str, reason: str) -> None:
    outcome = run(work(tmp_path, what))
    assert outcome.state == state and reason in outcome.reason
    assert not (tmp_path / "out" / "r").exists() and left(tmp_path) == []


def test_a_hang_is_killed_and_so_is_what_is_no_longer_wanted(tmp_path: Path) -> None:
    outcome = run(work(tmp_path, "hangs", timeout_s=0.3))
    assert outcome.state == HUNG and "--timeout 0.3" in outcome.reason
    asked = threading.Event()
    asked.set()
    assert run(work(tmp_path, "hangs"), asked.is_set).state == STOPPED


def test_new_results_replace_the_old_ones_and_nothing_else(tmp_path: Path) -> None:
    unit = work(tmp_path, "good")
    run(unit)
    place = tmp_path / "out" / "r"
    (place / "mine.txt").write_text("by hand")
    (place / "map.ply").write_text("old")
    assert run(unit).state == DONE
    assert (place / "map.ply").read_text() != "old" and (place / "mine.txt").read_text() == "by hand"


def test_a_failure_leaves_the_old_results_as_they_are(tmp_path: Path) -> None:
    run(work(tmp_path, "good"))
    before = (tmp_path / "out" / "r" / "fleet.json").read_bytes()
    assert run(work(tmp_path, "killed")).state == KILLED
    assert (tmp_path / "out" / "r" / "fleet.json").read_bytes() == before


def test_the_number_of_threads_is_that_of_the_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS, "7")  # as a worker of Ray has it
    for wanted, name in ((None, "a"), ("3", "b")):
        assert run(work(tmp_path, "good", name=name, environment={THREADS: wanted})).state == DONE
        assert (tmp_path / "out" / name / "map.ply").read_text() == (wanted or "none")


def test_a_relative_path_starts_in_the_fleets_folder_not_in_that_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in" / "r", 1)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1])]))
    source = Source("in/r")
    words, inputs = ("good", source.path), Inputs(__version__, source.path)
    outcome = run(Work("r", "commands", words, source, inputs, str(tmp_path / "out"), folder=str(tmp_path)))
    assert (outcome.state, outcome.reason) == (DONE, "")


def test_another_version_and_a_folder_that_is_not_there_are_told(tmp_path: Path) -> None:
    unit = work(tmp_path, "good", folder=str(tmp_path / "nowhere"))
    assert "no folder" in run(unit).reason
    source = unit.source
    other = Work("r", "commands", unit.words, source, Inputs("0.0.1", source.path), unit.out, folder=str(HERE))
    assert f"this node has come_ros {__version__}" in run(other).reason


def test_a_source_that_is_gone_is_a_failure(tmp_path: Path) -> None:
    unit = work(tmp_path, "good")
    for path in unit.source.place.iterdir():
        path.unlink()
    unit.source.place.rmdir()
    assert run(unit).state == FAILED


def test_a_command_ends_with_the_worker_that_started_it(tmp_path: Path) -> None:
    """Killed, so that it cannot end the command itself."""
    unit = work(tmp_path, "hangs")
    words = ("import pathlib, test_work as t", f"t.run(t.work(pathlib.Path({str(tmp_path)!r}), 'hangs'))")
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), str(HERE)])
    worker = subprocess.Popen([sys.executable, "-c", "\n".join(words)], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 60
    while not unit.log.exists() or "working on" not in unit.log.read_text():
        assert time.monotonic() < deadline and worker.poll() is None
        time.sleep(0.05)
    own = [
        int(p.name)
        for p in Path("/proc").iterdir()
        if p.name.isdigit() and _command(p).count(str(tmp_path)) and b"-c" not in _raw(p)
    ]
    worker.kill()
    worker.wait()
    assert own
    while any(Path("/proc", str(pid)).exists() and _command(Path("/proc", str(pid))) for pid in own):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _raw(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


def _command(path: Path) -> str:
    return _raw(path).replace(b"\0", b" ").decode(errors="replace")


def test_a_child_whose_parent_is_gone_does_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "come_ros.fleet.child", "1", "commands"], cwd=HERE.parents[1], check=False
    )
    assert done.returncode == 128 + signal.SIGKILL


def test_a_reason_is_the_commands_own_line_not_its_progress_bar(tmp_path: Path) -> None:
    assert run(work(tmp_path, "wrong")).reason == "come_ros bag: nothing to read: give something else"
    assert len(fleet_work.Outcome("x").reason) == 0
