"""Ray itself, on this machine: test/benchmark/robustness/fleet.py has its failures. Starting it takes some ten seconds."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from recordings import write_images

from come_ros import __version__

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed (80 MB): pip install 'come_ros[fleet]'", allow_module_level=True)

from come_ros.fleet.loop import Job, Rules, run_all
from come_ros.fleet.ray_executor import SESSIONS, FleetError, Needs, session
from come_ros.fleet.record import DONE, Inputs
from come_ros.fleet.sources import Source
from come_ros.fleet.work import KILLED, THREADS, Work


def job(tmp_path: Path, what: str, *more: str) -> Job:
    source = Source(str(write_images(tmp_path / "in" / what, 1)))
    inputs = Inputs(__version__, source.path)
    words, environment = (what, source.path, *more), {THREADS: None}
    work = Work(
        what,
        "commands",
        words,
        source,
        inputs,
        str(tmp_path),
        folder=str(Path(__file__).parent),
        environment=environment,
    )
    return Job(what, ((work,),))


def ours() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.mark.slow
def test_tasks_run_on_the_loopback_interface_and_nothing_is_left(tmp_path: Path) -> None:
    before, handler = set(ours()), signal.getsignal(signal.SIGTERM)
    with session("local", 1, Needs(1.0, memory=200 << 20)) as executor:
        assert signal.getsignal(signal.SIGTERM) == handler  # Ray would take it
        jobs = [job(tmp_path, "good"), job(tmp_path, "killed"), job(tmp_path, "flaky", "1")]
        ended = run_all(jobs, executor, Rules(1, 0), tmp_path, lambda: False)
        assert {name: (e.state, e.attempts) for name, e in ended.items()} == {
            "good": (DONE, 1), "killed": (KILLED, 2), "flaky": (DONE, 2),
        }  # fmt: skip
        assert (tmp_path / "good" / "map.ply").read_text() == "none"  # not what Ray sets for its workers
        listening = {
            c.laddr.ip for p in set(ours()) - before for c in p.net_connections() if c.status == psutil.CONN_LISTEN
        }
        assert listening and all(ip.endswith("127.0.0.1") for ip in listening)
        with pytest.raises(FleetError, match="no node can run a task that takes 99 cores"):
            type(executor)(executor._ray, Needs(99.0))
    deadline = time.monotonic() + 30
    while set(ours()) - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not set(ours()) - before and signal.getsignal(signal.SIGTERM) == handler
    assert not list(Path(tempfile.gettempdir()).glob(f"{SESSIONS}{os.getpid()}_*"))
    assert "RAY_AUTH_TOKEN" not in os.environ
