"""What `come_ros fleet` makes of workers, nodes and drivers that die, hangs, damage, and a full disk: results/fleet.{json,md}.

    .venv/bin/python test/benchmark/robustness/fleet.py [--only node,driver] [--folder DIR]

Needs Ray (extra `fleet`). A Ray cluster of three nodes on this machine, on the loopback interface: the head runs no tasks, the two others
one at a time. The fleet is a process of its own, the real command, and so is `come_ros bag`, with a stand-in for the model. In each case
something is broken while a recording is worked on. Checked is what is there in the end: the state of every recording, whether its results
are those of `come_ros bag` alone, byte by byte, how often each was started, and what is left of files and processes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

import psutil  # noqa: E402
from benchmark.stamped import write_result  # noqa: E402
from recordings import write, write_images  # noqa: E402

from come_ros.fleet.ray_executor import SESSIONS  # noqa: E402

RESULTS, NAME = Path(__file__).with_name("results"), "fleet"
COME_ROS = (sys.executable, "-m", "come_ros.tools.cli")
FAKE = (
    "--set", "backbone=fake", "--set", "window.size=4", "--set", "keyframe.mode=every", "--set", "threads=1", "--set",
    "input.max_side=112", "--no-view", "--no-bag", "--fps", "10",
)  # fmt: skip
FLEET = ("--cpus-per-task", "1", "--memory-per-task", "300")
IMAGES = 24
PATIENCE_S = 600.0
NAMES = ("r1", "r2", "r3", "r4")
UNLIKE = {"metrics.json", "overview.png"}  # times, and a picture with them


def private() -> None:
    """Ray of this process and of all that it starts: on the loopback interface, with a key of its own."""
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip


class Nodes:
    """A cluster of a head without tasks and of `count` nodes with one core each. A context manager."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        from ray.cluster_utils import Cluster

        os.environ["RAY_TMPDIR"] = str(folder)
        common = {"object_store_memory": 80 << 20, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **common})
        self.nodes = [self.cluster.add_node(num_cpus=1, **common) for _ in range(count)]
        self.address = self.cluster.address

    def kill(self, index: int) -> None:
        """As if its machine had lost power."""
        self.cluster.remove_node(self.nodes[index], allow_graceful=False)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()


@dataclass
class Found:
    """What became of a case. states, attempts: by recording. starts: how often its command was started. same: whether its results are those
    of `come_ros bag` alone; None where there are none. left: files and processes that should be gone. wrong: what is not as it must be."""

    case: str
    code: int
    seconds: float
    states: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    same: dict[str, bool | None] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """wanted: states of the recordings in the end. among: states, all of which some recordings have, and no others. code: exit code of the
    fleet. happen: breaks something while it runs, and returns the process to wait for. starts: how many recordings may be started more
    than once, at least one. local: without the cluster."""

    name: str
    text: str
    happen: Callable[[Run], subprocess.Popen[bytes]]
    wanted: dict[str, str]
    code: int = 0
    among: tuple[str, ...] = ()
    starts: int = 0
    words: tuple[str, ...] = ()
    local: bool = False
    source: str = "in"


class Run:
    """A case that runs, in a folder of its own."""

    def __init__(self, folder: Path, case: Case, nodes: Nodes | None) -> None:
        self.folder, self.case, self.nodes = folder, case, nodes
        self.out = folder / "out" / case.name
        self.out.parent.mkdir(exist_ok=True)
        self.pids: list[int] = []  # of drivers

    def start(self) -> subprocess.Popen[bytes]:
        """The fleet."""
        where = ("--workers", "1") if self.nodes is None else ("--address", self.nodes.address)
        command = [*COME_ROS, "fleet", self.case.source, "-o", str(self.out), *where, *FLEET, *FAKE, *self.case.words]
        with open(self.folder / f"{self.case.name}.log", "ab") as log:
            driver = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        self.pids.append(driver.pid)
        return driver

    def command(self, driver: subprocess.Popen[bytes], name: str = "") -> psutil.Process:
        """Waits until `come_ros bag` works on that recording (any), after it has loaded."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if driver.poll() is not None:
                raise RuntimeError(
                    f"{self.case.name}: the fleet ended with {driver.returncode} before anything was broken"
                )
            for process in self.commands():
                words = _words(process)
                at = words[words.index("-o") + 1] if "-o" in words else ""
                if Path(at).name.startswith(name) and list(Path(at).glob(".part-*")):
                    return process
            time.sleep(0.02)
        raise RuntimeError(f"{self.case.name}: nothing was started")

    def commands(self) -> list[psutil.Process]:
        """All `come_ros bag` of this case."""
        return [
            p
            for p in psutil.process_iter()
            if "come_ros.fleet.child" in (w := _words(p)) and str(self.out) in " ".join(w)
        ]


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


# What happens


def nothing(run: Run) -> subprocess.Popen[bytes]:
    return run.start()


def worker_killed(run: Run) -> subprocess.Popen[bytes]:
    """Ray's worker, while its command runs."""
    driver = run.start()
    run.command(driver).parent().kill()
    return driver


def command_killed(run: Run) -> subprocess.Popen[bytes]:
    """`come_ros bag` itself, as the kernel does where memory is short."""
    driver = run.start()
    run.command(driver).kill()
    return driver


def hang(run: Run) -> subprocess.Popen[bytes]:
    """A command that stands still."""
    driver = run.start()
    run.command(driver).suspend()
    return driver


def node_killed(run: Run) -> subprocess.Popen[bytes]:
    """A node, while a command runs on it."""
    driver = run.start()
    worker = run.command(driver).parent()
    raylets = {node.all_processes["raylet"][0].process.pid: i for i, node in enumerate(run.nodes.nodes)}  # type: ignore[union-attr]
    index = next(raylets[p.pid] for p in worker.parents() if p.pid in raylets)
    run.nodes.kill(index)  # type: ignore[union-attr]
    return driver


def driver_killed(run: Run) -> subprocess.Popen[bytes]:
    """The driver, while commands run after the first recording is done; then it is started again."""
    driver = run.start()
    while not list(run.out.glob("*/fleet.json")):
        time.sleep(0.02)
    run.command(driver)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 60
    while run.commands() and time.monotonic() < deadline:
        time.sleep(0.05)
    if run.commands():
        raise RuntimeError("commands of a driver that was killed are still running")
    return run.start()


def interrupted(run: Run) -> subprocess.Popen[bytes]:
    driver = run.start()
    while not list(run.out.glob("*/fleet.json")):
        time.sleep(0.02)
    run.command(driver)
    driver.send_signal(signal.SIGINT)
    return driver


def full_disk(run: Run) -> subprocess.Popen[bytes]:
    """The output folder is a disk with room for the first results only."""
    run.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", str(run.out)], check=True)
    return run.start()


DONE = dict.fromkeys(NAMES, "done")
CASES = (
    Case("nothing", "nothing is broken", nothing, DONE),
    Case("worker", "Ray's worker is killed", worker_killed, DONE, starts=1),
    Case("command", "`come_ros bag` is killed, as for want of memory", command_killed, DONE, starts=1),
    Case("hang", "`come_ros bag` stands still", hang, DONE, starts=1, words=("--timeout", "60")),
    Case("node", "a node dies", node_killed, DONE, starts=1),
    Case("driver", "the driver is killed, and started again", driver_killed, DONE, starts=2),
    Case("local", "the same, with a Ray of its own", driver_killed, DONE, starts=1, local=True),
    Case(
        "damaged", "a damaged recording, and what is none", nothing,
        {"good": "done", "cut": "partial", "noise": "failed"}, 1, starts=2, source="damaged",
    ),
    Case("stopped", "Ctrl-C", interrupted, {}, 130, ("done", "stopped"), local=True),
    Case("full", "the disk is full", full_disk, {}, 1, ("done", "disk full"), words=("--min-free", "1"), local=True),
)  # fmt: skip


# What is there in the end


def finished(run: Run, driver: subprocess.Popen[bytes], begun: float, alone: Path) -> Found:
    case = run.case
    found = Found(case.name, driver.wait(PATIENCE_S), time.monotonic() - begun)
    rows = {row["name"]: row for row in json.loads((run.out / "fleet.json").read_text())["recordings"]}
    for name, row in sorted(rows.items()):
        found.states[name], found.attempts[name] = row["state"], row["attempts"]
        found.reasons[name] = " ".join(row["reason"].split())[:120]
        log = run.out / "logs" / f"{name}.log"
        found.starts[name] = log.read_text(errors="replace").count("\n--- ") if log.exists() else 0
        have = (run.out / name / "fleet.json").exists()
        found.same[name] = same(run.out / name, alone / name) if have and (alone / name).exists() else None
        if row["state"] == "done" and not found.same[name]:
            found.wrong.append(f"{name} is done, but not as `come_ros bag` alone makes it")
        if row["state"] not in ("done", "partial") and (run.out / name).exists():
            found.wrong.append(f"{name} is {row['state']}, but has results")
    found.left += [f"process {_words(p)[-1]}" for p in run.commands()]
    found.left += [str(path.relative_to(run.out)) for path in run.out.rglob(".*")]
    for session in (f"{SESSIONS}{pid}_" for pid in run.pids):
        found.left += sorted({Path(_words(p)[0]).name for p in psutil.process_iter() if session in " ".join(_words(p))})
        found.left += [path.name for path in Path(tempfile.gettempdir()).glob(f"{session}*")]
    if found.code != case.code:
        found.wrong.append(f"exit code {found.code} instead of {case.code}")
    for name, state in case.wanted.items():
        if found.states.get(name) != state:
            found.wrong.append(f"{name} is {found.states.get(name)} instead of {state}")
    if case.among and set(found.states.values()) != set(case.among):
        found.wrong.append(f"states are not {' and '.join(case.among)}")
    again = sum(max(0, n - 1) for n in found.starts.values())
    if again > case.starts or (case.starts and not again):
        found.wrong.append(f"{again} recordings were started again, expected {min(1, case.starts)} to {case.starts}")
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same results, byte by byte."""
    return digests(one) == digests(other)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in UNLIKE | {"fleet.json"} and ".part" not in path.name
    }


def prepared(folder: Path) -> Path:
    """Writes the recordings, unless they are there. Returns the folder with the results of `come_ros bag` alone."""
    if (folder / "alone").exists():
        return folder / "alone"
    for i, name in enumerate(NAMES):
        write_images(folder / "in" / name, IMAGES + i, size=(160, 120))
    (folder / "damaged").mkdir()
    write(folder / "good", 30)
    whole = next((folder / "good").glob("*.mcap"))
    shutil.copy(whole, folder / "damaged" / "good.mcap")
    (folder / "damaged" / "cut.mcap").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (folder / "damaged" / "noise.mcap").write_bytes(b"\x89MCAP0\r\n" + os.urandom(5000))
    for source, name in (*((f"in/{name}", name) for name in NAMES), ("damaged/good.mcap", "good")):
        words = [w for w in FAKE if name != "good" or w not in ("--fps", "10")]
        command = [*COME_ROS, "bag", source, "-o", str(folder / "alone" / name), *words]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "alone"


def cases(wanted: list[str]) -> Iterator[Case]:
    for case in CASES:
        if not wanted or case.name in wanted:
            yield case


def measure(folder: Path, wanted: list[str]) -> list[Found]:
    alone, out = prepared(folder), []
    for case in cases(wanted):
        print(f"{case.name}: {case.text}", flush=True)
        if case.source == "damaged":  # bags have their own times
            global FAKE
            kept, FAKE = FAKE, FAKE[:-2]
        with contextlib.ExitStack() as stack:
            temp = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet_ray_", ignore_cleanup_errors=True))
            )
            nodes = None if case.local else stack.enter_context(Nodes(temp))
            run = Run(folder, case, nodes)
            stack.callback(lambda run=run: [p.kill() for p in run.commands()])
            begun = time.monotonic()
            try:
                found = finished(run, case.happen(run), begun, alone)
            except subprocess.CalledProcessError as error:
                found = Found(case.name, -1, 0.0, wrong=[f"not run: {error}"])
            if os.path.ismount(run.out):
                subprocess.run(["umount", str(run.out)], check=False)
        if case.source == "damaged":
            FAKE = kept
        print(
            f"  {found.states} {found.starts} {'; '.join(found.wrong + found.left) or 'as it must be'} ({found.seconds:.0f} s)",
            flush=True,
        )
        out.append(found)
    return out


def table(found: list[Found]) -> str:
    texts = {case.name: case.text for case in CASES}
    lines = [
        "| what happens | exit code | recordings in the end | started | same bytes as `come_ros bag` | left over | |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found:
        states = [f"{list(each.states.values()).count(s)} {s}" for s in dict.fromkeys(each.states.values())]
        compared = [value for value in each.same.values() if value is not None]
        lines.append(
            f"| {texts[each.case]} | {each.code} | {', '.join(states)} | {', '.join(map(str, each.starts.values()))} times | "
            f"{sum(compared)} of {len(compared)} | {', '.join(each.left) or 'nothing'} | {'; '.join(each.wrong) or 'as it must be'} |"
        )
    reasons = sorted({f"{each.case}: {text}" for each in found for text in each.reasons.values() if text})
    return "\n".join([
        "# Failures of a fleet", "",
        f"Four recordings of {IMAGES} to {IMAGES + 3} images (damaged: three bags), one at a time on each of two nodes. Written by",
        "`python test/benchmark/robustness/fleet.py`. \"Started\" counts the commands of each recording, of all attempts.", "",
        *lines, "", "What is reported:", "", *(f"- {text}" for text in reasons), "",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases, separated by commas; then nothing is written")
    parser.add_argument("--folder", type=Path, help="to work in, and to keep")
    options = parser.parse_args()
    private()
    wanted = [name for name in options.only.split(",") if name]
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet_")))
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(folder.resolve(), wanted)
    if not wanted:
        data: dict[str, Any] = {"images": IMAGES, "cases": [asdict(each) for each in found]}
        write_result(RESULTS, NAME, data, table(found))
    print(table(found))
    return int(any(each.wrong or each.left for each in found))


if __name__ == "__main__":
    sys.exit(main())
