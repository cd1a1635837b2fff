"""Long training of a model with a stem over many sessions: schedule by steps, moving average, checkpoints chosen by validation.

`last.pt` in the run's folder holds its complete state: stop it at any time and start the same command with --resume.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import progress
from ..backbones.checkpoint import bundled_weights, load_vggt, save_checkpoint
from ..backbones.device import choose_device
from ..backbones.vggt import VARIANTS, VGGT, VGGTSizes
from ..datasets.material import Material, load_material
from ..errors import CheckpointError, ConfigError, Stopped
from ..evaluation.window import WindowTruth
from ..interrupts import Interrupts
from ..weights import read_checkpoint
from .confidence import set_by_errors
from .judge import Judge
from .loop import Means, denormals_flushed, load_state, resumable, save_state, workers_ended, write_log
from .motion_losses import SHORT
from .parallax import Mix, loader
from .stem_losses import imitation_loss, losses
from .stem_start import begin, freeze, make_probe, stem_weights
from .tiny import LEARNING_RATE, MINUTES

WATCHED = 24  # windows of each source for validation, at most


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of a run. steps: the first `warm_up` raise the rates, and the last `cool_down` (a share) lower them to zero; in
    between they are constant, so a run can be extended while it is in progress. batch: frames per step. rate, trunk_rate,
    stem_rate: peak rates for heads and encoder blocks, for a pretrained trunk, for the stem. imitate: first steps, in which only
    the encoder learns, to reproduce an earlier model's encoder (with `start`). average: decay of the moving average. fade: steps
    over which matching and attention losses fade out; flow and rays stay. short: see motion_loss. save_s: seconds between
    checkpoints."""

    steps: int = 60_000
    batch: int = 16
    rate: float = 4e-4
    trunk_rate: float = 2e-4
    stem_rate: float = 1e-4
    warm_up: int = 200
    cool_down: float = 0.2
    weight_decay: float = 0.02
    imitate: int = 400
    average: float = 0.999
    fade: int = 20_000
    short: float = SHORT
    validate: int = 500
    save_s: float = 240.0
    mix: Mix = dataclasses.field(default_factory=Mix)
    weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "turn": 5.0, "direction": 5.0, "length": 5.0, "distance": 5.0, "depth": 1.0, "depth sure": 0.05, "points": 1.0,
            "points sure": 0.02, "flow": 0.3, "ray": 2.0, "match": 0.3, "attention": 0.3,
        }
    )  # fmt: skip

    def rate_at(self, step: int) -> float:
        """Factor of the peak rates."""
        left = (self.steps - step) / max(1.0, self.cool_down * self.steps)
        return min(1.0, (step + 1) / self.warm_up, max(left, 0.0))

    def fade_at(self, step: int) -> float:
        """Weight of the losses that fade out."""
        return max(0.0, 1 - step / max(self.fade, 1))


def make_optimiser(model: VGGT, probe: nn.Module, plan: Plan, trained: bool) -> torch.optim.Optimizer:
    """AdamW with a rate for each part, and no weight decay for vectors, tokens, tables, and the stem. trained: whether the trunk is."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in [*model.named_parameters(), *probe.named_parameters()]:
        if not parameter.requires_grad:
            continue
        of_stem, of_trunk = ".stem." in name, name.startswith("aggregator.") and ".patch_embed." not in name
        rate = plan.stem_rate if of_stem else plan.trunk_rate if trained and of_trunk else plan.rate
        plain = of_stem or parameter.ndim < 2 or "token" in name or "pos_embed" in name
        groups.setdefault((rate, 0.0 if plain else plan.weight_decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": r, "peak": r, "weight_decay": d} for (r, d), p in groups.items()],
        betas=(0.9, 0.95),
        fused=True,
    )


class Average:
    """Moving average of a model's parameters, with a smaller decay at first."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        ours, theirs = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)


def has_stem(variant: str) -> bool:
    """Whether this module trains that variant of VGGT."""
    return variant in VARIANTS and VARIANTS[variant].stem


@dataclasses.dataclass
class State:
    """The mutable state of a run. trained: whether its trunk was pretrained. imitates: whether its first steps imitate an earlier
    encoder."""

    model: VGGT
    probe: nn.ModuleDict
    optimiser: torch.optim.Optimizer
    average: Average
    plan: Plan
    variant: str
    seed: int
    trained: bool
    imitates: bool
    step: int = 0
    frames: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    log: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def to(self, device: torch.device) -> None:
        """Moves everything to the device."""
        for module in (self.model, self.probe, self.average.model):
            module.to(device)
        self.optimiser.load_state_dict(self.optimiser.state_dict())  # which moves its tensors to the parameters' device

    def save(self, path: str) -> None:
        """Writes the state atomically."""
        plain = {
            n: getattr(self, n)
            for n in ("variant", "seed", "trained", "imitates", "step", "frames", "seconds", "best", "log")
        }
        parts = {n: getattr(self, n).state_dict() for n in ("model", "probe", "optimiser")}
        average = {"average": self.average.model.state_dict(), "average_steps": self.average.steps}
        save_state(path, {**plain, **parts, **average})


def new_state(variant: str, seed: int, plan: Plan, earlier: VGGT | None, stem: str = "") -> State:
    model = begin(VARIANTS[variant], seed, stem_weights(stem), earlier)
    return _state(model, plan, variant, seed, earlier is not None, earlier is not None)


def state_from(variant: str, seed: int, plan: Plan, trained: VGGT) -> State:
    """A new run that begins with all weights of a trained model of this variant, and imitates nothing. What its confidence was set to by
    place in the image (confidence.py) is left out: it is set again at the end. Raises CheckpointError if it is of other sizes."""
    sizes = VARIANTS[variant]
    if dataclasses.replace(trained.sizes, by_place=sizes.by_place) != sizes:
        raise CheckpointError(f"--start has a stem, but other sizes than {variant}: {trained.sizes} instead of {sizes}")
    torch.manual_seed(seed)  # of the probe
    model = VGGT(sizes)
    state = trained.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return _state(model, plan, variant, seed, True, False)


def _state(model: VGGT, plan: Plan, variant: str, seed: int, trained: bool, imitates: bool) -> State:
    freeze(model)
    probe = make_probe(model)
    optimiser = make_optimiser(model, probe, plan, trained)
    return State(model, probe, optimiser, Average(model, plan.average), plan, variant, seed, trained, imitates)


def restore(path: str, plan: Plan | None = None) -> State:
    """Reads the state of a checkpoint. Raises CheckpointError if there is none, or it is of another kind of training."""
    held = load_state(path)
    if "average" not in held or not has_stem(held.get("variant", "")):
        raise CheckpointError(
            f"{path} is not a checkpoint of a variant with a stem: resume it with the --variant that it has"
        )
    imitates = held.get("imitates", held["trained"])  # checkpoints from before it was told apart
    variant = held["variant"]
    state = _state(VGGT(VARIANTS[variant]), plan or Plan(), variant, held["seed"], held["trained"], imitates)
    peaks = [group["peak"] for group in state.optimiser.param_groups]
    for name in ("model", "probe", "optimiser"):
        getattr(state, name).load_state_dict(held[name])
    for group, peak in zip(state.optimiser.param_groups, peaks, strict=True):  # those of the plan, not the initial ones
        group["peak"] = peak
    state.average.model.load_state_dict(held["average"])
    state.average.steps = held["average_steps"]
    for name in ("step", "frames", "seconds", "best", "log"):
        setattr(state, name, held[name])
    return state


def learn(state: State, batch: dict[str, Tensor], earlier: VGGT | None) -> dict[str, float]:
    """One step: `gradients`, then `descend`. Returns each term."""
    terms, share = gradients(state, batch, earlier)
    return terms | {"norm": descend(state, batch, share)}


def gradients(state: State, batch: dict[str, Tensor], earlier: VGGT | None) -> tuple[dict[str, float], float]:
    """Adds the gradients of one batch, and changes nothing else, so that it may be interrupted anywhere. First the encoder imitates the
    earlier one, if given, then everything is trained. Returns each term, and the share of the peak learning rates."""
    plan, step = state.plan, state.step
    if earlier is not None and step < plan.imitate:
        terms = {"imitation": imitation_loss(state.model, earlier, batch["images"].float() / 255)}
        total, share = terms["imitation"], min(1.0, (step + 1) / 30)
    else:
        fade = plan.fade_at(step)
        terms = losses(state.model, state.probe, batch, fade > 0, plan.short)
        total = torch.stack(
            [plan.weights[n] * (fade if n in ("match", "attention") else 1.0) * x for n, x in terms.items()]
        ).sum()
        share = plan.rate_at(step - plan.imitate if step < plan.imitate + plan.warm_up and state.imitates else step)
    total.backward()
    return {name: float(value.detach()) for name, value in terms.items()}, share


def descend(state: State, batch: dict[str, Tensor], share: float) -> float:
    """Follows the gradients of that batch, clears them and counts the step. Returns their norm."""
    for group in state.optimiser.param_groups:
        group["lr"] = share * group["peak"]
    norm = torch.nn.utils.clip_grad_norm_([p for p in state.model.parameters() if p.grad is not None], 1.0)
    if torch.isfinite(norm):  # one bad batch must not spoil the weights
        state.optimiser.step()
        state.average.take(state.model)
    state.optimiser.zero_grad(set_to_none=True)
    state.step += 1
    state.frames += batch["images"].shape[0] * batch["images"].shape[1]
    return float(norm)


@denormals_flushed()
def train(
    state: State,
    material: Material,
    output: str,
    earlier: VGGT | None,
    judge: Callable[[VGGT], dict[str, Any]],
    until_s: float = math.inf,
    workers: int = 1,
) -> None:
    """Trains until the plan's last step, or `until_s` seconds of this process's CPU time, and writes last.pt and log.json. Raises Stopped
    if a signal ended it; last.pt then holds the steps before.

    judge(model) -> scores with a `figure`, larger is better: the average of the best one is kept as best.pt. workers: see loader.
    """
    with Interrupts() as stopped, workers_ended():
        try:
            with stopped.raising():
                _steps(state, material, output, earlier, judge, until_s, workers, stopped)
        except Stopped as stop:
            ended: Stopped | None = Stopped(stop.number, resumable(state.step, output))
        else:
            ended = None
        state.save(os.path.join(output, "last.pt"))
        write_log(output, state.log)
    if ended is not None:
        raise ended


def _steps(
    state: State,
    material: Material,
    output: str,
    earlier: VGGT | None,
    judge: Callable[[VGGT], dict[str, Any]],
    until_s: float,
    workers: int,
    stopped: Interrupts,
) -> None:

    plan, last, best = state.plan, os.path.join(output, "last.pt"), os.path.join(output, "best.pt")
    device = next(state.model.parameters()).device
    # after a resume, other windows than before
    seed = state.seed + 7919 * state.step
    batches = loader(seed, material, plan.mix, state.model.patch, plan.batch, workers)
    mean = Means(0.98)
    bar = progress.bar(
        total=plan.steps, initial=state.step, unit="step", mininterval=30.0, dynamic_ncols=False, ncols=160
    )
    saved = time.monotonic()
    with bar:
        while state.step < plan.steps and state.seconds < until_s:
            begun = time.process_time()
            batch = {name: value.to(device, non_blocking=True) for name, value in next(batches).items()}
            terms, share = gradients(state, batch, earlier)
            with stopped.held():
                norm = descend(state, batch, share)
                state.seconds += time.process_time() - begun
            mean.add(terms | {"norm": norm}, skip_zero=True)
            bar.update()
            bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in mean.items()), refresh=False)
            # the last step is the one that has cooled down
            if state.step % plan.validate == 0 or state.step == plan.steps:
                scores = judge(state.average.model)
                about = {"step": state.step, "frames": state.frames, "seconds": round(state.seconds)}
                with stopped.held():
                    state.log.append({**about, **mean, "scores": scores})
                    bar.write(json.dumps(state.log[-1]))
                    if scores["figure"] > state.best:
                        state.best = scores["figure"]
                        state.save(best)
                    write_log(output, state.log)
            if time.monotonic() - saved > plan.save_s:
                with stopped.held():
                    state.save(last)
                saved = time.monotonic()


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan set by the command line. Raises ConfigError for an option that does not apply here."""
    for name, usual in (("encoder", None), ("merge", 0.0), ("predictor", None), ("pictures", None), ("rate", LEARNING_RATE),
                        ("minutes", MINUTES)):  # fmt: skip
        if getattr(args, name) != usual:
            raise ConfigError(f"--{name} does not apply to {args.variant}: leave it out")
    return dataclasses.replace(Plan(), steps=args.steps or Plan.steps, batch=args.batch)


def begun(args: argparse.Namespace, plan: Plan) -> tuple[State, VGGT | None]:
    """The state that the command line asks for: one to go on with, or a new one, from nothing, from a model without a stem, or from one
    of this variant. And the earlier model that it imitates, if there is one. Raises CheckpointError or ConfigError."""
    start = load_vggt(args.start) if args.start else None
    earlier = start.eval().requires_grad_(False) if start is not None and not start.sizes.stem else None
    if not args.resume:
        if start is not None and earlier is None:
            return state_from(args.variant, args.seed, plan, start), None
        return new_state(args.variant, args.seed, plan, earlier), earlier
    path = os.path.join(args.output, "last.pt")
    state = restore(path, plan)
    if state.variant != args.variant:
        raise CheckpointError(
            f"{path} is of vggt {state.variant}, not vggt {args.variant}: resume with the --variant that it has"
        )
    if start is not None and earlier is None:
        raise ConfigError(f"--start {args.start} has a stem, and --resume goes on with {path}: give one of the two")
    if state.imitates and earlier is None and state.step < plan.imitate:
        raise ConfigError(
            f"{path} is at step {state.step}, but its encoder imitates an earlier one until step {plan.imitate}: give --start with the "
            f"weights that the run began with, next to --resume"
        )
    return state, earlier if state.imitates else None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to, by source of validation windows, as Judge gives it. step: of the best average, which is the one that --export
    writes; scores: its; trivial: of trivial baselines; before: what the weights are that were there before, in words, and their scores at
    their own image size."""

    step: int
    scores: Mapping[str, Any]
    trivial: Mapping[str, Any]
    before: tuple[str, Mapping[str, Any]]


def run(
    args: argparse.Namespace, recordings: Callable[[int, int, int], Mapping[str, list[WindowTruth]]]
) -> Outcome | None:
    """`come_ros train` for a variant with a stem. recordings(count, side, patch): windows for validation, by name. Returns None if nothing
    was trained. Raises Stopped if a signal ended it."""

    def judge(split: str, count: int, sizes: VGGTSizes = VARIANTS[args.variant]) -> Judge:
        return Judge.of(split, count, recordings(count, sizes.native_side, sizes.patch), sizes.native_side, sizes.patch)

    if args.threads:
        torch.set_num_threads(args.threads)
    path = os.path.join(args.output, "last.pt")
    if args.export:
        best = os.path.join(args.output, "best.pt")
        source = args.start or (best if os.path.isfile(best) else path)
        material = load_material(args.material) if args.material else Material()
        export(source, args.export, args.confidence, material)
        return None
    if args.score:
        print(json.dumps(judge(args.score, 64)(restore(path).average.model), indent=2))
        return None
    plan = plan_of(args)
    state, earlier = begun(args, plan)
    state.to(choose_device(args.device))
    if earlier is not None:
        earlier.to(choose_device(args.device))
    material = load_material(args.material) if args.material else Material()
    print(f"{state.variant} at step {state.step} of {plan.steps}; material: {material}")
    ours = judge("validation", WATCHED)
    train(state, material, args.output, earlier, ours, workers=args.workers)
    scored = [entry for entry in state.log if "scores" in entry]
    if not scored:
        return None
    best_one = max(scored, key=lambda entry: float(entry["scores"]["figure"]))
    name, weights = (args.start, args.start) if args.start else ("the bundled model", bundled_weights())
    with Interrupts() as stopped:
        try:
            with stopped.raising(), progress.doing("scoring the weights before"):
                model = load_vggt(weights).eval()
                before = judge("validation", WATCHED, model.sizes)(model)
        except Stopped as stop:
            raise Stopped(stop.number, f"{args.output} is complete, but not compared with the weights before") from None
    return Outcome(best_one["step"], best_one["scores"], ours.baselines(), (name, before))


def export(source: str, target: str, windows: int = 0, material: Material | None = None) -> None:
    """The moving average of a checkpoint, or a weights file, as fp16 safetensors. windows: number of windows of rooms by which its
    confidence is set, see confidence.py; 0: as it was learnt. Raises Stopped if a signal ended it; then nothing is written."""
    if source.endswith(".safetensors"):
        model = load_vggt(source)
        about = {name: text for name, text in read_checkpoint(source)[1].items() if not name.startswith("come_ros.")}
    else:
        state = restore(source)
        model, about = state.average.model, {k: str(getattr(state, k)) for k in ("step", "frames", "seed")}
    if windows:
        with Interrupts() as stopped, workers_ended():
            try:
                with stopped.raising():
                    model = set_by_errors(model, material or Material(), windows)
            except Stopped as stop:
                raise Stopped(stop.number, f"{target} is not written: run it again") from None
        about["confidence"] = f"set by the errors on {windows} windows of rooms"
    save_checkpoint(target, model, extra={"licence": "Apache-2.0", "made_by": "come_ros train", **about})
    print(f"{target}: {os.path.getsize(target) / 2**20:.2f} MiB")
