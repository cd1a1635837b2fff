"""Reads ten thousand damaged recordings of all kinds, and gives some of them to `come_ros bag`: see test/fuzz_recordings.py.

    .venv/bin/python test/benchmark/robustness/fuzz_recordings.py [--cases 10000] [--tool-every 50]

Batches run in processes of their own, so that a crash is seen, with its seed, and a case that never ends is ended. Writes
results/fuzz_recordings.json: cases, read, refused, tool_runs, faults, slowest case, seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark.stamped import write_result
from fuzz_recordings import Tally, make_originals, one_case, quiet
from tqdm import tqdm

RESULTS = Path(__file__).with_name("results")
BATCH = 250
HANGS_S = 300.0  # a case that has not ended by then hangs, however busy the machine is
MOST_MEMORY = 6 << 30


def batch(first: int, count: int, originals: Path, tool_every: int) -> None:
    """In a process of its own: each seed is printed before its case, and the tally at the end."""
    import come_ros.tools.bag.job
    import come_ros.tools.report.view

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    # pictures take longer than all the rest
    come_ros.tools.bag.job.draw = lambda path, overview, title: path.write_bytes(b"picture")  # type: ignore[assignment]
    come_ros.tools.report.view.write_view = lambda results: ""  # type: ignore[assignment]
    names = json.loads((originals / "names.json").read_text())
    sources = {name: originals / file for name, file in names.items()}
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="come_ros_fuzz_") as work, quiet():
        for seed in range(first, first + count):
            print(seed, flush=True)
            faulthandler.dump_traceback_later(HANGS_S, exit=True)
            one_case(seed, sources, Path(work) / "work", tally, tool=seed % tool_every == 0)
            faulthandler.cancel_dump_traceback_later()
    print(json.dumps(dataclasses.asdict(tally)))


def run(cases: int, first: int, tool_every: int) -> dict[str, object]:
    total, told = Tally(), 0
    begun = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="come_ros_fuzz_") as folder,
        tqdm(total=cases, unit="case", disable=None) as bar,
    ):
        originals = Path(folder)
        made = make_originals(originals)
        (originals / "names.json").write_text(json.dumps({name: path.name for name, path in made.items()}))
        seed, end = first, first + cases
        while seed < end:
            count = min(BATCH, end - seed)
            command = [sys.executable, __file__, "--batch", str(seed), str(count), str(originals), str(tool_every)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            last = (done.stdout.strip().splitlines() or [str(seed)])[-1]
            if done.returncode == 0:
                tally = Tally(**json.loads(last))
                for name in ("cases", "read", "refused", "tool_runs"):
                    setattr(total, name, getattr(total, name) + getattr(tally, name))
                total.slowest_s = max(total.slowest_s, tally.slowest_s)
                total.faults += tally.faults
                next_seed = seed + count
            else:  # whatever it was, the seed that was printed last did it; the others of the batch are run again
                culprit = int(last)
                total.faults.append(
                    f"seed {culprit}: the process ended with {done.returncode}: {done.stderr.strip()[-1500:]}"
                )
                total.cases += 1
                next_seed = culprit + 1
            bar.update(next_seed - seed)
            for fault in total.faults[told:]:
                tqdm.write(fault)
            told = len(total.faults)
            seed = next_seed
    return {**dataclasses.asdict(total), "first_seed": first, "seconds": round(time.perf_counter() - begun, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="damaged recordings (default: %(default)s)")
    parser.add_argument("--first", type=int, default=100_000, help="first seed (default: %(default)s)")
    parser.add_argument(
        "--tool-every", type=int, default=50, help="every so many go through the bag tool (default: %(default)s)"
    )
    parser.add_argument("--batch", nargs=4, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch:
        first, count, originals, tool_every = options.batch
        batch(int(first), int(count), Path(originals), int(tool_every))
        return 0
    result = run(options.cases, options.first, options.tool_every)
    print(json.dumps({k: v for k, v in result.items() if k != "faults"}), f"{len(result['faults'])} faults")  # type: ignore[arg-type]
    write_result(RESULTS, "fuzz_recordings", result)
    return int(bool(result["faults"]))


if __name__ == "__main__":
    sys.exit(main())
