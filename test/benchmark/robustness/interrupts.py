"""How long each command takes to end after a signal, stage by stage, and what it leaves: results/interrupts.{json,md}.

    .venv/bin/python test/benchmark/robustness/interrupts.py [--only bag,train] [--sigterm]

Each command is started again for each moment, a number of seconds of its CPU time after the start, so that a busy machine
interrupts it in the same stage as an idle one. Measured are seconds, and seconds of CPU time of all its processes, until it has ended.
Bound: 3 s on an idle machine; on a busy one 3 s of CPU time.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import contextlib
import json

from benchmark.stamped import write_result

from come_ros.tools.demo import render_room

RESULTS, NAME = Path(__file__).with_name("results"), "interrupts"
BOUND_S, PATIENCE_S = 3.0, 60.0
COME_ROS = (sys.executable, "-m", "come_ros.tools.cli")


@dataclass(frozen=True)
class Case:
    """moments: s of CPU time after the start at which it is interrupted, each in a run of its own."""

    name: str
    arguments: tuple[str, ...]
    moments: tuple[float, ...] = (0.02, 0.5, 1.2, 3.0, 6.0, 12.0)


def cases(images: Path) -> list[Case]:
    """One for each command and each long stage. {out}: a fresh folder. Next to the images lie results of `come_ros bag`, see
    make_results, and a rendered room."""
    results = str(results_of(images))
    bag = ("bag", str(images), "-o", "{out}", "--fps", "10")
    scored = (*bag, "--max-images", "40", "--gt", str(images.with_suffix(".tum")))
    adapt = ("adapt", "--source", str(room_of(images)), "-o", "{out}", "--set", "threads=1")
    frontier = ("eval", "rooms", "--windows", "1", "--frontier", "-o", "{out}")
    return [
        Case("bag", (*bag, "--set", "keyframe.mode=every")),
        Case("bag --compare", (*bag, "--set", "accelerator.name=come", "--compare", "--set", "keyframe.mode=every")),
        Case("bag --gt", scored, (8.0, 12.0, 16.0)),
        Case("demo", ("demo", "-o", "{out}", "--frames", "100"), (0.02, 0.5, 3.0, 8.0, 14.0, 25.0)),
        Case("node", ("node", "--set", "device=cpu"), (0.02, 0.4, 0.8, 1.5, 3.0)),
        Case("eval", ("eval", "rooms", "--windows", "64", "-o", "{out}")),
        Case("eval --frontier", frontier, (3.0, 10.0, 30.0, 60.0)),
        Case("bench", ("bench", "--frames", "2", "16", "--json", "{out}/bench.json", "--repeats", "60")),
        Case("bench --stream", ("bench", "--stream", "--repeats", "200", "--json", "{out}/bench.json")),
        Case("bench --pipeline", ("bench", "--pipeline", "--json", "{out}/bench.json", "--repeats", "2000")),
        Case("distill", ("distill", "-o", "{out}", "--steps", "500"), (0.02, 0.5, 1.2, 3.0, 8.0, 16.0, 25.0)),
        Case("train", ("train", "-o", "{out}", "--minutes", "5"), (0.02, 0.5, 1.2, 3.0, 8.0, 16.0, 30.0, 60.0)),
        Case("train (end)", ("train", "-o", "{out}", "--steps", "2"), (15.0, 20.0, 25.0)),
        Case("train --variant tiny2", ("train", "--variant", "tiny2", "-o", "{out}"), (1.2, 5.0, 15.0, 30.0)),
        Case("adapt", adapt, (0.02, 0.5, 1.2, 3.0, 8.0, 16.0, 30.0, 45.0)),
        Case("adapt (end)", (*adapt, "--steps", "20"), (45.0, 52.0, 58.0)),
        Case("train-pace", ("train-pace", "-o", "{out}", "--minutes", "5"), (0.02, 0.5, 1.2, 3.0, 8.0, 16.0, 30.0)),
        Case("calibrate", ("calibrate", "-o", "{out}/plan.json", "--windows", "500")),
        Case("doctor", ("doctor",), (0.02, 0.5, 1.2, 2.5, 4.0, 6.0)),
        Case(
            "export", ("export", results, "--to", "depth", "colmap", "glb", "pcd", "-o", "{out}"), (0.02, 0.5, 1.2, 3.0)
        ),
        Case("view", ("view", results, "--port", "0"), (0.02, 0.5, 1.2, 3.0)),
        Case("view --save", ("view", results, "--save", "{out}/page"), (0.02, 0.5, 1.2, 3.0)),
        Case("params", ("params", "list"), (0.02, 0.1, 0.2)),
        Case("play", ("play", str(images), "--fps", "10", "--loop", "--no-wait"), (0.02, 0.4, 0.8, 1.5)),
        Case("monitor", ("monitor", "--node", "/nowhere", "--timeout", "30"), (0.02, 0.3, 0.5)),
    ]


@dataclass(frozen=True)
class Row:
    """One run. moment, seconds, cpu: s of CPU time before the signal; s, and s of CPU time, from there to the end; NaN if it had ended
    before. files: in its output folder."""

    case: str
    moment: float
    signal: str
    seconds: float
    cpu: float
    code: int
    children_left: int
    traceback: bool
    said: str
    files: tuple[str, ...]
    load: float
    commit: str

    @property
    def late(self) -> bool:
        idle = self.load < 1.0
        return (self.seconds if idle else self.cpu) > BOUND_S


def interrupted(case: Case, moment: float, number: int, folder: Path, commit: str) -> Row:
    """Seconds until it had ended, exit code, last line and files."""
    out = folder / "out"
    out.mkdir()
    arguments = [a.format(out=out) for a in case.arguments]
    environment = {
        **os.environ,
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": "97",
        "ROS_LOG_DIR": str(folder),
    }
    load = os.getloadavg()[0]
    process = subprocess.Popen(
        [*COME_ROS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell ignores it for jobs in the background
    )  # fmt: skip
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.decode(errors="replace").rstrip().rpartition("\r")[2])

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    used: dict[int, float] = {}
    started = time.monotonic()
    while process.poll() is None and sum(used.values()) < moment and time.monotonic() < started + 20 * moment:
        time.sleep(0.02)
        used |= _cpu(process.pid)
    seconds = cpu = float("nan")
    if process.poll() is None:
        begun, before = time.monotonic(), dict(used)
        process.send_signal(number)
        while process.poll() is None and time.monotonic() < begun + PATIENCE_S:
            time.sleep(0.01)
            used |= _cpu(process.pid)
        seconds, cpu = time.monotonic() - begun, sum(used.values()) - sum(before.values())
    left = [pid for pid in _cpu(process.pid) if pid != process.pid]
    for pid in (process.pid, *left):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    code = process.wait()
    reader.join(5)
    text = "\n".join(lines)
    return Row(
        case.name, moment, signal.Signals(number).name, seconds, cpu, code, len(left), "Traceback" in text,
        next((line for line in reversed(lines) if line.startswith("come_ros")), (lines or [""])[-1])[:160].replace(str(folder), "."),
        tuple(sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())), load, commit,
    )  # fmt: skip


def _cpu(session: int) -> dict[int, float]:
    """Process -> CPU time so far, s, of all that live in its session, or were started by one that does (the demo's)."""
    tick = os.sysconf("SC_CLK_TCK")
    parent, own, found = {}, {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z":
            continue
        pid = int(entry.name)
        parent[pid] = int(fields[1])
        own[pid] = (int(fields[11]) + int(fields[12])) / tick
        if int(fields[3]) == session:
            found[pid] = own[pid]
    while more := {pid: own[pid] for pid, of in parent.items() if of in found and pid not in found}:
        found |= more
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names of cases, by commas (default: all)")
    parser.add_argument("--sigterm", action="store_true", help="SIGTERM in place of Ctrl-C")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    number = signal.SIGTERM if options.sigterm else signal.SIGINT
    wanted = [name for name in options.only.split(",") if name]
    rows: list[Row] = []
    now = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=RESULTS, capture_output=True, text=True, check=False
    ).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="come_ros_interrupts_") as name:
        images = Path(name) / "images"
        make_images(images)
        if not wanted or {"adapt", "adapt (end)"} & set(wanted):
            render_room(room_of(images), 20_000_750, 60, "320x240")
        if not wanted or {"export", "view", "view --save"} & set(wanted):
            make_results(images)
        for case in cases(images):
            if wanted and case.name not in wanted:
                continue
            for moment in case.moments:
                with tempfile.TemporaryDirectory(dir=name) as folder:
                    row = interrupted(case, moment, number, Path(folder), now)
                rows.append(row)
                print(
                    f"{row.case:22} at {moment:5.1f} s: {row.seconds:6.2f} s, CPU {row.cpu:5.2f} s, code {row.code}, {row.said}",
                    flush=True,
                )
    kept = options.results / f"{NAME}.json"
    rows += [row for row in earlier(kept, now) if (row.case, row.signal) not in {(r.case, r.signal) for r in rows}]
    names = [case.name for case in cases(Path("images"))]
    rows.sort(key=lambda row: (names.index(row.case), row.signal))
    write_result(
        options.results,
        NAME,
        [asdict(row) for row in rows],
        report(rows),
        command="python test/benchmark/robustness/interrupts.py; ... --sigterm",
    )


def earlier(path: Path, commit: str) -> list[Row]:
    """Rows that this program has written at this commit; all others are measured again."""
    found = json.loads(path.read_text()) if path.exists() else []
    names = {f.name for f in fields(Row)}
    return [
        Row(**{**row, "files": tuple(row["files"])}) for row in found if set(row) == names and row["commit"] == commit
    ]


def make_images(folder: Path, count: int = 400) -> None:
    """A textured wall that slides by, and a path for it: folder.tum."""
    import cv2
    import numpy as np

    folder.mkdir()
    wall = cv2.resize(np.random.default_rng(3).integers(0, 255, (24, 400, 3), np.uint8), (4000, 240))
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:04}.jpg"), wall[:, 8 * i : 8 * i + 320])
    rows = [f"{0.1 * i} {0.05 * i} {0.001 * i * i} 0 0 0 0 1" for i in range(count)]
    folder.with_suffix(".tum").write_text("\n".join(rows) + "\n")


def results_of(images: Path) -> Path:
    """The folder of results next to the images."""
    return images.with_name("results")


def room_of(images: Path) -> Path:
    """The bag of a rendered room next to the images: for `come_ros adapt`, which needs a place that the bundle can reconstruct."""
    return images.with_name("room")


def make_results(images: Path) -> None:
    """What `come_ros bag` makes of some of the images by the stand-in for a model: for commands that read results."""
    words = ("bag", str(images), "-o", str(results_of(images)), "--fps", "10", "--max-images", "120", "--no-view")
    setting = ("--set", "backbone=fake", "--set", "keyframe.mode=every")
    subprocess.run([*COME_ROS, *words, *setting], check=True, stdout=subprocess.DEVNULL)


def report(rows: list[Row]) -> str:
    loads = [row.load for row in rows]
    late = [row for row in rows if row.late]
    columns = (
        "command",
        "signal",
        "after, CPU s",
        "ends after, s",
        "CPU s",
        "load",
        "exit code",
        "it says",
        "left behind",
    )
    lines = [
        "# What a signal ends, and how soon", "",
        "Each row is a run of its own, interrupted after that much CPU time of its own, so in the same stage on any machine. It must end",
        f"within {BOUND_S:g} s on an idle machine; where the load was 1 or more, the CPU time of all its processes counts. Load at the",
        f"start of the runs: {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores. Late: {len(late)} of {len(rows)}.", "",
        f"| {' | '.join(columns)} |", "|---" * len(columns) + "|",
    ]  # fmt: skip
    for row in rows:
        took = "done before | " if row.seconds != row.seconds else f"{row.seconds:.2f} | {row.cpu:.2f}"
        took += " **late**" if row.late else ""
        said = ("**traceback** " if row.traceback else "") + row.said.replace("|", "\\|")
        names = row.files or ("nothing",)
        files = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
        children = f"; **{row.children_left} processes**" if row.children_left else ""
        lines.append(
            f"| {row.case} | {row.signal} | {row.moment:g} | {took} | {row.load:.1f} | {row.code} | {said} | {files}{children} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
