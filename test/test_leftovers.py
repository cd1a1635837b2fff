"""The last look after the tests: it finds what this session left, and nothing of anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import leftovers
import pytest
from leftovers import Leftovers

MAPS = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    held = mmap.mmap(file.fileno(), 100)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for /dev/shm, with two segments in it."""
    for name in ("fastdds_ours", "fastdds_ours_el", "fastrtps_others", "fastrtps_others_el"):
        (tmp_path / name).write_bytes(bytes(100))
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(leftovers, "shared_memory", lambda: set(tmp_path.iterdir()))
    return tmp_path


def process(file: Path, mark: str) -> subprocess.Popen[str]:
    """A process with `mark` in its environment that has mapped `file`."""
    started = subprocess.Popen(
        [sys.executable, "-c", MAPS, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "MARK": mark},
    )  # fmt: skip
    assert started.stdout is not None and started.stdout.readline() == "mapped\n"
    return started


def test_only_memory_of_this_session_counts_and_only_once_nobody_uses_it(memory: Path, mark: str) -> None:
    ours, others = process(memory / "fastdds_ours", mark), process(memory / "fastrtps_others", "another session")
    watch = Leftovers("MARK", mark)
    assert watch.processes().keys() == {ours.pid}
    assert watch.memory() == set(), "it is in use"
    for each in (ours, others):
        each.kill()
        each.communicate()
    assert watch.processes() == {} and watch.memory() == {"fastdds_ours"}
    watch.remove()
    assert watch.memory() == set()
    assert sorted(p.name for p in memory.iterdir()) == ["fastrtps_others", "fastrtps_others_el"]


def test_memory_is_noted_while_the_watch_runs(memory: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "PERIOD_S", 0.01)
    watch = Leftovers("MARK", mark)
    watch.start()
    ours = process(memory / "fastdds_ours", mark)
    while not watch._mapped:
        time.sleep(0.01)
    ours.kill()
    ours.communicate()
    watch.stop()
    assert watch.memory() == {"fastdds_ours"}


def test_a_process_that_outlives_the_tests_is_found_and_ended(memory: Path, mark: str) -> None:
    ours = process(memory / "fastdds_ours", mark)
    Leftovers("MARK", mark).remove()
    assert ours.wait(60) != 0
    ours.communicate()


SUITE = """
import os, subprocess, sys
import pytest
def test_that_leaves_a_process():
    subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    assert not {fails}
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_leftovers_of_a_failed_test_make_no_second_error(tmp_path: Path, fails: bool) -> None:
    here = Path(__file__).parent
    conftest = (here / "conftest.py").read_text().replace("+ 20.0", "+ 1.0")
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_it.py").write_text(SUITE.format(fails=fails))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), f"--rootdir={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(here), str(here.parent)))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "processes still running after the tests" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert ("1 failed" in last and "error" not in last) if fails else ("1 passed" in last and "1 error" in last), last
