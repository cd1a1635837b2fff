"""What all tests share: DDS kept on this machine, the recorded data, and a last look that nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from leftovers import Leftovers
from marks import given_to

from come_ros.ros.environment import SHARED_MEMORY, isolated_dds_environment
from come_ros.threads import spin_briefly

ROOT = Path(__file__).resolve().parents[1]
# The same examples in every run, so that a change is judged by what it changed; `pytest --hypothesis-profile=search` looks for new ones.
# Machines under load are slow, not wrong: nothing fails because it took long.
UNHURRIED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("come_ros", derandomize=True, **UNHURRIED)
hypothesis.settings.register_profile("search", **UNHURRIED)
PROGRAMS = {"test_soak", "test_demo", "test_bench", "test_doctor"}  # of the tests over DDS: one of their two groups
UNTIL = "COME_ROS_SLOW_TESTS_UNTIL"  # seconds since the epoch, set by .ci/run, which may take 15 minutes
SESSION = "COME_ROS_TEST_SESSION"  # every process started by a test inherits it, however far its parents are gone


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: one DDS domain and one log folder for this process and all that it starts.

    With pytest-xdist, each of its workers is such a process.
    """
    spin_briefly()
    _take_signals()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are small: threads would mostly wait for each other
    log_dir = tempfile.mkdtemp(prefix="come_ros_test_log_")
    config.add_cleanup(lambda: shutil.rmtree(log_dir, ignore_errors=True))
    os.environ.update(isolated_dds_environment(log_dir=log_dir))
    os.environ[SESSION] = uuid.uuid4().hex
    if not config.getoption("hypothesis_profile", None):
        hypothesis.settings.load_profile("come_ros")


def _take_signals() -> None:
    """nohup and background jobs of a script ignore SIGHUP and SIGINT, and so would all processes that tests start and interrupt."""
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            signal.signal(signal.SIGHUP, lambda *_: None)  # the tests go on; what they start does not inherit a handler


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks that fixtures give; and what goes together to a worker of pytest-xdist (`--dist loadgroup`): a file, so that its fixtures are
    made once, and files that talk over DDS.

    Those mostly wait, so they come first, and in two groups: each worker has a domain of its own, but within one no two nodes are looked
    at by tests that know of one only. Then the files with the most slow tests: a long one that began last would run alone. In .ci/run
    files without such tests come before all of these.
    """
    for item in items:
        for mark in set(given_to(item)):
            item.add_marker(mark)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    over_dds = {item.path for item in items if item.get_closest_marker("ros")}
    for item in items:
        file = item.path.relative_to(ROOT).as_posix()
        group = "" if item.path not in over_dds else "programs" if item.path.stem in PROGRAMS else "node"
        item.add_marker(pytest.mark.xdist_group(group or file))
    slow = Counter(item.path for item in items if item.path not in over_dds and item.get_closest_marker("slow"))
    short_first = UNTIL in os.environ  # then what may be skipped comes last
    items.sort(
        key=lambda item: (
            short_first and (item.path in over_dds or slow[item.path] > 0), item.path not in over_dds, -slow[item.path],
        )
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """On a machine too slow for all tests in the time of CI, those over DDS and slow ones that begin too late are skipped, aloud."""
    long = item.get_closest_marker("ros") or item.get_closest_marker("slow")
    if long and time.time() > float(os.environ.get(UNTIL) or "inf"):
        pytest.skip("the time that CI has for slow tests is over on this machine: `make test` runs them all")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded data (real/, parity/): data/ in $COME_ROS_SHARED, else in `shared` next to the checkout."""
    folder = Path(os.environ.get("COME_ROS_SHARED") or ROOT.parent / "shared") / "data"
    if not folder.is_dir():
        reason = f"no recorded data at {folder}: set COME_ROS_SHARED to the folder that holds data/"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session", autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up first, so torn down last: fails if a process of this session still runs or left shared memory behind.

    A test that failed may well leave something, and says itself what went wrong. What it left is then removed with a warning, and
    no further error is made of it.
    """
    leftovers = Leftovers(SESSION, os.environ[SESSION])
    leftovers.start()
    yield
    deadline = time.monotonic() + 20.0  # what was just told to end may need a moment
    while (leftovers.processes() or leftovers.memory()) and time.monotonic() < deadline:
        time.sleep(0.2)
    leftovers.stop()
    processes, memory = leftovers.processes(), sorted(leftovers.memory())
    leftovers.remove()
    found = [f"processes still running after the tests: {processes}"] if processes else []
    found += (
        [f"shared memory left in {SHARED_MEMORY} by a process that crashed or was killed: {memory}"] if memory else []
    )
    if found and request.session.testsfailed:
        warnings.warn("; ".join(found), stacklevel=1)
    else:
        assert not found, "; ".join(found)
