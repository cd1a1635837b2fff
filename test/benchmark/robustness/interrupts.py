"""How long each command takes to end after a signal, stage by stage, and what it leaves: results/interrupts.{json,md}.

    .venv/bin/python test/benchmark/robustness/interrupts.py [--only bag,train] [--sigterm]

Each command is started again for each moment. A moment is a number of seconds after the start, or a text that its stderr or a file of its
output folder shows first. Bound: 3 s (on an idle machine).
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import contextlib
import json

from benchmark.stamped import write_result

RESULTS = Path(__file__).with_name("results")
BOUND_S, PATIENCE_S = 3.0, 60.0
COME_ROS = (sys.executable, "-m", "come_ros.tools.cli")


@dataclass(frozen=True)
class Case:
    """moments: s after the start at which it is interrupted, each in a run of its own."""

    name: str
    arguments: tuple[str, ...]
    moments: tuple[float, ...] = (0.3, 4.0, 9.0, 16.0)


def cases(images: Path) -> list[Case]:
    """One for each command and each long stage. {out}: a fresh folder."""
    bag = ("bag", str(images), "-o", "{out}", "--fps", "10")
    return [
        Case("bag", (*bag, "--set", "keyframe.mode=every"), (0.3, 4.0, 7.0, 12.0)),
        Case("bag --compare", (*bag, "--set", "accelerator.name=come", "--compare", "--set", "keyframe.mode=every")),
        Case("demo", ("demo", "-o", "{out}", "--frames", "100"), (0.3, 4.0, 10.0, 20.0)),
        Case("node", ("node", "--set", "device=cpu"), (0.3, 2.0, 5.0, 12.0)),
        Case("eval", ("eval", "rooms", "--windows", "64", "-o", "{out}")),
        Case(
            "eval --frontier", ("eval", "rooms", "--windows", "1", "--frontier", "-o", "{out}"), (5.0, 15.0, 40.0, 80.0)
        ),
        Case("bench", ("bench", "--frames", "2", "16", "--json", "{out}/bench.json", "--repeats", "60")),
        Case("bench --stream", ("bench", "--stream", "--repeats", "200", "--json", "{out}/bench.json")),
        Case("bench --pipeline", ("bench", "--pipeline", "--json", "{out}/bench.json", "--repeats", "2000")),
        Case("distill", ("distill", "-o", "{out}", "--steps", "500")),
        Case("train", ("train", "-o", "{out}", "--minutes", "5"), (0.3, 5.0, 20.0, 40.0)),
        Case("train --variant tiny2", ("train", "--variant", "tiny2", "-o", "{out}"), (5.0, 20.0, 40.0)),
        Case("train-pace", ("train-pace", "-o", "{out}", "--minutes", "5"), (0.3, 5.0, 20.0, 40.0)),
        Case("calibrate", ("calibrate", "-o", "{out}/plan.json", "--windows", "500")),
        Case("doctor", ("doctor",)),
    ]


def interrupted(case: Case, moment: float, number: int, folder: Path) -> dict[str, Any]:
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
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        begun = time.monotonic()
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        seconds = time.monotonic() - begun
    else:
        seconds = float("nan")  # it was done before
    left = _left(process.pid)
    for pid in (process.pid, *left):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    code = process.wait()
    reader.join(5)
    text = "\n".join(lines)
    return {
        "case": case.name,
        "load": os.getloadavg()[0], "moment": moment, "signal": signal.Signals(number).name, "seconds": seconds, "code": code,
        "children_left": len(left), "traceback": "Traceback" in text,
        "said": next((line for line in reversed(lines) if line.startswith("come_ros")), (lines or [""])[-1])[:160],
        "files": sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()),
    }  # fmt: skip


def _left(session: int) -> list[int]:
    """Processes of its session that outlive it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z" and int(entry.name) != session:
            found.append(int(entry.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names of cases, by commas (default: all)")
    parser.add_argument("--sigterm", action="store_true", help="SIGTERM in place of Ctrl-C")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    number = signal.SIGTERM if options.sigterm else signal.SIGINT
    wanted = [name for name in options.only.split(",") if name]
    rows = []
    with tempfile.TemporaryDirectory(prefix="come_ros_interrupts_") as name:
        images = Path(name) / "images"
        make_images(images)
        for case in cases(images):
            if wanted and case.name not in wanted:
                continue
            for moment in case.moments:
                with tempfile.TemporaryDirectory(dir=name) as folder:
                    row = interrupted(case, moment, number, Path(folder))
                rows.append(row)
                print(
                    f"{row['case']:22} at {moment:5.1f} s: {row['seconds']:6.2f} s, code {row['code']}, {row['said']}",
                    flush=True,
                )
    kept = options.results / "interrupts.json"
    earlier = json.loads(kept.read_text()) if kept.exists() else []
    done = {row["case"] for row in rows}
    rows += [row for row in earlier if row["case"] not in done]
    names = [case.name for case in cases(Path())]
    rows.sort(key=lambda row: names.index(row["case"]))
    write_result(
        options.results, "interrupts", rows, report(rows), command="python test/benchmark/robustness/interrupts.py"
    )


def make_images(folder: Path, count: int = 400) -> None:
    """A textured wall that slides by."""
    import cv2
    import numpy as np

    folder.mkdir()
    wall = cv2.resize(np.random.default_rng(3).integers(0, 255, (24, 400, 3), np.uint8), (4000, 240))
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:04}.jpg"), wall[:, 8 * i : 8 * i + 320])


def report(rows: list[dict[str, Any]]) -> str:
    loads = [row["load"] for row in rows]
    lines = [
        "# What a signal ends, and how soon", "",
        f"Each row is a run of its own, interrupted that long after its start; bound {BOUND_S:g} s on an idle machine. Load of the",
        f"machine meanwhile: {min(loads):.0f} to {max(loads):.0f} on {os.cpu_count()} cores.", "",
        "| command | signal after, s | ends after, s | exit code | it says | left behind |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        done = row["seconds"] != row["seconds"]
        took = "done before" if done else f"{row['seconds']:.2f}" + (" **late**" if row["seconds"] > BOUND_S else "")
        said = ("**traceback** " if row["traceback"] else "") + row["said"].replace("|", "\\|")
        names = row["files"] or ["nothing"]
        files = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
        children = f"; **{row['children_left']} processes**" if row["children_left"] else ""
        lines.append(f"| {row['case']} | {row['moment']:g} | {took} | {row['code']} | {said} | {files}{children} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
