"""Reconstructs many recordings over the machines of a Ray cluster, each as `come_ros bag` does.

SOURCE is a recording, a pattern such as 'runs/*.mcap', a folder of recordings, or a list (.txt): on each line a recording, then options of
`come_ros bag` for it alone. Each recording is a task in a process of its own. Its results appear in DIR/NAME whole or not at all, with a
record of what they were made from (fleet.json). Started again, the command skips what is finished and unchanged; what has changed is
logged and made again. A task that fails, hangs, or whose worker or node dies is tried again elsewhere, then reported with its log.
Without --address, Ray runs on this machine only, on the loopback interface, and ends with the command. On a cluster all nodes need the
same come_ros, and the same paths of recordings and DIR. DIR then also holds
  index.html   scores where truth exists, outliers first, with links to pictures, 3D views and logs
  fleet.json   the same for machines
  logs/        what each recording's command printed
Ctrl-C ends what runs and keeps what is finished. Needs Ray (extra `fleet`). Options of `come_ros bag` apply to all recordings.

examples:
  come_ros fleet runs/ -o out                                a folder of recordings, one at a time for each core
  come_ros fleet 'runs/**/*.mcap' -o out --workers 4 --topic /left/image
  come_ros fleet list.txt -o out --address auto --gpus-per-task 0.5 --weights vggt.pt
  come_ros fleet runs/ -o out --retries 2 --timeout 3600 --set accelerator.name=come
  come_ros fleet long.mcap -o out --segment-images 1000      its windows go through the model in parallel, in segments of 1000 images
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import ComeRosError, ConfigError, DatasetError, OutputError, Stopped
from ..files import shown
from ..fleet.executors import Executor
from ..fleet.loop import Ended, Job, Progress, Rules, run_all
from ..fleet.ray_executor import Needs, check_ray, session
from ..fleet.record import DONE, PARTIAL, Inputs, Record, inputs_of, read_record, with_source
from ..fleet.segments import Task
from ..fleet.sources import Source, bytes_of, content_of, find_sources, names_of, without_results
from ..fleet.work import COME_ROS, THREADS, Work, hidden
from ..interrupts import Interrupts
from ..plugins import is_network
from ..progress import bar as progress_bar
from . import bag
from .arguments import configuration, words_of
from .report.fleet import FleetReport, row_of, write_report
from .report.results import cannot_write
from .result import print_result

log = logging.getLogger("come_ros")

LOCAL, PREDICTIONS = "local", "predictions"
AROUND_MIB = 600  # of `come_ros bag` besides the model, for short recordings: test/benchmark/speed/fleet.py measured more for long ones
TRIAL_S = 300.0


class FleetProblem(ComeRosError):
    """Not every recording has results."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="recording, pattern, folder of recordings, or list"
    )
    parser.add_argument(
        "-o", "--output", dest="out", required=True, metavar="DIR", help="output folder; created if missing"
    )
    parser.add_argument(
        "--address", metavar="ADDRESS", default=LOCAL,
        help="Ray cluster: auto for the one that this machine belongs to, HOST:PORT, or ray://HOST:PORT (default: this machine only)",
    )  # fmt: skip
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="tasks at a time on this machine (default: as many as cores and memory allow)",
    )
    parser.add_argument(
        "--cpus-per-task",
        type=float,
        default=0.0,
        metavar="N",
        help="cores of a task (default: threads, or 1 where that is 0)",
    )
    parser.add_argument(
        "--gpus-per-task", type=float, default=None, metavar="N",
        help="GPUs of a task, also parts of one (default: 1 if the cluster has any and device is not cpu)",
    )  # fmt: skip
    parser.add_argument(
        "--memory-per-task",
        type=int,
        default=0,
        metavar="MIB",
        help="memory of a task (default: measured by a trial, as in doctor)",
    )
    parser.add_argument(
        "--retries", type=int, default=1, help="further attempts of a task that fails (default %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=0.0, metavar="SECONDS", help="kill a task that takes longer (default: never)"
    )
    parser.add_argument(
        "--min-free",
        type=float,
        default=500.0,
        metavar="MB",
        help="start nothing with less disk space than that (default %(default)s)",
    )
    parser.add_argument(
        "--segment-images", type=int, default=0, metavar="N",
        help="run the model on longer recordings in segments of N images, in parallel; the results stay the same (default: never)",
    )  # fmt: skip
    parser.add_argument(
        "--again", action="store_true", help="make all results again, also those that are finished and unchanged"
    )
    bag.add_options(parser)


@dataclass(frozen=True)
class Planned:
    """A recording with its parameters and the options of `come_ros bag`."""

    source: Source
    name: str
    config: Config
    options: argparse.Namespace
    words: tuple[str, ...]
    inputs: Inputs


def run(options: argparse.Namespace) -> int:
    """Returns 0 if all recordings have results. Raises ComeRosError, or Stopped if a signal ended it; what is finished is kept."""
    _check(options)
    begun = time.monotonic()
    config = configuration(options)
    check_ray()  # before anything slow
    out = Path(options.out)
    sources = without_results(find_sources(options.sources), out)
    with _alone(out), Interrupts() as stopped:
        with stopped.raising():
            planned = _planned(options, config, sources, out)
            todo, kept = _divided(planned, out, options.again)
        ended: dict[str, Ended] = {}
        if todo:
            with ExitStack() as stack:
                with stopped.raising():  # a trial of the model, and starting Ray, take seconds
                    needs = _needs(options, config)
                    spare_gpu = options.gpus_per_task is None and config.device != "cpu"
                    connected = session(options.address, _workers(options, needs), needs, spare_gpu)
                    executor = stack.enter_context(connected)
                ended = work_off(todo, executor, options, out, stopped)
        return report(planned, ended, kept, options, time.monotonic() - begun, stopped)


def work_off(
    todo: list[Planned], executor: Executor, options: argparse.Namespace, out: Path, stopped: Interrupts
) -> dict[str, Ended]:
    """Name of each recording -> what became of it, with a progress bar."""
    rules = Rules(options.retries, int(options.min_free * 1e6))
    jobs = [_job(one, options, out) for one in todo]
    sizes = {one.name: max(1, bytes_of(one.source.place)) for one in todo}
    wanted = {_folder(one, out).name for one in todo}
    seen: set[str] = set()
    images, begun = 0, time.monotonic()
    with progress_bar(total=len(jobs), desc="recordings") as bar:

        def watch(progress: Progress) -> None:
            nonlocal images
            for name in progress.ended.keys() - seen:
                row = row_of(name, "", progress.ended[name], None, out)
                seen.add(name)
                images += row.images
                bar.update()
                if row.failed:
                    log.warning("%s: %s: %s", name, row.state, row.reason)
            passed = time.monotonic() - begun
            done = sum(sizes[name] for name in seen)
            left = passed * (sum(sizes.values()) - done) / done if done else float("nan")
            bar.set_postfix_str(
                f"{progress.running} running, {sum(e.state != 'done' for e in progress.ended.values())} failed, "
                f"{images / passed if passed else 0:.1f} images/s, {left / 60:.0f} min left"
            )

        ended = run_all(jobs, executor, rules, out, stopped, watch)
    for folder in _predictions(out).glob("*"):  # those of recordings that are done, and of other parameters
        if ended.get(folder.name.rpartition(".")[0], Ended(DONE)).state in (DONE, PARTIAL) or folder.name not in wanted:
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds some, or was never made
        _predictions(out).rmdir()
    return ended


def report(
    planned: list[Planned],
    ended: dict[str, Ended],
    kept: dict[str, Record],
    options: argparse.Namespace,
    seconds: float,
    stopped: Interrupts,
) -> int:
    """Writes and prints the overview. Returns 0, or raises as `run` does."""
    out = Path(options.out)
    rows = [row_of(one.name, one.source.path, ended.get(one.name), kept.get(one.name), out) for one in planned]
    made = FleetReport(rows, seconds)
    write_report(made, out)
    good = [row.name for row in made.rows if row.images]
    text = f"{made.table()}\n\nindex.html and fleet.json in {shown(out)}"
    text += f"; `come_ros view {shown(out / good[0])}` shows one in 3D" if good else ""
    print_result(options, {**json.loads(made.json()), "folder": str(out)}, text)
    if stopped.number is not None:
        finished = sum(not row.failed for row in rows)
        raise Stopped(
            stopped.number,
            f"{finished} of {len(rows)} recordings are finished in {shown(out)}; start it again for the rest",
        )
    failed = [row for row in rows if row.failed]
    if failed:
        first = failed[0]
        raise FleetProblem(
            f"{len(failed)} of {len(rows)} recordings are not as they should be, such as {first.name} ({first.state}: {first.reason}); "
            f"logs are in {shown(out / 'logs')}"
        )
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for a number out of range."""
    for name, low in (
        ("workers", 0), ("cpus_per_task", 0), ("gpus_per_task", 0), ("memory_per_task", 0), ("retries", 0), ("timeout", 0), ("min_free", 0),
        ("segment_images", 0),
    ):  # fmt: skip
        value = getattr(options, name)
        if value is not None and not low <= value < 1e12:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, but must be {low} or more")
    if 0 < options.segment_images < 50:
        raise ConfigError(f"--segment-images is {options.segment_images}, but must be 50 or more, or 0 for no segments")
    if options.workers and options.address != LOCAL:
        raise ConfigError(f"--workers is for this machine only: leave it out with --address {options.address}")


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """The output folder, with a place for what is not finished, for one fleet at a time. Raises OutputError."""
    place = hidden(out)
    with ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(place / "lock", "w", encoding="ascii"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another fleet works in {shown(out)}: wait for it, or choose another folder with -o"
            ) from None
        except OSError as error:
            raise cannot_write(out, error) from error
        _clear(place)  # of a fleet that was killed
        try:
            yield
        finally:
            _clear(place)
            if not _predictions(out).exists():
                shutil.rmtree(place, ignore_errors=True)


def _clear(place: Path) -> None:
    """Removes what attempts have left; predictions of long recordings are kept for the next start."""
    for left in place.iterdir():
        if left.is_dir() and left.name != PREDICTIONS:
            shutil.rmtree(left, ignore_errors=True)


def _predictions(out: Path) -> Path:
    return hidden(out) / PREDICTIONS


def _planned(options: argparse.Namespace, config: Config, sources: list[Source], out: Path) -> list[Planned]:
    """All recordings, with the names of their results. Raises ComeRosError."""
    known, taken = {}, {"logs"}
    for folder in sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")):
        record = _record(folder)
        if record is None:
            taken.add(folder.name)
        else:
            known[record.inputs.place] = folder.name
    names = names_of(sources, known, taken)
    parser = _BagOptions(add_help=False)
    bag.add_options(parser)
    common = words_of(parser, options)
    planned = []
    for source in sources:
        words = (*common, *source.options)
        own = parser.parse_args(list(words))
        its = configuration(own) if source.options else config
        if not its.threads:
            words = (*words, "--set", f"threads={max(1, int(options.cpus_per_task))}")
            own = parser.parse_args(list(words))
            its = its.replace(threads=max(1, int(options.cpus_per_task)))
        inputs = inputs_of(source, its.to_flat(), words)
        planned.append(Planned(source, names[source], its, own, words, inputs))
    return planned


class _BagOptions(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"in a list: {message}: `come_ros bag --help` has the options of a recording")


def _record(folder: Path) -> Record | None:
    try:
        return read_record(folder)
    except DatasetError as error:
        log.warning("%s: the results are left alone, and made again elsewhere", error)
        return None


def _divided(planned: list[Planned], out: Path, again: bool) -> tuple[list[Planned], dict[str, Record]]:
    """Recordings to work on; and the records of the others, which are finished and unchanged."""
    todo, kept = [], {}
    for one in planned:
        record = None if again else _record(out / one.name)
        try:
            now = with_source(one.inputs, one.source.place, whole=False)
        except DatasetError:
            todo.append(one)  # it fails there, with its log
            continue
        changes = [] if record is None else record.inputs.changes(now, lambda one=one: content_of(one.source.place))  # type: ignore[misc]
        if changes:
            log.warning("%s is made again, because of changes: %s", one.name, "; ".join(changes))
        if record is None or changes:
            todo.append(one)
        else:
            kept[one.name] = record
    return todo, kept


def _needs(options: argparse.Namespace, config: Config) -> Needs:
    """What a task takes of its node. Raises ComeRosError."""
    cpus = options.cpus_per_task or float(config.threads or 1)
    mib = options.memory_per_task or AROUND_MIB + _of_model(config)
    return Needs(cpus, options.gpus_per_task or 0.0, int(mib) << 20)


def _of_model(config: Config) -> float:
    """MiB that a window takes in a process of its own, by a trial as in `come_ros doctor`."""
    if not is_network(config.backbone):
        return 0.0
    command = [sys.executable, "-m", "come_ros.tools.doctor.trial", json.dumps(config.to_flat())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_S, check=False)
        said = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        raise ConfigError(
            "a trial of the model gave no result: see `come_ros doctor`, or give --memory-per-task MIB"
        ) from error
    if "error" in said:
        raise ConfigError(f"the model does not run: {said['error']}")
    if "free_mib" in said:  # the figures are of a GPU
        return 0.0
    return float(said["base_mib"] + config.window.size * said["frame_mib"] + said.get("stream_mib", 0.0))


def _workers(options: argparse.Namespace, needs: Needs) -> int:
    """Tasks at a time on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return options.workers or max(1, int(cores / needs.cpus))


def _job(one: Planned, options: argparse.Namespace, out: Path) -> Job:
    def unit(module: str, words: tuple[str, ...], part: str = "", final: bool = True) -> Work:
        return Work(
            one.name, module, words, one.source, one.inputs, str(out.absolute()), part, final, os.getcwd(), options.timeout,
            {THREADS: os.environ.get(THREADS)},
        )  # fmt: skip

    whole = ("bag", one.source.path, *one.words)
    task = _task(one, options, out)
    if task is None:
        return Job(one.name, ((unit(COME_ROS, whole),),))

    def part(index: int | None) -> Work:
        each = Task(**{**vars(task), "segment": index})
        name = "windows" if index is None else f"segment {index + 1} of {task.segments}"
        return unit("come_ros.fleet.segments", (each.text(),), name, final=False)

    joined = unit(COME_ROS, (*whole, "--predictions", task.folder), "joined")
    return Job(one.name, ((part(None),), tuple(part(i) for i in range(task.segments)), (joined,)))


def _task(one: Planned, options: argparse.Namespace, out: Path) -> Task | None:
    """The windows of a long recording; None if it is to stay whole."""
    if not options.segment_images:
        return None
    try:
        about = bag.reading(one.source.path, one.options, one.config)
    except ComeRosError:
        return None  # it fails as a whole, with its log
    if about.images <= options.segment_images:
        return None
    if about.config.reads_depth or about.config.reads_odometry:
        log.warning("%s stays whole: the scale, or the model, is given depth or poses", one.name)
        return None
    segments = -(-about.images // options.segment_images)
    config = about.config.to_flat()
    return Task(one.source.path, about.options, about.part, config, str(_folder(one, out).absolute()), None, segments)


def _folder(one: Planned, out: Path) -> Path:
    """Of the predictions of a recording with its present parameters."""
    return _predictions(out) / f"{one.name}.{one.inputs.digest}"
