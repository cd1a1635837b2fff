"""Trains a small model (`tiny2`, `tiny`, or a small `mapanything`) on procedural rooms, and scores it on unseen rooms.

examples:
  come_ros train --minutes 100 -o out/train              tiny, the bundled model before tiny2 (then --export)
  come_ros train --minutes 100 -o out/train --resume     continue after an interruption
  come_ros train --backbone mapanything --steps 4000 -o out/ma --encoder vggt_tiny.safetensors
  come_ros train --backbone lingbot --start vggt_tiny.safetensors --batch 32 --rate 3e-4 --threads 1 -o out/stream
                                                         tiny as a causal model, for endless streams
  come_ros train -o out/train --score test               scores of the checkpoint next to trivial baselines
  come_ros train --variant tiny2 --material DIR --start vggt_tiny.safetensors --batch 16 --threads 1 -o out/tiny2
                                                         tiny2, the bundled model: come_ros/training/README.md
  come_ros train -o out/train --export vggt_tiny.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import random
import time
from typing import Any

from .. import progress
from ..errors import CheckpointError, ConfigError, Stopped
from ..files import shown
from ..interrupts import Interrupts
from ..training.loop import Means, denormals_flushed, resumable, save_state, workers_ended, write_log
from ..training.room_windows import load_pictures, loader
from ..training.tiny import (
    LEARNING_RATE,
    MINUTES,
    begin_encoder,
    begin_with,
    descend,
    export,
    gradients,
    initialise,
    make_model,
    make_optimiser,
    make_probe,
    merge_some,
    rate_at,
    restore,
)
from .arguments import add_resume_arguments, training_folder
from .report.figures import draw_or_warn
from .report.next_steps import of_long_run, of_model, tell

BATCH_FRAMES = 24  # frames in a batch, whatever the window length
LONGEST_STEP_S = 20.0  # limit of a step's time: anything longer was a pause of the machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", required=True, help="folder for checkpoint, log and curve")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help="training time; the schedule is a function of it (default %(default)g)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="train for this many steps instead of --minutes: the same windows on any machine (tiny2: always, default 60000)",
    )
    parser.add_argument("--backbone", default="vggt", choices=["vggt", "lingbot", "mapanything"], help="(default vggt)")
    parser.add_argument("--variant", default="tiny", help="size of the backbone's model (default tiny)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = all")
    parser.add_argument(
        "--start",
        metavar="FILE",
        help="start with the model and probe of this checkpoint (last.pt), or with these weights (.safetensors); tiny2: with trunk and "
        "heads of these weights of tiny, or with all of these weights of tiny2",
    )
    parser.add_argument(
        "--encoder", metavar="FILE", help="start with the image encoder of these weights (of any backbone of that size)"
    )
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="peak learning rate (default %(default)s)")
    parser.add_argument(
        "--merge",
        type=float,
        default=0.0,
        help="share of steps in which random groups of patches are merged (default 0)",
    )
    parser.add_argument(
        "--predictor",
        metavar="FILE",
        help="Co-Me predictor that chooses the groups in two of three such steps (default: random)",
    )
    parser.add_argument("--pictures", metavar="DIR", help="folder of photographs to hang into the rooms")
    parser.add_argument(
        "--material",
        metavar="DIR",
        help="tiny2 only: folder of textures, pictures and panoramas, see come_ros/training/README.md",
    )
    parser.add_argument(
        "--watch",
        metavar="DIR",
        action="append",
        default=[],
        help="tiny2 only: recording for validation; may be repeated",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (bf16 there)")
    parser.add_argument("--batch", type=int, default=BATCH_FRAMES, help="frames per batch (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that render (default 1)")
    add_resume_arguments(parser)
    parser.add_argument("--score", choices=["validation", "test"], help="only score the checkpoint on this split")
    parser.add_argument("--export", metavar="FILE", help="only write the checkpoint's weights as fp16 safetensors")
    parser.add_argument(
        "--confidence",
        type=int,
        default=0,
        metavar="WINDOWS",
        help="tiny2 only, with --export: set the confidence by errors on so many windows of rooms (see come_ros/training/README.md; "
        "default 0: as it was learnt)",
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from ..training import long_run

    if args.confidence < 0 or (args.confidence and not args.export):
        raise ConfigError(
            f"--confidence is {args.confidence}, but must be 0 or more, and needs --export: add --export FILE"
        )
    if args.backbone == "vggt" and long_run.has_stem(args.variant):
        if not (args.export or args.score):
            training_folder(args, "last.pt")
        outcome = long_run.run(args, functools.partial(recorded_windows, args.watch))
        if outcome is not None:
            tell(of_long_run(outcome.scores, outcome.trivial, outcome.before, outcome.step, args.variant, args.output))
        return 0
    if args.material or args.watch or args.confidence:
        raise ConfigError(
            f"--material, --watch and --confidence are for a variant with a stem, not for {args.variant}: leave them out"
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.export:
        export(os.path.join(args.output, "last.pt"), args.export)
    elif args.score:
        from ..training.recipes import recipe_for

        model, _ = restore(os.path.join(args.output, "last.pt"))
        scores = recipe_for(model.name).score(model, args.score, 64)
        print(json.dumps(scores, indent=2))
        with open(os.path.join(args.output, f"scores_{args.score}.json"), "w", encoding="utf-8") as fh:
            json.dump(scores, fh, indent=2)
    else:
        training_folder(args, "last.pt")
        train(args)
    return 0


def recorded_windows(names: list[str], count: int, side: int, patch: int) -> dict[str, list[Any]]:
    """WindowTruth of recordings by their names: `count` windows of 4 frames of each at most. Raises DatasetError."""
    from ..camera.preprocess import PlainSizes
    from ..config import Config
    from .eval.sources import Cut, Source

    sources = [Source(name, Config()) for name in names]
    return {source.label: list(source.windows(Cut(most=count), PlainSizes(patch, side))) for source in sources}


@dataclasses.dataclass(eq=False)
class Run:
    """A training run, as its checkpoint holds it. seconds: of training time."""

    model: Any
    probe: Any
    optimiser: Any
    step: int = 0
    seconds: float = 0.0
    frames: int = 0
    log: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def save(self, args: argparse.Namespace) -> None:
        """Writes checkpoint and log. Raises OutputError."""
        networks = {name: getattr(self, name).state_dict() for name in ("model", "probe", "optimiser")}
        counts = {"step": self.step, "seconds": self.seconds, "frames": self.frames, "log": self.log}
        about = {name: getattr(args, name) for name in ("backbone", "variant", "minutes", "seed")}
        save_state(os.path.join(args.output, "last.pt"), {**about, **networks, **counts})
        write_log(args.output, self.log)


def begin(args: argparse.Namespace, recipe: Any) -> Run:
    """A new run, or with --resume that of the checkpoint. Raises CheckpointError."""
    from ..backbones.device import choose_device

    path = os.path.join(args.output, "last.pt")
    state: dict[str, Any] = {}
    if args.resume:
        model, state = restore(path)
        held, asked = (state.get("backbone", "vggt"), state["variant"]), (args.backbone, args.variant)
        if held != asked:
            raise CheckpointError(
                f"{path} is of {' '.join(held)}, not {' '.join(asked)}: resume with the --backbone and --variant that it has"
            )
        model.train()
    else:
        model = make_model(args.backbone, args.variant)
        initialise(model, recipe, args.seed)
    probe = make_probe(model)
    if args.encoder and not state:
        begin_encoder(args.encoder, model)
    if args.start and not state:
        begin_with(args.start, model, probe)
    device = choose_device(args.device)
    model.to(device), probe.to(device)
    recipe.prepare(model)
    run = Run(model, probe, make_optimiser(model, probe))
    if state:
        run.probe.load_state_dict(state["probe"])
        run.optimiser.load_state_dict(state["optimiser"])
        run.step, run.seconds, run.frames, run.log = (state[name] for name in ("step", "seconds", "frames", "log"))
    return run


@denormals_flushed()
def train(args: argparse.Namespace) -> None:
    """Trains and writes the checkpoint, log.json and curve.png. Raises Stopped if a signal ended it: then the state is written, unless
    there is no step to keep."""
    from ..training.recipes import recipe_for

    recipe = recipe_for(args.backbone)
    if args.merge and not recipe.merges:
        raise ConfigError(f"--merge is {args.merge:g}, but {args.backbone} is trained dense: leave it out")
    with Interrupts() as stopped, workers_ended():
        with stopped.raising():
            run = begin(args, recipe)
        first = run.step
        try:
            with stopped.raising():
                _steps(args, recipe, run, stopped)
                scores = recipe.score(run.model, "validation", 64)
        except Stopped as stop:
            if run.step == first:
                raise
            run.save(args)
            raise Stopped(stop.number, resumable(run.step, args.output)) from None
        run.log[-1]["validation"] = scores
        run.save(args)
        _draw(run, args)
        try:
            with stopped.raising(), progress.doing("scoring the weights before"):
                before = _before(args, recipe, run)
        except Stopped as stop:
            raise Stopped(stop.number, f"{args.output} is complete, but not compared with the weights before") from None
    print(json.dumps(run.log[-1], indent=2))
    tell(of_model(scores, args.output, before))


def _before(args: argparse.Namespace, recipe: Any, run: Run) -> tuple[str, dict[str, Any]] | None:
    """What the weights are that were there before this run, in words, and their scores: those of --start, or that ship for this variant.
    None if there are none."""
    from ..backbones.checkpoint import bundled_weights, load_model

    try:
        if not args.start:
            name, model = "the bundled model", load_model(args.backbone, bundled_weights(args.backbone))
        elif args.start.endswith(".safetensors"):
            name, model = shown(args.start), load_model(args.backbone, args.start)
        else:
            name, model = shown(args.start), restore(args.start)[0]
    except CheckpointError:
        return None
    if model.sizes != run.model.sizes:  # of another variant
        return None
    model.to(next(run.model.parameters()).device)
    return name, recipe.score(model, "validation", 64)


def _steps(args: argparse.Namespace, recipe: Any, run: Run, stopped: Interrupts) -> None:
    """All steps; at the end the log has an entry for them."""
    from ..accelerators.confidence import load_predictor

    device = next(run.model.parameters()).device
    pictures = load_pictures(args.pictures) if args.pictures else []
    # after a resume, other windows than before; a pretrained model needs no curriculum, which depends on the time
    practised = 60.0 if args.start or args.steps else run.seconds / 60
    seed, side = args.seed + 7919 * run.step, run.model.native_side
    batches = loader(seed, side, practised, args.batch, pictures, args.workers, recipe.windows, run.model.patch)
    merging = random.Random(args.seed + run.step)
    predictor = load_predictor(args.predictor, run.model.shape) if args.predictor else None
    if predictor:
        predictor[0].to(device)
    mean = Means(0.97)
    bar = progress.bar(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
    last, next_log, next_score = time.monotonic(), run.seconds + 30, run.seconds + 600

    def share() -> float:
        return run.step / args.steps if args.steps else run.seconds / (60 * args.minutes)

    with bar:
        while (done := share()) < 1:
            rate = rate_at(args.rate, run.step, done)
            batch = {name: value.to(device, non_blocking=True) for name, value in next(batches).items()}
            merge = merge_some(merging, predictor) if merging.random() < args.merge else None
            terms = gradients(run.model, recipe, run.probe, batch, done, merge)
            with stopped.held():
                descend(run.model, run.optimiser, rate)
                run.step, run.frames = run.step + 1, run.frames + batch["images"].shape[0] * batch["images"].shape[1]
                now = time.monotonic()
                run.seconds, last = run.seconds + min(now - last, LONGEST_STEP_S), now
            mean.add(terms, skip_zero=True)
            bar.n = round(100 * share(), 1)
            text = f"step {run.step} " + " ".join(f"{k} {v:.3f}" for k, v in mean.items())
            bar.set_postfix_str(text, refresh=run.step % 20 == 0)
            if run.seconds >= next_log:
                entry = _entry(run, rate, mean)
                if run.seconds >= next_score:
                    entry["validation"] = recipe.score(run.model, "validation", 24)
                    next_score += 600
                next_log += 30
                with stopped.held():
                    run.log.append(entry)
                    run.save(args)
                _draw(run, args)
                last = time.monotonic()  # scoring does not count as training time
    if not run.log or run.log[-1]["step"] < run.step:  # else a run was resumed that lacked nothing but its scores
        run.log.append(_entry(run, 0.0, mean))


def _entry(run: Run, rate: float, mean: Means) -> dict[str, Any]:
    return {"step": run.step, "seconds": run.seconds, "frames": run.frames, "rate": rate, **mean}


def _draw(run: Run, args: argparse.Namespace) -> None:
    curve = os.path.join(args.output, "curve.png")
    draw_or_warn(curve, lambda: draw_curve(run.log, curve))


def draw_curve(log: list[dict[str, Any]], path: str) -> None:
    from .report.figures import pyplot

    plt = pyplot()

    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    minutes = [e["seconds"] / 60 for e in log]
    about_the_run = ("step", "seconds", "frames", "rate", "validation")
    for name in dict.fromkeys(k for e in log for k in e if k not in about_the_run):
        axes[0].plot(minutes, [e.get(name, math.nan) for e in log], label=name)
    axes[0].set(title="training loss", xlabel="minutes")
    scored = [(e["seconds"] / 60, e["validation"]) for e in log if "validation" in e]
    for null in ("constant delta", "mean map delta"):
        axes[1].plot([m for m, _ in scored], [v[null] for _, v in scored], "--", label=null)
    axes[1].plot([m for m, _ in scored], [v["delta"] for _, v in scored], "o-", label="delta < 1.25")
    axes[1].set(title="validation depth", xlabel="minutes")
    axes[2].plot(
        [m for m, _ in scored], [v["identity rotation_deg"] for _, v in scored], "--", label="identity rotation"
    )
    axes[2].plot([m for m, _ in scored], [v["rotation_deg"] for _, v in scored], "o-", label="rotation error, deg")
    axes[2].plot(
        [m for m, _ in scored], [v["direction_deg"] for _, v in scored], "o-", label="translation direction, deg"
    )
    axes[2].set(title="validation pose", xlabel="minutes", ylim=(0, None))
    for axis in axes:
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)
