"""Teach PaceVGGT's two networks for a model that stays as it is: which patches to keep, and how to rebuild the others.

Stage one: the scorer learns where the whole model looks (each frame's camera token, and all tokens among one another). Stage two: scorer
and restorer together learn to give back the levels that the whole model hands to its heads, and its losses. In rooms those are told by
the truth, in recordings by the whole model.

examples:
  come_ros train-pace -o out/pace                                  on procedural rooms, for the bundled model
  come_ros train-pace -o out/site --source my_bag --source photos/ adapt it to a place
  come_ros train-pace -o out/pace --resume                         go on after an interruption
then: accelerator.name: pace, accelerator.pace: out/pace/pace.safetensors
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError

RATE, WARM_UP, WEIGHT_DECAY = (
    1e-3,
    0.05,
    0.01,
)  # of the learning rate: peak, share of the steps until it; then cosine to 0
ALPHA = 0.25  # share of the camera token in the target
L_DISTILL, L_RESTORE, L_TASK = 1.0, 1.0, 0.1  # weights of stage two's losses
EVERY = 100  # steps between two scores
QUERIES = 512  # rows of attention looked at together
VALIDATION_WINDOWS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", required=True, help="folder for networks, state, log and curve")
    parser.add_argument(
        "--source", action="append", default=[], metavar="PATH",
        help="bag, folder of images, TUM folder or video to learn from; may be repeated (default: procedural rooms)",
    )  # fmt: skip
    parser.add_argument("--weights", default="", help="the model's weights file (default: the bundled model)")
    parser.add_argument("--steps", type=int, default=1500, help="steps of stage one (default %(default)s)")
    parser.add_argument("--refine-steps", type=int, default=1500, help="steps of stage two (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="frames in a step (default %(default)s)")
    parser.add_argument("--ratio", type=float, default=0.6, help="share of patches not kept (default %(default)s)")
    parser.add_argument(
        "--dim", type=int, default=0, help="width of both networks (default: a quarter of the encoder's)"
    )
    parser.add_argument("--side", type=int, default=0, help="longer side of the images, px (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the state in the output folder")


def run(args: argparse.Namespace) -> int:
    print(json.dumps(train(args), indent=2))
    return 0


# ---------------------------------------------------------------------------------------------------------------- data
Batch = dict[str, Any]
"""images (B, S, 3, H, W) uint8; in rooms also depth, camera_from_first and intrinsics, as datasets.windows gives them"""


def room_batches(side: int, batch: int, seed: int) -> Iterator[Batch]:
    from ..datasets.windows import WindowStream

    return WindowStream(seed + 991, side).batches(batch)


def room_validation(side: int, patch: int, count: int) -> list[Batch]:
    import torch

    from ..datasets.synthetic import SPLIT_SEEDS, TEST_RATE_HZ, render_sequence

    size = {"width": side, "height": patch * round(side * 3 / 4 / patch)}
    made = (render_sequence(s, frames=4, rate_hz=TEST_RATE_HZ, **size) for s in SPLIT_SEEDS["validation"][:count])
    return [
        {"images": torch.from_numpy(s.images.transpose(0, 3, 1, 2))[None], "depth": torch.from_numpy(s.depth)[None]}
        for s in made
    ]


def recorded_batches(data: Any, batch: int, seed: int) -> Iterator[Batch]:
    import torch

    from .distill import draw_batch

    rng = np.random.default_rng(seed)
    while True:
        yield {"images": torch.from_numpy(draw_batch(data, rng, batch))}


# -------------------------------------------------------------------------------------------------------------- teacher
class Lesson(NamedTuple):
    """What the whole model says of a batch. features (B, S, h, w, C), target (B, S, h, w) in 0 .. 1, levels as in Trunk, want: what
    a recipe's head_losses compares with."""

    features: Any
    target: Any
    levels: dict[int, Any]
    want: dict[str, Any]


def teach(model: Any, batch: Batch, heads: bool = True) -> Lesson:
    """Run the whole model. heads: whether `want` is asked for; from the truth where the batch has it, else from the model itself."""
    import torch

    from .losses import targets

    images = batch["images"].float() / 255
    size = (images.shape[3], images.shape[4])
    watch = attention_watch()
    with torch.no_grad():
        trunk = model.run_trunk(images, watch)
        patches = watch.features.x[:, :, watch.features.special :].unflatten(2, trunk.grid)
        target = attention_target(watch.total / watch.layers, images.shape[1], trunk.special, trunk.grid)
        want: dict[str, Any] = {}
        if heads and "camera_from_first" in batch:
            want = targets(batch)
        elif heads:
            out = model.decode(trunk, size, ("camera", "depth", "points"), lambda: None)
            want = {"depth": out["depth"], "points": out["points"], "encoding": out["pose_encodings"][-1]}
    return Lesson(patches, target, trunk.levels, want)


def attention_watch() -> Any:
    """An accelerator that changes nothing. Of one pass: features (Tokens before the trunk), and total (B, N, N), global attention
    (mean over heads) summed over `layers` layers."""
    from ..accelerators import Accelerator, Tokens

    class Watch(Accelerator):
        sites = frozenset({"backbone_in"})
        total: Any = 0.0
        layers = 0
        features: Tokens

        def compress(self, tokens: Any, plan: Any, site: str) -> tuple[Any, Any]:
            self.features = tokens
            return tokens, plan

        def attend(self, q: Any, k: Any, v: Any, plan: Any, layer: Any) -> Any:
            if layer.part == "global":
                self.total = self.total + mean_attention(q, k)
                self.layers += 1
            return super().attend(q, k, v, plan, layer)

    return Watch()


def mean_attention(q: Any, k: Any) -> Any:
    """(B, heads, N, d) -> (B, N, N): rows of softmax(q k^T / sqrt(d)), mean over heads, some rows at a time."""
    import torch

    rows = []
    for start in range(0, q.shape[2], QUERIES):
        logits = q[:, :, start : start + QUERIES].float() @ k.float().transpose(2, 3) / q.shape[3] ** 0.5
        rows.append(logits.softmax(-1).mean(1))
    return torch.cat(rows, dim=1)


def attention_target(attention: Any, frames: int, special: int, grid: tuple[int, int], alpha: float = ALPHA) -> Any:
    """S* (B, S, h, w) in 0 .. 1 of attention (B, N, N) between all tokens of a scene (PaceVGGT's target).

    alpha times how much the frame's own camera token looks at a patch, and 1 - alpha times the most that the patch looks at any other
    token; each brought to 0 .. 1 in every frame.
    """
    import torch

    b, n, _ = attention.shape
    t = n // frames

    def patches(x: Any) -> Any:  # (B, N) -> (B, S, P)
        return x.unflatten(1, (frames, t))[:, :, special:]

    camera = torch.arange(frames, device=attention.device) * t
    seen = attention[:, camera].unflatten(2, (frames, t)).diagonal(dim1=1, dim2=2).transpose(1, 2)[:, :, special:]
    others = attention.masked_fill(torch.eye(n, dtype=torch.bool, device=attention.device), 0).amax(2)
    target = alpha * _unit_range(seen) + (1 - alpha) * _unit_range(patches(others))
    return target.reshape(b, frames, *grid)


def _unit_range(x: Any) -> Any:
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-12)


# --------------------------------------------------------------------------------------------------------------- losses
def distill_loss(logit: Any, target: Any) -> Any:
    import torch.nn.functional as F

    return F.binary_cross_entropy_with_logits(logit.flatten(), target.flatten())


def restore_loss(levels: dict[int, Any], wanted: dict[int, Any], special: int, missing: Any) -> Any:
    """Smooth L1 and 1 - cosine to the whole model's levels, where patches were left out: missing (B, S, P) bool."""
    import torch.nn.functional as F

    total = 0.0
    for tap, level in levels.items():
        got, want = level[:, :, special:][missing], wanted[tap][:, :, special:][missing]
        total = total + F.smooth_l1_loss(got, want) + 1 - F.cosine_similarity(got, want, dim=-1).mean()
    return total / len(levels)


def refine_losses(model: Any, pace: Any, batch: Batch, lesson: Lesson) -> dict[str, Any]:
    """The terms of stage two, unweighted."""
    from .recipes import recipe_for

    images = batch["images"].float() / 255
    trunk = model.run_trunk(images, pace)
    b, s = images.shape[:2]
    missing = pace.merged(trunk.plan, s, trunk.grid).flatten(1).unflatten(0, (b, s))
    recipe = recipe_for(model.name)
    heads = recipe.head_losses(model, trunk, lesson.want, (images.shape[3], images.shape[4]))
    return {
        "distill": distill_loss(trunk.plan.logit, lesson.target),
        "restore": restore_loss(trunk.levels, lesson.levels, trunk.special, missing),
        "task": recipe.total(heads),
    }


# --------------------------------------------------------------------------------------------------------------- scores
def evaluate(model: Any, scorer: Any, restorer: Any, ratio: float, windows: list[Batch]) -> dict[str, float]:
    """Means over windows. spearman: rank correlation of scorer and target; spearman_error: of scorer and how much each patch's depth
    changes; copied, restored: mean |log depth / depth of the whole model|, without and with the restorer; *_abs_rel: depth against the
    truth, where there is one, and dense_abs_rel the whole model's.
    """
    import torch
    import torch.nn.functional as F
    from scipy.stats import spearmanr

    from ..accelerators import NoAccelerator, Pace
    from ..evaluation import depth_errors

    ways = {"copied": Pace(scorer, None, ratio=ratio), "restored": Pace(scorer, restorer, ratio=ratio)}
    rows: dict[str, list[float]] = {}

    def rank(a: Any, b: Any) -> float:
        return float(spearmanr(a.flatten().cpu(), b.flatten().cpu()).statistic)

    with torch.no_grad():
        for batch in windows:
            lesson = teach(model, batch, heads=False)
            images = batch["images"].float() / 255
            dense = model(images, NoAccelerator(), ("depth",))[0]["depth"]
            score = scorer(lesson.features)
            rows.setdefault("spearman", []).append(rank(score, lesson.target))
            for name, pace in ways.items():
                depth = model(images, pace, ("depth",))[0]["depth"]
                change = (depth / dense).log().abs()
                rows.setdefault(name, []).append(float(change.mean()))
                if name == "restored":
                    rows.setdefault("spearman_error", []).append(rank(score, F.avg_pool2d(change, model.patch)))
                if "depth" in batch:
                    for key, d in ((name, depth), ("dense", dense)):
                        errors = depth_errors(d[0].cpu().numpy(), batch["depth"][0].cpu().numpy())
                        rows.setdefault(f"{key}_abs_rel", []).append(errors.abs_rel)
    return {name: round(float(np.nanmean(values)), 5) for name, values in rows.items()}


# ------------------------------------------------------------------------------------------------------------- training
def rate_at(step: int, steps: int) -> float:
    """Linear up over the first WARM_UP of the steps, then cosine to 0."""
    up = max(1.0, WARM_UP * steps)
    return RATE * min(1.0, (step + 1) / up) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Both stages; writes pace.safetensors, distilled.safetensors (after stage one), curve.png, log.json. The scores after each."""
    import torch
    from tqdm import tqdm

    from ..accelerators import Pace
    from ..accelerators.pace_networks import make_networks, save_networks
    from ..backbones.base import choose_device
    from ..backbones.checkpoint import bundled_weights, load_model
    from .distill import RecordedWindows

    os.makedirs(args.output, exist_ok=True)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    device = choose_device(args.device)
    weights = args.weights or bundled_weights()
    model = load_model("", weights).to(device).eval().requires_grad_(False)
    side = args.side or model.native_side
    dim = args.dim or max(8, model.encoder_width // 4 // 8 * 8)
    scorer, restorer = (network.to(device) for network in make_networks(model, dim))
    pace = Pace(scorer, restorer, ratio=args.ratio)
    optimiser = torch.optim.AdamW([*scorer.parameters(), *restorer.parameters()], lr=RATE, weight_decay=WEIGHT_DECAY)
    settings = {"weights": os.path.basename(weights), "dim": dim, "ratio": args.ratio, "steps": args.steps,
                "refine_steps": args.refine_steps}  # fmt: skip
    about = {
        "licence": "Apache-2.0",
        "made_by": "come_ros train-pace",
        "seed": str(args.seed),
        "settings": json.dumps(settings),
    }
    state_path, step, log = os.path.join(args.output, "state.pt"), 0, []
    if args.resume:
        state = read_state(state_path, settings)
        scorer.load_state_dict(state["scorer"])
        restorer.load_state_dict(state["restorer"])
        optimiser.load_state_dict(state["optimiser"])
        step, log = state["step"], state["log"]

    if args.source:
        recorded = RecordedWindows(args.source, side, model.patch, args.seed + step)
        batches = recorded_batches(recorded, args.batch, args.seed + step)
        held = [{"images": torch.from_numpy(w)[None]} for w in recorded.validation()[:VALIDATION_WINDOWS]]
    else:
        batches = room_batches(side, args.batch, args.seed + step)
        held = room_validation(side, model.patch, VALIDATION_WINDOWS)
    held = [{k: v.to(device) for k, v in w.items()} for w in held]

    def score() -> dict[str, float]:
        return evaluate(model, scorer.eval(), restorer.eval(), args.ratio, held)

    if not log:
        log.append({"step": 0, "stage": 0, **score()})
    total, mean = args.steps + args.refine_steps, {}
    with tqdm(total=total, initial=step, desc="train-pace", unit="step", disable=None) as bar:
        while step < total:
            refining = step >= args.steps
            scorer.train(), restorer.train()
            batch = {k: v.to(device) for k, v in next(batches).items()}
            lesson = teach(model, batch, heads=refining)
            if refining:
                terms = refine_losses(model, pace, batch, lesson)
                loss = L_DISTILL * terms["distill"] + L_RESTORE * terms["restore"] + L_TASK * terms["task"]
            else:
                terms = {"distill": distill_loss(scorer(lesson.features), lesson.target)}
                loss = terms["distill"]
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_([*scorer.parameters(), *restorer.parameters()], 1.0)
            rate = rate_at(step - args.steps, args.refine_steps) if refining else rate_at(step, args.steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            if torch.isfinite(norm):  # one bad batch must not spoil the networks
                optimiser.step()
            step += 1
            bar.update()
            for name, term in terms.items():
                value = float(term.detach())
                mean[name] = 0.95 * mean.get(name, value) + 0.05 * value
            if step % EVERY == 0 or step in (args.steps, total):
                log.append({"step": step, "stage": 1 + refining, **mean, **score()})
                bar.set_postfix(stage=1 + refining, spearman=log[-1]["spearman"], restored=log[-1]["restored"])
                state = {"scorer": scorer.state_dict(), "restorer": restorer.state_dict()}
                state |= {"optimiser": optimiser.state_dict(), "step": step, "log": log, "settings": settings}
                torch.save(state, state_path + ".part")
                os.replace(state_path + ".part", state_path)
                draw_curve(log, args.steps, os.path.join(args.output, "curve.png"))
            if step == args.steps:
                save_networks(os.path.join(args.output, "distilled.safetensors"), scorer, restorer, about)
    path = os.path.join(args.output, "pace.safetensors")
    save_networks(path, scorer, restorer, about)
    with open(os.path.join(args.output, "log.json"), "w", encoding="utf-8") as fh:
        json.dump(log, fh, indent=1)
    distilled = [e for e in log if e["stage"] == 1]
    return {"pace": path, "untrained": log[0], "distilled": distilled[-1] if distilled else None, "refined": log[-1]}


def read_state(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The state of an earlier run with the same settings. Raises CheckpointError."""
    import torch

    if not os.path.isfile(path):
        raise CheckpointError(f"nothing to resume: no {path}; name the folder of an earlier run, or leave --resume out")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        before = state["settings"]
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(f"cannot resume from {path}, it is damaged: leave --resume out to start anew") from error
    if other := [
        f"--{k.replace('_', '-')} {before.get(k)}, not {v}" for k, v in settings.items() if before.get(k) != v
    ]:
        raise CheckpointError(
            f"{path} is of a run with {', '.join(other)}: give the same, or leave --resume out to start anew"
        )
    return state


def draw_curve(log: list[dict[str, Any]], steps: int, path: str) -> None:
    """Losses, rank correlations and depth against the step; a line where stage two begins."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "loss": ("distill", "restore", "task"),
        "rank correlation of the scorer": ("spearman", "spearman_error"),
        "change of depth, mean |log|": ("copied", "restored"),
        "AbsRel to the truth": ("dense_abs_rel", "copied_abs_rel", "restored_abs_rel"),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(17, 3.6), layout="constrained")
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            points = [(e["step"], e[name]) for e in log if name in e]
            if points:
                axis.plot(*zip(*points, strict=True), label=name.removesuffix("_abs_rel").replace("spearman_error", "with change of depth")
                          .replace("spearman", "with attention target"))  # fmt: skip
        axis.axvline(steps, color="0.5", linestyle=":")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.lines[:-1]:
            axis.legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)
