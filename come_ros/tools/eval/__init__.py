"""Scores the model, dense and accelerated, against ground truth and trivial baselines that can win.

SOURCE is `rooms` (the frozen test rooms; the default), `thin` (rooms with poles, wires, legs, fences), or the path of a recording whose
depth or camera path is known: a folder in the layout of TUM RGB-D, 7-Scenes or ScanNet, images with a COLMAP model or a
transforms.json, a bag with depth or ground truth. Windows are cut from each and run through the model as in the node: at its image
size, and with known intrinsics if it accepts them. Every source has separate tables; nothing is averaged over sources. Depth,
poses, point clouds and confidence are scored; every figure has a 95 % interval over windows (seeded bootstrap, in blocks where
windows are neighbours in one recording), and differences to the dense model are paired. With fewer than 8 independent windows
nothing is bold and there is no winner. The trivial baselines: one depth for all pixels, the mean depth of the training rooms,
single images, the same image n times, no attention across frames; for motion a camera that does not move, the best straight line,
the best constant motion, random walks. The output folder then holds metrics.json all figures; those that depend on the machine's
speed are under `timings` metrics.md one sentence for each accelerator, the tables, a verdict plots.png sparsification, errors of
single windows; with --frontier, the frontier windows.png some windows side by side: input, truth, dense, accelerated, difference

ACCELERATOR is a name, optionally with parameters of the group `accelerator`: come, come:ratio=0.75,group=2x2,edge_weight=1
--frontier instead tries every registered accelerator over its ratios, random groups, and the dense model on smaller images; with
--accelerator only the given ones and the trivial baselines. Recordings are then also run whole, each variant without and with the
bundle (refine.mode none and bundle): path, rotation and depth, next to baselines without a model. That takes minutes per variant;
--windows 4 keeps the rest short. Ctrl-C ends a run and keeps the completed windows (without pictures).

examples:
  come_ros eval                                         the bundled model on 64 frozen test rooms, dense and with Co-Me
  come_ros eval rooms thin --windows 128 -o out/eval    more of them, and thin structures
  come_ros eval rgbd_dataset_freiburg1_desk --stride 3  every third image
  come_ros eval bag.mcap --gt /vicon/odometry --topic /left/image
  come_ros eval --frontier -o out/frontier              accuracy against latency against kept tokens
  come_ros eval --frontier --accelerator tome --accelerator my_package.mine:Mine
  come_ros eval --frontier recording --windows 4 --accelerator come       the error added by Co-Me after the bundle
  come_ros eval --weights vggt.safetensors --accelerator none
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__, progress
from ...config import Config
from ...errors import Cancelled, CheckpointError, ConfigError, Stopped
from ...evaluation.window import WindowTruth
from ...files import write_text
from ...interrupts import Interrupts
from ...plugins import is_network
from ..arguments import add_config_arguments, configured
from ..ending import print_error
from ..report.figures import draw_or_warn
from ..report.results import ResultFolder
from ..report.tables import for_json
from ..report.verdict import for_metrics, read
from ..result import print_result
from .frontier import against_nulls, at_the_same_time, frontier_variants, latencies, recoveries, winners
from .measure import Scores, by_difficulty, measure, sequences, summary
from .report import POINTS_OF, draw_plots, draw_windows, markdown
from .sources import RENDERED, ROOMS, Cut, Source, sources_of
from .trajectories import trajectories
from .variants import WITHOUT_WINDOW, Variant, accelerated, dense, known_of, without_window
from .verdict import against_baselines, sentences, verdict
from .whole_recordings import compared, whole

RESULTS = ("metrics.json", "metrics.md", "plots.png", "windows.png")
DEFAULT = "come"
TIMED_WINDOWS, TIMED_REPEATS = 2, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="*", default=[ROOMS], help="rooms, thin, or a path (default: rooms)"
    )
    parser.add_argument(
        "-o", "--output", dest="out", metavar="DIR", default="out/eval", help="output folder (%(default)s)"
    )
    parser.add_argument(
        "--frontier", action="store_true", help="every accelerator over its ratios, or those of --accelerator"
    )
    parser.add_argument(
        "--accelerator", action="append", metavar="ACCELERATOR",
        help="accelerator to compare with the dense model; may be repeated; none: only the dense model (default: come)",
    )  # fmt: skip
    parser.add_argument(
        "--windows", type=int, default=64, help="windows of each source, evenly spread (default %(default)s)"
    )
    parser.add_argument("--size", type=int, default=4, help="images per window (default %(default)s)")
    parser.add_argument(
        "--stride", type=int, default=1, help="step between the images of a window (default %(default)s)"
    )
    parser.add_argument("--step", type=int, default=0, help="step between the starts of windows (default: no overlap)")
    add_config_arguments(parser)
    parser.add_argument("--topic", help="image topic of a bag that holds several")
    parser.add_argument("--gt", metavar="TOPIC|FILE", help="true path: a topic of the bag, or a TUM file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace results in DIR; other files are kept")


def run(options: argparse.Namespace) -> int:
    """Returns 0, or 128 + number if a signal ended it. Raises ComeRosError."""
    config = configured(options)
    if options.seed < 0:
        raise ConfigError(f"--seed is {options.seed}, but must be 0 or more")
    cut = Cut(options.size, options.stride, options.step, options.windows)
    sources = sources_of(options.sources, config, options.topic, options.gt)
    begun = time.perf_counter()
    counts = {source.name: source.count(cut) for source in sources}  # wrong paths are rejected before anything slow
    with ResultFolder(Path(options.out), RESULTS, options.overwrite) as folder, Interrupts() as stopped:
        with stopped.raising(), progress.doing("loading the model and the first window"):
            backbone = _backbone(config)
            windows = itertools.chain.from_iterable(source.windows(cut, backbone) for source in sources)
            first = next(windows, None)
            if first is None:
                raise ConfigError(
                    "no window has ground truth to compare with: choose other sources, or other --size and --stride"
                )
            left_out: dict[str, str] = {}
            if options.frontier:
                if not is_network(config.backbone):
                    raise ConfigError(f"--frontier needs a model with tokens: backbone {config.backbone} has none")
                height, width = first.images.shape[1:3]
                variants, left_out = frontier_variants(backbone, config, height, width, options.accelerator or ())
            else:
                variants, left_out = _variants(backbone, config, options.accelerator)
        timed: list[WindowTruth] = []
        total = sum(counts.values())
        try:
            with progress.bar(total=total, desc="scoring", unit="window") as bar:
                every = stopped.until(_noting(itertools.chain([first], windows), timed))
                scores = measure(every, variants, total, bar, stopped, options.frontier, options.seed)
        except (Cancelled, Stopped):
            print_error("eval", f"stopped by {stopped.name}, no window was complete: nothing is written")
            return 128 + (stopped.number or 0)
        variants = [v for v in variants if v.name not in scores.same]
        result = _result(options, config, backbone, cut, scores, variants, left_out)
        result["given"] = ", ".join(
            ["images", *(["intrinsics"] if known_of(variants[0].backbone, config, first) is not None else [])]
        )
        ended = f"stopped by {stopped.name} after {len(scores.windows)} of {total} windows" if scores.stopped else ""
        try:
            if not ended:
                if is_network(config.backbone):
                    _add_times(result, variants, timed, stopped)
                if options.frontier:
                    _add_whole(result, sources, variants, stopped)
                else:
                    result["trajectories"] = _trajectories(sources, variants, stopped)
        except (Cancelled, Stopped):
            ended = f"stopped by {stopped.name} after all windows, before the rest was done"
        result["stopped"] = ended
        result = _finished(result, scores, variants, begun)
        text = markdown(result)
        folder.reserve.release()
        write_text(folder.path / "metrics.json", _compact(json.dumps(result, indent=1)) + "\n")
        write_text(folder.path / "metrics.md", text)
        if not ended:  # pictures take seconds
            plots, pictures = folder.path / "plots.png", folder.path / "windows.png"
            with progress.doing("drawing"):
                draw_or_warn(plots, lambda: draw_plots(plots, result, scores, variants))
                draw_or_warn(pictures, lambda: draw_windows(pictures, scores))
        folder.publish()
    files = [name for name in RESULTS if (Path(options.out) / name).exists()]
    lines = [f"verdict: {source}: {read(about['verdict']).line}" for source, about in result["sources"].items()]
    text = "\n".join([text, *lines, f"{', '.join(files)} in {options.out}"])
    print_result(options, {**result, "folder": str(options.out), "files": files}, text)
    if ended:
        print_error("eval", f"{ended}; what was complete is written")
        return 128 + (stopped.number or 0)
    return 0


def _backbone(config: Config) -> Any:
    """The dense model, set up so that equal runs give equal figures."""
    from ...backbones import load_backbone

    if is_network(config.backbone):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        import torch

        torch.use_deterministic_algorithms(
            True, warn_only=True
        )  # some GPU operations have no deterministic implementation
    return load_backbone(config.replace(**{"accelerator.name": "none"})).dense()


def _variants(backbone: Any, config: Config, wanted: list[str] | None) -> tuple[list[Variant], dict[str, str]]:
    """The dense model and its rivals: the requested ones, else the configuration's accelerator, else Co-Me if the model has a
    predictor."""
    variants: list[Variant] = [dense(backbone, config)]
    names = wanted or [config.accelerator.name if config.accelerator.name != "none" else DEFAULT]
    for text in dict.fromkeys(names):
        if text == "none":
            continue
        if not is_network(config.backbone):
            if wanted:
                raise ConfigError(
                    f"--accelerator {text} needs a model with tokens, but the backbone {config.backbone} has none: leave it out"
                )
            continue
        try:
            variants.append(accelerated(backbone, config, text))
        except CheckpointError as error:
            if wanted:
                raise
            return [*variants, *without_window(backbone, config)], {text: str(error)}
    return [*variants, *without_window(backbone, config)], {}


def _noting(windows: Iterator[WindowTruth], noted: list[WindowTruth]) -> Iterator[WindowTruth]:
    """Passes the windows through; the first ones are kept for the timings."""
    for window in windows:
        if len(noted) < TIMED_WINDOWS:
            noted.append(window)
        yield window


def _result(
    options: argparse.Namespace,
    config: Config,
    backbone: Any,
    cut: Cut,
    scores: Scores,
    variants: list[Variant],
    left_out: dict[str, str],
) -> dict[str, Any]:
    width, height = scores.size
    # figures of all single windows; for the frontier, which has many variants, only those that are plotted
    kept = {*POINTS_OF, "kept_tokens", "read_keys"} if options.frontier else set(scores.metrics)
    usual = Config().to_flat()  # a plug-in's own parameters are not among them
    changed = {k: v for k, v in config.to_flat().items() if k not in usual or v != usual[k]}
    of = {source: scores.of(source) for source in scores.sources}
    return {
        "come_ros": __version__,
        "model": {**backbone.description, "weights": os.path.basename(backbone.description["weights"])},
        "parameters": changed,
        "image": [width, height],
        "cut": {"size": cut.size, "stride": cut.stride, "step": cut.step or cut.size * cut.stride},
        "windows": {source: len(part.windows) for source, part in of.items()},
        "truth": {name: "rendered" if name in RENDERED else "recorded" for name in of},
        "path_window": [config.window.size, config.window.shared],
        "seed": options.seed,
        "frontier": bool(options.frontier),
        "variants": [v.name for v in variants],
        "baselines": [v.name for v in variants if v.trivial],
        "same": scores.same,
        "about": {v.family: v.about for v in variants if v.about and not v.trivial},
        "left_out": left_out,
        "sources": {
            source: {
                "independent": part.independent,
                "block": part.block,
                "summary": summary(part),
                "whole": sequences(part).get(source, {}),
                "by_difficulty": by_difficulty(part),
            }
            for source, part in of.items()
        },
        "order": [source for source, _ in scores.windows],
        "rows": {v: {m: scores.values(v, m).tolist() for m in scores.metrics if m in kept} for v in scores.rows},
    }


def _compact(text: str) -> str:
    """JSON with every list of numbers on one line."""
    return re.sub(r"\[[^\[\]{}\"]+\]", lambda found: " ".join(found[0].split()), text)


def _add_times(result: dict[str, Any], variants: list[Variant], timed: list[WindowTruth], stopped: Any) -> None:
    """Raises Cancelled."""
    images = [window.images for window in timed]
    those = [
        v for v in variants if v.name not in WITHOUT_WINDOW[:2]
    ]  # these are several passes, each smaller than a window
    with progress.bar(total=len(those), desc="timing", unit="variant") as bar:
        result["timings"] = latencies(those, images, TIMED_REPEATS, bar, stopped)


def _finished(result: dict[str, Any], scores: Scores, variants: list[Variant], begun: float) -> dict[str, Any]:
    """Adds the conclusions, ready for JSON: the frontier's comparisons, a sentence for each accelerator, the verdict. The ranking
    at equal time is left out if the machine was busy."""
    timings = result.setdefault("timings", {})
    times = timings.get("of", {})
    for source, about in result["sources"].items():
        part = scores.of(source)
        if result["frontier"]:
            metrics = [m for m in POINTS_OF if np.isfinite(part.values(variants[0].name, m)).any()]
            kept = {v.name: float(np.mean(part.values(v.name, "kept_tokens"))) for v in variants}
            about["against_nulls"] = {m: against_nulls(part, variants, m) for m in metrics}
            about["winners"] = {m: winners(part, variants, kept, m) for m in metrics}
            about["recovered"] = recoveries(part, variants)
            if times and not timings["busy"]:
                took = {name: row["trunk_ratio"]["high"] for name, row in times.items()}
                timings.setdefault("winners", {})[source] = {m: winners(part, variants, took, m) for m in metrics}
                timed = [v for v in variants if v.name in times]
                timings.setdefault("resolution_at_the_same_time", {})[source] = at_the_same_time(part, timed, times)
        about["sentences"] = sentences(about, [v for v in variants if not v.trivial], timings)
        about["against_baselines"] = against_baselines(part, result.get("trajectories", {}).get(source))
        about["verdict"] = for_metrics(verdict(part))
    result["compared"] = compared(result.get("whole", {}))
    timings["seconds"] = time.perf_counter() - begun
    result["timings"] = result.pop("timings")  # at the end, where it is easy to leave out
    finished: dict[str, Any] = for_json(result)
    return finished


def _trajectories(sources: list[Source], variants: list[Variant], stopped: Any) -> dict[str, Any]:
    """source -> variant -> scores of the path from the whole pipeline. Raises Cancelled."""
    out = {}
    for source in sources:
        if not source.rendered:
            found = trajectories(source, [v for v in variants if not v.trivial], stopped)
            if found:
                out[source.label] = found
    return out


def _add_whole(result: dict[str, Any], sources: list[Source], variants: list[Variant], stopped: Any) -> None:
    """Adds result["whole"]: source -> see whole_recordings.whole, each as soon as it is complete. Raises Cancelled."""
    found = result.setdefault("whole", {})
    for source in sources:
        about = None if source.rendered else whole(source, variants, stopped)
        if about is not None:
            found[source.label] = about
