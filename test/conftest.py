"""What all tests share: DDS kept on this machine, the recorded data, and a last look that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from marks import given_to

from come_ros.ros.environment import SHARED_MEMORY, isolated_dds_environment, shared_memory
from come_ros.threads import spin_briefly

ROOT = Path(__file__).resolve().parents[1]
# The same examples in every run, so that a change is judged by what it changed; `pytest --hypothesis-profile=search` looks for new ones.
# Machines under load are slow, not wrong: nothing fails because it took long.
UNHURRIED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("come_ros", derandomize=True, **UNHURRIED)
hypothesis.settings.register_profile("search", **UNHURRIED)
PROGRAMS = {"test_soak", "test_demo", "test_bench", "test_doctor"}  # of the tests over DDS: about half, by time
SESSION = "COME_ROS_TEST_SESSION"  # every process started by a test inherits it, however far its parents are gone


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: one DDS domain and one log folder for this process and all that it starts.

    With pytest-xdist, each of its workers is such a process.
    """
    spin_briefly()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are small: threads would mostly wait for each other
    log_dir = tempfile.mkdtemp(prefix="come_ros_test_log_")
    config.add_cleanup(lambda: shutil.rmtree(log_dir, ignore_errors=True))
    os.environ.update(isolated_dds_environment(log_dir=log_dir))
    os.environ[SESSION] = uuid.uuid4().hex
    if not config.getoption("hypothesis_profile", None):
        hypothesis.settings.load_profile("come_ros")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks that fixtures give; and what goes together to a worker of pytest-xdist (`--dist loadgroup`): a file, so that its fixtures are
    made once, and files that talk over DDS.

    Those mostly wait, so they come first, and in two groups: each worker has a domain of its own, but within one no two nodes are looked
    at by tests that know of one only.
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
    items.sort(key=lambda item: item.path not in over_dds)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded data (real/, parity/): data/ in $COME_ROS_SHARED, else in `shared` beside the checkout."""
    folder = Path(os.environ.get("COME_ROS_SHARED") or ROOT.parent / "shared") / "data"
    if not folder.is_dir():
        reason = f"no recorded data at {folder}: set COME_ROS_SHARED to the folder that holds data/"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session", autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Set up first, so torn down last: fails if a process of this session still runs or left shared memory behind."""
    before = _dds_memory()
    yield
    deadline = time.monotonic() + 20.0  # what was just told to end may need a moment
    while True:
        processes = _session_processes()
        memory = sorted(name for name in _dds_memory() - before if not _in_use(name))
        if time.monotonic() > deadline or not (processes or memory):
            break
        time.sleep(0.2)
    assert not processes, f"processes still running after the tests: {processes}"
    assert not memory, f"shared memory left in {SHARED_MEMORY} by a process that did not end in order: {memory}"


def _dds_memory() -> set[str]:
    # each segment has a lock (_el) and perhaps a semaphore beside it, which come and go with it
    return {p.name for p in shared_memory() if not p.name.endswith("_el")}


def _session_processes() -> list[str]:
    """Living processes other than this one that carry our session's mark, as 'pid command line'."""
    mark = f"{SESSION}={os.environ[SESSION]}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if mark in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                # multiprocessing's own server ends with this process, by design
                if command and "multiprocessing.resource_tracker" not in command:
                    found.append(f"{entry.name} {command[:200]}")
    return found


def _in_use(name: str) -> bool:
    """Whether a living process has the segment mapped: other DDS programs may run on this machine during the tests."""
    path = os.fsencode(SHARED_MEMORY / name)
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path in (entry / "maps").read_bytes():
                return True
    return False
