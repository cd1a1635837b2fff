"""Measures in which layers the model's global attention is spread out or peaked, and writes which layers may read fewer keys.

Good Token Hunting (accelerator.name: good_token_hunting) reads that file, which is next to the weights. It takes a minute on a CPU
for the small model, and is needed once per weights file.

examples:
  come_ros calibrate                                          the bundled model, on procedural rooms
  come_ros calibrate --weights my.safetensors --source my_bag --picture entropy.png
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import progress
from ..companions import LAYER_PLAN, made_for
from ..errors import CheckpointError, Stopped
from ..interrupts import Interrupts
from .ending import print_error
from .report.figures import draw_or_warn
from .report.next_steps import of_layer_plan, tell
from .result import print_result

if TYPE_CHECKING:
    from ..accelerators.good_token_hunting import LayerPlan

HEADS, QUERIES = 4, 50  # sampled in each layer and window, as in the original study
COMPARED = 4  # windows on which the plan is compared with the one before


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="vggt", help="model family (default %(default)s)")
    parser.add_argument("--weights", default="", help="the model's weights file (default: the bundled model)")
    parser.add_argument(
        "--source", action="append", default=[], metavar="PATH",
        help="bag, folder of images, TUM folder or video to measure on; may be repeated (default: procedural rooms)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", default="", help="the file to write (default: next to --weights)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--picture", metavar="FILE", help="draw the entropy of each layer")
    parser.add_argument("--windows", type=int, default=16, help="default %(default)s")
    parser.add_argument("--frames", type=int, default=8, help="frames in a window (default %(default)s)")
    parser.add_argument("--side", type=int, default=0, help="longer side of the images, px (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    from ..accelerators.good_token_hunting import THRESHOLDS, LayerPlan
    from ..backbones.checkpoint import bundled_weights
    from ..errors import OutputError
    from ..files import write_text

    weights = args.weights or bundled_weights(args.backbone)
    path = args.output or LAYER_PLAN.next_to(weights)
    if not (args.output or args.weights):
        raise OutputError(
            f"{path} belongs to the installation: name a file with -o, and give it as accelerator.layer_plan"
        )
    if os.path.exists(path) and not args.overwrite:
        raise OutputError(f"{path} exists: replace it with --overwrite, or name another file with -o")
    measured: list[np.ndarray] = []
    with Interrupts() as stopped:
        try:
            with stopped.raising():
                model = load(weights, args)
                before = plan_before(weights, model)
                windows = images_of_windows(args, model, args.side or model.native_side)
                for values in measure(model, windows, args):
                    measured.append(values)
        except Stopped as cancelled:
            kept = measured and args.output  # what would change how models run from now on is all or nothing
            rest = f"{len(measured)} of {args.windows} windows are in {path}" if kept else "nothing is written"
            print_error("calibrate", f"{cancelled}; {rest}")
            if not kept:
                return 128 + (stopped.number or 0)
    entropy = np.array(measured)
    mean = entropy.mean(0)
    plan = LayerPlan.from_entropy(mean.tolist())
    content = {
        "local": plan.local,
        "grid": plan.grid,
        "entropy": [round(float(h), 4) for h in mean],
        "deviation": [round(float(h), 4) for h in entropy.std(0)],
        "thresholds": THRESHOLDS,
        "windows": len(entropy),
        "frames": args.frames,
        "source": [os.path.basename(os.path.normpath(s)) for s in args.source] or ["procedural rooms"],
        **made_for(weights),
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    if args.picture:
        draw_or_warn(args.picture, lambda: draw(entropy, plan.local, plan.grid, args.picture))
    changes: list[dict[str, float]] | None = None if before is None or stopped.number is not None else []
    if changes is not None and before is not None and before != plan:
        with Interrupts() as stopped, contextlib.suppress(Stopped), stopped.raising():
            changes = changes_of([plan, before], model, windows)
    print_result(args, {**content, "file": str(path)}, report(mean.tolist(), plan.local, plan.grid, path))
    if stopped.number is None:
        tell(of_layer_plan(path, args.weights, changes))
    return 0 if stopped.number is None else 128 + stopped.number


def load(weights: str, args: argparse.Namespace) -> Any:
    """The model. Raises CheckpointError."""
    from ..backbones.checkpoint import load_model
    from ..backbones.device import choose_device

    return load_model(args.backbone, weights).to(choose_device(args.device)).eval().requires_grad_(False)


def plan_before(weights: str, model: Any) -> LayerPlan | None:
    """The plan that holds for these weights until now; None if its file cannot be read."""
    from ..accelerators.good_token_hunting import read_layer_plan

    layers = sum(part == "global" for part in model.shape.trunk)
    with contextlib.suppress(CheckpointError):
        return read_layer_plan(weights, layers)
    return None


def measure(model: Any, windows: Iterator[np.ndarray], args: argparse.Namespace) -> Iterator[np.ndarray]:
    """(global layers,) of each window: entropy of attention rows relative to uniform attention, mean over sampled heads and queries.

    Raises DatasetError.
    """
    import torch

    device = next(model.parameters()).device
    for i in progress.bar(range(max(1, args.windows)), desc="calibrating", unit="window"):
        images = torch.from_numpy(next(windows)).to(device).float() / 255
        watch = EntropyWatch(args.seed + i)
        with torch.inference_mode():
            model.run_trunk(images, watch.accelerator())
        yield np.array(watch.entropy)


def changes_of(plans: Sequence[LayerPlan], model: Any, windows: Iterator[np.ndarray]) -> list[dict[str, float]]:
    """Of each plan, on COMPARED windows: `depth`, the mean relative change of depth against the dense model, and `read`, the share of the
    keys that is read."""
    import torch

    from ..accelerators import Accelerator, NoAccelerator
    from ..accelerators.good_token_hunting import GoodTokenHunting
    from ..evaluation import depth_errors

    device = next(model.parameters()).device
    rows: list[list[tuple[float, float]]] = [[] for _ in plans]

    def depth(images: Any, accelerator: Accelerator) -> tuple[np.ndarray, float]:
        out, trunk = model(images, accelerator, ("depth",))
        return out["depth"][0].float().cpu().numpy(), trunk.read_ratio

    for _ in progress.bar(range(COMPARED), desc="comparing with the plan before", unit="window"):
        images = torch.from_numpy(next(windows)).to(device).float() / 255
        with torch.inference_mode():
            dense, _ = depth(images, NoAccelerator())
            for row, plan in zip(rows, plans, strict=True):
                ours, read = depth(images, GoodTokenHunting(plan))
                row.append((depth_errors(ours, dense).abs_rel, read))
    return [dict(zip(("depth", "read"), np.mean(row, axis=0).tolist(), strict=True)) for row in rows]


def images_of_windows(args: argparse.Namespace, model: Any, side: int) -> Iterator[np.ndarray]:
    """Endless windows (1, frames, 3, H, W) uint8 of training rooms, or of the recordings. Raises DatasetError."""
    from ..datasets.rooms.rooms import render_sequence
    from ..datasets.rooms.splits import SPLIT_SEEDS
    from ..training.data import RecordedWindows

    if args.source:
        recorded = RecordedWindows(args.source, model, side, args.seed)
        while True:
            yield recorded.batch(1, args.frames)
    for i in itertools.count():
        seed = SPLIT_SEEDS["train"][(args.seed * 1009 + i) % len(SPLIT_SEEDS["train"])]
        height = model.patch * round(side * 3 / 4 / model.patch)
        yield render_sequence(seed, frames=args.frames, width=side, height=height).images.transpose(0, 3, 1, 2)[None]


class EntropyWatch:
    """Dense attention that measures the entropy of its rows in every global layer. entropy: one value per layer, in the order in
    which layers run."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.entropy: list[float] = []

    def accelerator(self) -> Any:
        from ..accelerators import Accelerator

        watch = self

        class Watch(Accelerator):
            def attend(self, q: Any, k: Any, v: Any, plan: Any, layer: Any) -> Any:
                if layer.part == "global":
                    watch.entropy.append(watch.look(q, k))
                return super().attend(q, k, v, plan, layer)

        return Watch()

    def look(self, q: Any, k: Any) -> float:
        """Mean normalised entropy of (B, heads, N, d): 0 if one key gets all attention, 1 if it is uniform."""
        import torch

        heads = torch.from_numpy(self.rng.permutation(q.shape[1])[:HEADS]).to(q.device)
        rows = torch.from_numpy(self.rng.permutation(q.shape[2])[:QUERIES]).to(q.device)
        logits = q[:, heads][:, :, rows].float() @ k[:, heads].float().transpose(2, 3) / q.shape[3] ** 0.5
        log_share = logits.log_softmax(-1)
        return float(-(log_share.exp() * log_share).sum(-1).mean() / np.log(max(2, k.shape[2])))


def report(entropy: list[float], local: int, grid: int, path: str) -> str:
    """The plan as a Markdown table."""
    rows = ["| global layer | entropy | reads |", "|---|---|---|"]
    for i, h in enumerate(entropy):
        reads = (
            "its own frame" if i < local else "a grid of the chosen frames" if i < grid else "all of the chosen frames"
        )
        rows.append(f"| {i} | {h:.3f} | {reads} |")
    return "\n".join([*rows, "", f"written to {path}"])


def draw(entropy: np.ndarray, local: int, grid: int, path: str) -> None:
    """Plots the entropy by layer, one dot per window, and the resulting plan."""
    from .report.figures import pyplot

    plt = pyplot()

    from ..accelerators.good_token_hunting import THRESHOLDS

    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    layers = np.arange(entropy.shape[1])
    for start, end, name, colour in ((0, local, "own frame", "#d0e0f5"), (local, grid, "grid", "#e6f1d8"),
                                     (grid, len(layers), "all", "#f7e3d3")):  # fmt: skip
        if end > start:
            axis.axvspan(start - 0.5, end - 0.5, color=colour, label=name)
    axis.plot(np.tile(layers, (len(entropy), 1)).T, entropy.T, ".", color="0.6", markersize=3)
    axis.plot(layers, entropy.mean(0), "k.-")
    for threshold in THRESHOLDS:
        axis.axhline(threshold, color="k", linewidth=0.5, linestyle=":")
    axis.set(xlabel="global layer", ylabel="entropy / largest possible", xlim=(-0.5, len(layers) - 0.5))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(title="keys read", loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=100)
    plt.close(figure)
