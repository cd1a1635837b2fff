"""Trains PaceVGGT's two networks for a frozen model: one chooses the patches to keep, the other rebuilds the rest.

Stage one imitates the full model: the scorer learns its attention (of each frame's camera token, and between all tokens), the
restorer learns to rebuild its levels from a random part of the patches. In stage two patches are really dropped: the restorer
learns to reproduce the full model's levels and to minimise its losses; the scorer learns which patches are hard to rebuild, so that
they are kept. In rooms the losses use the ground truth, in recordings the full model.

At the end the networks of both stages are compared with random and even choices and with the attention itself, with and without
restorer.

examples:
  come_ros train-pace -o out/pace                                  on procedural rooms, for the bundled model
  come_ros train-pace -o out/site --source my_bag --source photos/ adapt it to a place
  come_ros train-pace -o out/pace --minutes 10                     as many steps of each stage as fit into ten minutes
  come_ros train-pace -o out/pace --resume                         continue after an interruption
then: accelerator.name: pace, accelerator.pace: out/pace/pace.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any

from .. import progress
from ..companions import FINGERPRINT, WEIGHTS, made_for
from ..errors import ConfigError, Stopped
from ..interrupts import Interrupts
from ..training.data import Batch, RecordedWindows, recorded_batches, room_batches, room_validation
from ..training.loop import Clock, Means, denormals_flushed, load_state_of, resumable, save_state, write_log
from ..training.pace import L_DISTILL, L_ERROR, L_RESTORE, L_TASK, Lesson, distill_losses, refine_losses, teach
from ..training.pace_scores import comparison, evaluate, means
from .arguments import add_common_arguments, training_folder
from .report.figures import draw_or_warn
from .report.next_steps import of_networks, tell

# of the learning rate: peak, share of a stage until it; then cosine to 0
RATE, WARM_UP, WEIGHT_DECAY = 3e-3, 0.05, 0.01
SPREAD = 1.0
# Batches kept; updates per step of stage one, which take far less time than the full model
REPLAY, UPDATES = 12, 4
EVERY = 100  # steps between two scores
VALIDATION_WINDOWS = 12
STAGE_ONE = 0.4  # of the minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common_arguments(parser, "networks")
    parser.add_argument("--steps", type=int, default=400, help="steps of stage one (default %(default)s)")
    parser.add_argument("--refine-steps", type=int, default=600, help="steps of stage two (default %(default)s)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=0,
        help="time limit; a stage cut short is reported (0: no limit)",
    )
    parser.add_argument("--batch", type=int, default=16, help="frames per step (default %(default)s)")
    parser.add_argument(
        "--ratio", type=float, default=0.5, help="share of patches that are not kept (default %(default)s)"
    )
    parser.add_argument(
        "--spread", type=float, default=SPREAD,
        help="weight of an even choice relative to the score (default %(default)s); 0: by score alone, as published",
    )  # fmt: skip
    parser.add_argument(
        "--dim", type=int, default=0, help="width of both networks (default: a quarter of the encoder's)"
    )


def run(args: argparse.Namespace) -> int:
    result = train(args)
    print(json.dumps(result, indent=2))
    tell(of_networks(result["pace"], result["scores"], args.weights))
    return 0


def rate_at(share: float) -> float:
    """Learning rate factor by the progress of a stage: linear warm-up over the first WARM_UP, then cosine to 0."""
    return RATE * min(1.0, max(share, 1e-3) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


@denormals_flushed()
def train(args: argparse.Namespace) -> dict[str, Any]:
    """Runs both stages and writes distilled.safetensors (after stage one), pace.safetensors, comparison.md, curve.png, log.json.
    Returns the scores. Raises Stopped if a signal ended it: then the state is written, unless there is no step to keep."""
    if not 0 < args.ratio < 1 or args.spread < 0 or args.minutes < 0:
        raise ConfigError(
            f"--ratio is {args.ratio:g}, --spread {args.spread:g}, --minutes {args.minutes:g}, but the first must lie between 0 and 1, the "
            "others must be 0 or more"
        )
    training_folder(args, "state.pt")
    with Interrupts() as stopped:
        with stopped.raising():
            run = begin(args)
        first = dict(run.at)
        try:
            with stopped.raising():
                _stages(args, run, stopped)
                rows = _compared(run)
        except Stopped as stop:
            if run.at == first:
                raise
            run.save()
            raise Stopped(stop.number, resumable(sum(run.at.values()), args.output)) from None
        with open(os.path.join(args.output, "comparison.md"), "w", encoding="utf-8") as fh:
            fh.write(comparison(rows, run.how))
        write_log(args.output, {"settings": run.settings, "log": run.log, "comparison": rows})
    return {
        "pace": run.path("pace"),
        "untrained": run.log[0],
        "steps": sum(run.at.values()),
        "scores": means(rows),
    }


@dataclasses.dataclass(eq=False)
class Run:
    """A training run. model: the teacher. networks: scorer and restorer. how: Pace's parameters. settings: what a resumed run must have
    as well. batches: endless. held: windows for scores. at: steps of each stage so far."""

    output: str
    model: Any
    networks: Any
    optimiser: Any
    how: dict[str, Any]
    settings: dict[str, Any]
    batches: Iterator[Batch]
    held: list[Batch]
    at: dict[int, int]
    log: list[dict[str, Any]]

    @property
    def pair(self) -> tuple[Any, Any]:
        return self.networks["scorer"], self.networks["restorer"]

    def path(self, name: str) -> str:
        """Of the networks after stage one (distilled) or two (pace)."""
        return os.path.join(self.output, f"{name}.safetensors")

    def save(self) -> None:
        """Writes the state. Raises OutputError."""
        state = {
            "networks": self.networks.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "at": self.at,
            "log": self.log,
            "settings": self.settings,
        }
        save_state(os.path.join(self.output, "state.pt"), state)

    def scored(self, stage: int, losses: dict[str, float]) -> dict[str, Any]:
        """A line of the log: losses, and scores on part of the windows."""
        self.networks.eval()
        found = means(evaluate(self.model, {"": self.pair}, self.how, self.held[:VALIDATION_WINDOWS]))
        return {
            "step": sum(self.at.values()),
            "stage": stage,
            **losses,
            **{k.strip(", "): v for k, v in found.items()},
        }

    def draw(self) -> None:
        curve = os.path.join(self.output, "curve.png")
        draw_or_warn(curve, lambda: draw_curve(self.log, curve))


def begin(args: argparse.Namespace) -> Run:
    """A new run, or with --resume that of the state. Raises CheckpointError or DatasetError."""
    import torch

    from ..accelerators.pace_networks import make_networks
    from ..backbones.checkpoint import bundled_weights, load_model
    from ..backbones.device import choose_device

    torch.manual_seed(args.seed)
    device = choose_device(args.device)
    weights = args.weights or bundled_weights()
    model = load_model("", weights).to(device).eval().requires_grad_(False)
    side = args.side or model.native_side
    dim = args.dim or max(8, model.shape.encoder_width // 4 // 8 * 8)
    scorer, restorer = (network.to(device) for network in make_networks(model.shape, dim, args.spread))
    how = {"ratio": args.ratio, "spread": args.spread}
    networks = torch.nn.ModuleDict({"scorer": scorer, "restorer": restorer})
    optimiser = torch.optim.AdamW(networks.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    settings = {
        **made_for(weights),
        "dim": dim,
        **how,
        "steps": args.steps,
        "refine_steps": args.refine_steps,
    }
    at, log = {1: 0, 2: 0}, []
    if args.resume:
        state = load_state_of(os.path.join(args.output, "state.pt"), settings)
        networks.load_state_dict(state["networks"])
        optimiser.load_state_dict(state["optimiser"])
        at, log = state["at"], state["log"]
    seed = args.seed + sum(at.values())  # after an interruption, other windows than before

    if args.source:
        recorded = RecordedWindows(args.source, model, side, seed)
        batches = recorded_batches(recorded, args.batch, seed)
        held = [{"images": torch.from_numpy(w)[None]} for w in recorded.validation()[:VALIDATION_WINDOWS]]
    else:
        batches = room_batches(side, model.patch, args.batch, seed)
        held = room_validation(side, model.patch, 2 * VALIDATION_WINDOWS)
    held = [{k: v.to(device) for k, v in w.items()} for w in held]
    return Run(args.output, model, networks, optimiser, how, settings, batches, held, at, log)


def _stages(args: argparse.Namespace, run: Run, stopped: Interrupts) -> None:
    """All steps of both stages, and the files of their networks."""
    import torch

    from ..accelerators.pace_networks import save_networks

    about = {
        "licence": "Apache-2.0",
        "made_by": "come_ros train-pace",
        "seed": str(args.seed),
        **{name: run.settings[name] for name in (WEIGHTS, FINGERPRINT)},
        "settings": json.dumps(run.settings),
    }
    model, (scorer, restorer), at = run.model, run.pair, run.at
    device = next(model.parameters()).device
    if not run.log:
        run.log.append(run.scored(0, {}))
        run.draw()
    begun, memory = time.monotonic(), list[Lesson]()
    for stage, steps in ((1, args.steps), (2, args.refine_steps)):
        if args.resume and at[2] and stage == 1:
            continue  # the stage was finished, whatever ended it
        until = 60 * args.minutes * (STAGE_ONE if stage == 1 else 1.0) - (time.monotonic() - begun)
        clock, mean = Clock(steps, max(1e-3, until) if args.minutes else 0.0), Means(0.95)
        with progress.bar(total=steps, initial=at[stage], desc=f"train-pace, stage {stage}", unit="step") as bar:
            while (share := clock.share(at[stage])) < 1:
                run.networks.train()
                batch = {k: v.to(device) for k, v in next(run.batches).items()}
                lesson = teach(model, batch, heads=stage == 2)
                if stage == 1:
                    memory = [*memory[-REPLAY + 1 :], lesson]
                updates = UPDATES if stage == 1 else 1
                for update in range(updates):
                    if stage == 1:
                        terms = distill_losses(
                            model, scorer, restorer, memory[-1 - (update * 5) % len(memory)], args.ratio
                        )
                        loss = terms["distill"] + terms["restore"]
                    else:
                        terms = refine_losses(model, scorer, restorer, run.how, batch, lesson)
                        loss = L_RESTORE * terms["restore"] + L_TASK * terms["task"]
                        loss = loss + L_ERROR * terms["error"] + L_DISTILL * terms["distill"]
                    for group in run.optimiser.param_groups:
                        group["lr"] = rate_at(share)
                    run.optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    norm = torch.nn.utils.clip_grad_norm_(run.networks.parameters(), 1.0)
                    with stopped.held():
                        if torch.isfinite(norm):  # one bad batch must not spoil the networks
                            run.optimiser.step()
                        if update == updates - 1:
                            at[stage] += 1
                bar.update()
                mean.add({name: float(term.detach()) for name, term in terms.items()})
                if at[stage] % EVERY == 0 or clock.share(at[stage]) >= 1:
                    entry = run.scored(stage, mean)
                    bar.set_postfix(restored=entry["restored"], at_random=entry["at random"])
                    with stopped.held():
                        run.log.append(entry)
                        run.save()
                    run.draw()
        with stopped.held():
            save_networks(run.path("distilled" if stage == 1 else "pace"), scorer, restorer, about)


def _compared(run: Run) -> list[dict[str, Any]]:
    """Scores of the networks of both stages on all windows."""
    from ..accelerators.pace_networks import load_networks

    device = next(run.model.parameters()).device
    nets = {}
    for name, file in (("distilled", "distilled"), ("refined", "pace")):
        scorer, restorer = load_networks(run.path(file), run.model.shape)
        nets[name] = (scorer.to(device), restorer.to(device))
    return evaluate(run.model, nets, run.how, run.held)


def draw_curve(log: list[dict[str, Any]], path: str) -> None:
    """Plots losses, rank correlations and depth against the step, with a line where stage two begins."""
    from .report.figures import pyplot

    plt = pyplot()

    ways = ("copied", "restored", "at random", "evenly", "by attention")
    panels = {
        "loss": {n: n for n in ("distill", "restore", "error", "task")},
        "rank correlation of the score": {
            "spearman": "with the attention target",
            "spearman_error": "with the change of depth, at random",
        },
        "change of depth, mean |log|": {n: n for n in ways},
        "AbsRel to the truth": {"dense abs_rel": "full model"} | {f"{n} abs_rel": n for n in ways},
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(18, 4), layout="constrained")
    begins = max((e["step"] for e in log if e["stage"] < 2), default=0)
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name, label in names.items():
            points = [(e["step"], e[name]) for e in log if name in e]
            if points:
                style = "k--" if name == "dense abs_rel" else "o-" if name.startswith("restored") else ".-"
                axis.plot(*zip(*points, strict=True), style, label=label)
        axis.axvline(begins, color="0.5", linestyle=":")
        axis.set(title=title, xlabel="step (dotted: stage two begins)")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)
