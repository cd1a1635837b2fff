"""Trains a small predictor that estimates, from an early encoder block, how confident the full model will be about each patch (for
Co-Me).

It needs no labels: the frozen model is the teacher, so your own recordings are sufficient and training takes minutes. Loss:
logistic ranking of pairs of patches ("Co-Me", 2025, eq. for L), or z-scored squared error for comparison.

examples:
  come_ros distill -o out/distill                                  on procedural rooms, for the bundled model
  come_ros distill -o out/site --source my_bag --source photos/    adapt it to a place
  come_ros distill -o out/distill --resume                         continue after an interruption
then: accelerator.name: come, accelerator.predictor: out/distill/predictor.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .. import progress
from ..companions import FINGERPRINT, PREDICTOR, WEIGHTS, made_for
from ..errors import CheckpointError, Stopped
from ..files import shown
from ..interrupts import Interrupts
from ..training.data import RecordedWindows, RoomWindows, draw_batch
from ..training.loop import Means, denormals_flushed, load_state_of, resumable, save_state, write_log
from ..training.predictor import GROUP, LAST_RATE, LEARNING_RATE, RATIO, Student, agreement, teach
from .arguments import add_common_arguments, training_folder
from .report.figures import draw_or_warn
from .report.next_steps import of_predictor, tell

EVERY = 100  # steps between two scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(parser, "predictor")
    parser.add_argument(
        "--steps",
        type=int,
        default=2000,
        help="total number of training steps (default %(default)s); may be raised with --resume",
    )
    parser.add_argument("--batch", type=int, default=32, help="frames per step (default %(default)s)")
    parser.add_argument("--loss", choices=["ranking", "mse"], default="ranking", help="default %(default)s")
    parser.add_argument(
        "--scope",
        choices=["window", "frame", "pooled"],
        default="window",
        help="attention of the predictor: within the window, within a frame, or none (pooled)",
    )
    parser.add_argument("--dim", type=int, default=32, help="width of the predictor (default %(default)s)")
    parser.add_argument("--block", type=int, default=-1, help="encoder block to read, from 0 (default: 5/8 of the way)")


def run(args: argparse.Namespace) -> int:
    result = distill(args)
    print(json.dumps(result, indent=2))
    tell(
        of_predictor(result["predictor"], result["step"], result["spearman"], result["bundled_spearman"], args.weights)
    )
    return 0


def rate_at(step: int, steps: int) -> float:
    """Cosine from LEARNING_RATE to LAST_RATE. It depends on the step alone, so that a run can be extended."""
    return LAST_RATE + (LEARNING_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))


@denormals_flushed()
def distill(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and writes predictor.safetensors, curve.png and log.json. Returns the last scores. Raises Stopped if a signal ended it:
    then the state is written, unless there is no step to keep."""
    from ..accelerators.confidence import save_predictor

    training_folder(args, "state.pt")
    with Interrupts() as stopped:
        with stopped.raising():
            run = begin(args)
        first, bundled = run.step, None
        try:
            with stopped.raising():
                _steps(args, run, stopped)
                bundled = bundled_agreement(run.model, run.weights, run.data.validation(), run.device)
        except Stopped as stop:
            if run.step == first:
                raise
            run.save(args)
            if run.step < args.steps:
                raise Stopped(stop.number, resumable(run.step, args.output)) from None
        about = {"licence": "Apache-2.0", "made_by": "come_ros distill", "steps": str(run.step), "loss": args.loss,
                 "seed": str(args.seed), **{name: run.settings[name] for name in (WEIGHTS, FINGERPRINT)}}  # fmt: skip
        path = os.path.join(args.output, "predictor.safetensors")
        save_predictor(path, run.student.predictor.cpu(), run.student.block, about)
        write_log(args.output, run.log)
    if stopped.number is not None:
        raise Stopped(stopped.number, f"{shown(path)} is complete, but not scored")
    return {"predictor": path, "block": run.student.block, **run.log[-1], "bundled_spearman": bundled}


@dataclasses.dataclass(eq=False)
class Run:
    """A training run. model: the teacher, from the file `weights`. settings: what a resumed run must have as well."""

    model: Any
    weights: str
    student: Student
    data: RecordedWindows | RoomWindows
    device: Any
    settings: dict[str, Any]
    rng: np.random.Generator
    step: int = 0
    log: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def save(self, args: argparse.Namespace) -> None:
        """Writes the state. Raises OutputError."""
        networks = {
            "predictor": self.student.predictor.state_dict(),
            "optimiser": self.student.optimiser.state_dict(),
        }
        state = {**networks, "step": self.step, "log": self.log, "settings": self.settings}
        save_state(os.path.join(args.output, "state.pt"), state)


def begin(args: argparse.Namespace) -> Run:
    """A new run, or with --resume that of the state. Raises CheckpointError or DatasetError."""
    import torch

    from ..accelerators.confidence import default_block
    from ..backbones.checkpoint import bundled_weights, load_model
    from ..backbones.device import choose_device

    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    device = choose_device(args.device)
    weights = args.weights or bundled_weights()
    model = load_model("", weights).to(device).eval().requires_grad_(False)
    block = args.block if args.block >= 0 else default_block(len(model.encoder_blocks()))
    side = args.side or model.native_side
    student = Student.new(model, block, args.loss, args.scope, args.dim, args.seed)
    step = 0
    log: list[dict[str, Any]] = []
    settings = {**made_for(weights), "block": block, "scope": args.scope, "dim": args.dim,
                "loss": args.loss, "steps": args.steps}  # fmt: skip
    if args.resume:
        step, log = resume(os.path.join(args.output, "state.pt"), student, settings)
        rng = np.random.default_rng((args.seed, step))
    # after a break, other images than at the start
    data = (
        RecordedWindows(args.source, model, side, args.seed + step)
        if args.source
        else RoomWindows(args.seed + step, side, model.patch)
    )
    return Run(model, weights, student, data, device, settings, rng, step, log)


def _steps(args: argparse.Namespace, run: Run, stopped: Interrupts) -> None:
    """All steps; the last entry of the log has the scores after them."""
    import torch

    student, block = run.student, run.student.block
    taught = [teach(run.model, torch.from_numpy(w)[None].to(run.device), [block]) for w in run.data.validation()]
    mean = Means(0.95)
    if not run.log:
        run.log.append({"step": 0, "loss": None, **agreement(student.predictor, block, taught)})
    with progress.bar(total=args.steps, initial=run.step, desc="distilling", unit="step") as bar:
        while run.step < args.steps:
            images = torch.from_numpy(draw_batch(run.data, run.rng, args.batch)).to(run.device)
            lesson = teach(run.model, images, [block])
            with stopped.held():
                now = student.learn(*lesson, rate_at(run.step, args.steps))
                run.step += 1
            mean.add({"loss": now})
            bar.update()
            if run.step % EVERY == 0 or run.step == args.steps:
                entry = {"step": run.step, **mean, **agreement(student.predictor, block, taught)}
                bar.set_postfix(
                    loss=f"{mean['loss']:.3f}", spearman=f"{entry['spearman']:.3f}", iou=f"{entry['mask_iou']:.3f}"
                )
                with stopped.held():
                    run.log.append(entry)
                    run.save(args)
                curve = os.path.join(args.output, "curve.png")
                draw_or_warn(curve, functools.partial(draw_curve, run.log, args.loss, curve))


def bundled_agreement(model: Any, weights: str, windows: Iterable[Any], device: Any) -> float | None:
    """Rank correlation with the model's confidence of the predictor that ships for these weights; None if none does."""
    import torch

    from ..accelerators.confidence import load_predictor

    try:
        predictor, block = load_predictor(PREDICTOR.of(weights), model.shape)
    except CheckpointError:
        return None
    predictor.to(device)
    taught = [teach(model, torch.from_numpy(w)[None].to(device), [block]) for w in windows]
    return agreement(predictor, block, taught)["spearman"]


def resume(path: str, student: Student, settings: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Loads the state in the file `path` into the student. Returns (steps done, log). settings: those of the new run.

    With another number of steps the rest follows the new schedule, which is logged. Raises CheckpointError if there is no such
    file, if it is of another student, or if the requested steps are done.
    """
    state = load_state_of(path, {k: v for k, v in settings.items() if k != "steps"})
    before, step, log = state["settings"], int(state["step"]), state["log"]
    if step >= settings["steps"]:
        raise CheckpointError(
            f"{path} has {step} steps already, and --steps asks for {settings['steps']}: nothing is left to do; raise --steps "
            f"to continue"
        )
    if before.get("steps", settings["steps"]) != settings["steps"]:
        print(
            f"continuing from step {step} with --steps {settings['steps']} instead of {before['steps']}: from here the learning rate "
            f"follows the curve of the new length",
            file=sys.stderr,
        )
    student.predictor.load_state_dict(state["predictor"])
    student.optimiser.load_state_dict(state["optimiser"])
    return step, log


def draw_curve(log: list[dict[str, Any]], loss: str, path: str) -> None:
    """Loss, rank correlation and mask overlap against the step."""
    from .report.figures import pyplot

    plt = pyplot()

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for axis, (name, title) in zip(axes, _curves(loss), strict=True):
        axis.plot([e["step"] for e in log if e[name] is not None], [e[name] for e in log if e[name] is not None])
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _curves(loss: str) -> Iterator[tuple[str, str]]:
    yield "loss", f"{loss} loss"
    yield "spearman", "rank correlation with the teacher"
    yield "mask_iou", f"overlap of the merge masks, {GROUP[0]}x{GROUP[1]}, {RATIO:.0%}"
