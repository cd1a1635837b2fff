"""Teach PaceVGGT's two networks for a model that stays as it is: which patches to keep, and how to rebuild the others.

Stage one, from what the whole model does: the scorer learns where it looks (each frame's camera token, and all tokens among one another),
the restorer to rebuild its levels from a part of its patches, drawn by lot. Stage two, with the patches really left out: the
restorer learns to give back the whole model's levels, and its losses; the scorer learns which patches that fails for, so that they
are kept. In rooms the losses are told by the truth, in recordings by the whole model.

At the end the networks of both stages stand beside choosing by lot, evenly, and by the attention itself, each with and without restorer.

examples:
  come_ros train-pace -o out/pace                                  on procedural rooms, for the bundled model
  come_ros train-pace -o out/site --source my_bag --source photos/ adapt it to a place
  come_ros train-pace -o out/pace --minutes 10                     as many steps of either stage as fit into ten minutes
  come_ros train-pace -o out/pace --resume                         go on after an interruption
then: accelerator.name: pace, accelerator.pace: out/pace/pace.safetensors
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError, ConfigError
from ..training.loop import denormals_flushed
from .arguments import add_common_arguments

# of the learning rate: peak, share of a stage until it; then cosine to 0
RATE, WARM_UP, WEIGHT_DECAY = 3e-3, 0.05, 0.01
ALPHA = 0.25  # share of the camera token in the target
L_RESTORE, L_TASK, L_ERROR, L_DISTILL = 1.0, 0.1, 1.0, 0.1  # weights of stage two's losses
SPREAD = 1.0
EXPLORE = 0.5  # in stage two the choice is shaken by so many standard deviations of the score, so that any patch is missing at times
REPLAY, UPDATES = (
    12,
    4,
)  # batches kept; updates in a step of stage one: to ask the whole model takes far longer than they do
EVERY = 100  # steps between two scores
QUERIES = 512  # rows of attention looked at together
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
        help="at most; a stage that its share ends early is said to be (0: no limit)",
    )
    parser.add_argument("--batch", type=int, default=16, help="frames in a step (default %(default)s)")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of patches not kept (default %(default)s)")
    parser.add_argument(
        "--spread", type=float, default=SPREAD,
        help="weight of an even choice beside the score (default %(default)s); 0: by score alone, as published",
    )  # fmt: skip
    parser.add_argument(
        "--dim", type=int, default=0, help="width of both networks (default: a quarter of the encoder's)"
    )


def run(args: argparse.Namespace) -> int:
    print(json.dumps(train(args), indent=2))
    return 0


Batch = dict[str, Any]
"""images (B, S, 3, H, W) uint8; in rooms also depth, camera_from_first and intrinsics, as datasets.windows gives them"""


def room_batches(side: int, batch: int, seed: int) -> Iterator[Batch]:
    from ..training.room_windows import WindowStream

    return WindowStream(seed + 991, side).batches(batch)


def room_validation(side: int, patch: int, count: int) -> list[Batch]:
    import torch

    from ..datasets.rooms.rooms import render_sequence
    from ..datasets.rooms.splits import SPLIT_SEEDS, TEST_RATE_HZ

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


class Lesson(NamedTuple):
    """What the whole model says of a batch. features (B, S, h, w, C), target (B, S, h, w) in 0 .. 1, levels: tap -> (B, S, P, channels) of
    its patches, want: what a recipe's head_losses compares with."""

    features: Any
    target: Any
    levels: dict[int, Any]
    want: dict[str, Any]


def teach(model: Any, batch: Batch, heads: bool = True) -> Lesson:
    """Run the whole model. heads: whether `want` is asked for; from the truth where the batch has it, else from the model itself."""
    import torch

    from ..training.losses import targets

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
    return Lesson(patches, target, patches_only(trunk.levels, trunk.special), want)


def said(score: Any) -> Any:
    """A scorer that says this whatever it is asked."""
    import torch

    class Fixed(torch.nn.Module):
        def forward(self, tokens: Any) -> Any:
            return score

    return Fixed()


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


def distill_loss(logit: Any, target: Any) -> Any:
    import torch.nn.functional as F

    return F.binary_cross_entropy_with_logits(logit.flatten(), target.flatten())


def restore_loss(levels: dict[int, Any], wanted: dict[int, Any], missing: Any) -> Any:
    """Smooth L1, in units of each level's own spread, and 1 - cosine to the whole model's levels (B, S, P, channels), where patches were
    left out: missing (B, S, P) bool."""
    import torch.nn.functional as F

    total = 0.0
    for tap, level in levels.items():
        got, want = level[missing], wanted[tap][missing]
        unit = wanted[tap].std()
        total = total + F.smooth_l1_loss(got / unit, want / unit) + 1 - F.cosine_similarity(got, want, dim=-1).mean()
    return total / len(levels)


def patch_errors(levels: dict[int, Any], wanted: dict[int, Any]) -> Any:
    """(B, S, P): how far each patch's tokens are from the whole model's, squared, in units of the level's variance, mean over levels."""
    import torch

    with torch.no_grad():
        return sum((level - wanted[tap]).square().mean(-1) / wanted[tap].var() for tap, level in levels.items()) / len(
            levels
        )


def error_loss(logit: Any, error: Any, missing: Any) -> Any:
    """Cross entropy of the score with the rank of the error among the missing patches of a frame, 0 to 1; logit, error, missing
    (B, S, P). The hard choice passes no gradient, and merging next to none: this is how a scorer learns what its choice costs."""
    import torch.nn.functional as F

    asked = error.masked_fill(~missing, -1.0)
    among = asked.argsort(-1).argsort(-1) - (~missing).sum(-1, keepdim=True)
    rank = among / (missing.sum(-1, keepdim=True) - 1).clamp_min(1)
    return F.binary_cross_entropy_with_logits(logit[missing], rank[missing].clamp(0, 1))


def patches_only(levels: dict[int, Any], special: int) -> dict[int, Any]:
    return {tap: level[:, :, special:] for tap, level in levels.items()}


def rebuilt(model: Any, restorer: Any, lesson: Lesson, kept: Any) -> dict[int, Any]:
    """The whole model's levels (B, S, P, channels) as the restorer rebuilds them from the patches kept (B * S, K)."""
    import torch

    from ..backbones.model import ENCODED

    b, s, h, w, _ = lesson.features.shape
    lookup = restorer.lookup(lesson.features.flatten(0, 1).flatten(1, 2), kept, (h, w))
    blocks = [part for part, _ in model.trunk_blocks()]
    out = {}
    for tap, level in lesson.levels.items():
        if tap == ENCODED:  # before anything is left out
            out[tap] = level
            continue
        wanted = model.joined(tap)
        parts = []
        for i, x in zip(wanted, level.flatten(0, 1).chunk(len(wanted), -1), strict=True):
            short = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
            parts.append(restorer(short, lookup, blocks[i], blocks[:i].count(blocks[i])))
        out[tap] = torch.cat(parts, -1).unflatten(0, (b, s))
    return out


def distill_losses(model: Any, scorer: Any, restorer: Any, lesson: Lesson, ratio: float) -> dict[str, Any]:
    """The terms of stage one."""
    import torch

    b, s, h, w, _ = lesson.features.shape
    p = h * w
    kept = torch.rand(b * s, p, device=lesson.features.device).argsort(1)[:, : max(1, p - int(ratio * p))]
    missing = torch.ones(b * s, p, dtype=torch.bool, device=kept.device).scatter(1, kept, False).view(b, s, p)
    return {
        "distill": distill_loss(scorer(lesson.features), lesson.target),
        "restore": restore_loss(rebuilt(model, restorer, lesson, kept), lesson.levels, missing),
    }


def refine_losses(
    model: Any, scorer: Any, restorer: Any, how: dict[str, Any], batch: Batch, lesson: Lesson
) -> dict[str, Any]:
    """The terms of stage two, unweighted. how: Pace's parameters.

    The trunk needs no gradient: what the restorer reads are its outputs, and the scorer learns from the errors that are left.
    """
    import torch

    from ..accelerators import Pace
    from ..training.recipes import recipe_for

    images = batch["images"].float() / 255
    logit = scorer(lesson.features)
    shaken = logit.detach() + EXPLORE * logit.detach().std() * torch.randn_like(logit)
    pace = Pace(said(shaken), restorer, **how)
    trunk = model.run_trunk(images, pace)
    b, s = images.shape[:2]
    missing = pace.merged(trunk.plan, s, trunk.grid).flatten(1).unflatten(0, (b, s))
    recipe = recipe_for(model.name)
    levels = patches_only(trunk.levels, trunk.special)
    heads = recipe.head_losses(model, trunk, lesson.want, (images.shape[3], images.shape[4]))
    return {
        "restore": restore_loss(levels, lesson.levels, missing),
        "task": recipe.total(heads),
        "error": error_loss(logit.flatten(2), patch_errors(levels, lesson.levels), missing),
        "distill": distill_loss(logit, lesson.target),
    }


def choices(target: Any, seed: int) -> dict[str, Any]:
    """How else patches can be chosen, as scores (B, S, h, w): by lot, and by the attention that the scorer is to foresee."""
    import torch

    lot = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)).to(target.device)
    return {"by lot": lot, "by attention": target}


def evaluate(
    model: Any, nets: dict[str, tuple[Any, Any]], how: dict[str, Any], windows: list[Batch]
) -> list[dict[str, float]]:
    """Of each window, the scores by name. nets: name -> (scorer, restorer) to be judged; how: Pace's parameters.

    "{name}, {choice}": mean |log depth / depth of the whole model|, choice being "copied" (kept patches copied in place of those left out),
    "restored", and, restored as well, "by lot", "evenly", "by attention"; with " abs_rel" behind, depth against the truth, where there is
    one, "dense abs_rel" that of the whole model. "{name} spearman": rank correlation of score and attention target, frame by frame;
    "{name} spearman_error": of score and how much each patch's depth changes if patches are left out by lot (a patch that is kept
    changes little, so those chosen by the score itself say nothing of it).
    """
    import torch
    import torch.nn.functional as F

    from ..accelerators import NoAccelerator, Pace
    from ..evaluation import depth_errors

    rows = []
    with torch.no_grad():
        for number, batch in enumerate(windows):
            lesson = teach(model, batch, heads=False)
            images = batch["images"].float() / 255
            dense = model(images, NoAccelerator(), ("depth",))[0]["depth"]
            row: dict[str, float] = {}

            def depth_of(score: Any, restorer: Any, images: Any = images, **more: Any) -> Any:
                return model(images, Pace(said(score), restorer, **{**how, **more}), ("depth",))[0]["depth"]

            def note(name: str, depth: Any, row: Any = row, dense: Any = dense, batch: Any = batch) -> None:
                row[name] = float((depth / dense).log().abs().mean())
                if "depth" in batch:
                    row[f"{name} abs_rel"] = depth_errors(
                        depth[0].cpu().numpy(), batch["depth"][0].cpu().numpy()
                    ).abs_rel

            note("dense", dense)
            others = choices(lesson.target, number)
            for name, (scorer, restorer) in nets.items():
                score = scorer(lesson.features)
                note(f"{name}, copied", depth_of(score, None))
                note(f"{name}, restored", depth_of(score, restorer))
                by_lot = depth_of(others["by lot"], restorer, spread=0.0)
                note(f"{name}, by lot", by_lot)
                note(f"{name}, evenly", depth_of(torch.zeros_like(score), restorer, spread=1.0))
                note(f"{name}, by attention", depth_of(others["by attention"], restorer, spread=0.0))
                row[f"{name} spearman"] = rank_correlation(score, lesson.target)
                change = F.avg_pool2d((by_lot / dense).log().abs(), model.patch)
                row[f"{name} spearman_error"] = rank_correlation(score, change)
            rows.append(row)
    return rows


def rank_correlation(a: Any, b: Any) -> float:
    """Mean over frames of that of (B, S, h, w) and (B, S, h, w); NaN if all are constant."""
    from ..evaluation import spearman

    pairs = zip(a.flatten(0, 1).cpu().numpy(), b.flatten(0, 1).cpu().numpy(), strict=True)
    found = [spearman(x.ravel(), y.ravel()) for x, y in pairs]
    known = [f for f in found if np.isfinite(f)]
    return float(np.mean(known)) if known else float("nan")


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.nanmean([row[name] for row in rows])), 5) for name in rows[0]}


def comparison(rows: list[dict[str, float]], how: dict[str, Any]) -> str:
    """Markdown: the networks of both stages, and other choices, at the same budget."""
    from ..evaluation import interval, paired_difference

    def of(name: str) -> np.ndarray:
        return np.array([row.get(name, np.nan) for row in rows])

    truth = "dense abs_rel" in rows[0]
    lines = [
        f"{len(rows)} validation windows; {how['ratio']:.0%} of the patches left out, spread {how['spread']:g}. Change: mean "
        "|log depth / depth of the whole model|; differences to a choice by lot with the same restorer are paired, intervals 95 %.", "",
        "| networks | choice, rebuilt by | change of depth | - by lot | AbsRel | - by lot |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    if truth:
        lines.append(f"| whole model | all | | | {of('dense abs_rel').mean():.4f} | |")
    titles = {"copied": "score, copying", "restored": "score, restorer", "by lot": "by lot, restorer", "evenly": "evenly, restorer",
              "by attention": "by the attention target, restorer"}  # fmt: skip
    for key in [k for k in rows[0] if ", " in k and not k.endswith("abs_rel")]:
        name, _, choice = key.partition(", ")
        cells = [name, titles[choice]]
        for suffix in ("", " abs_rel") if truth else ("",):
            ours, lot = of(key + suffix), of(f"{name}, by lot" + suffix)
            middle, apart = interval(ours), paired_difference(ours, lot)
            cells.append(f"{middle.value:.4f} ({middle.low:.4f} to {middle.high:.4f})")
            cells.append("" if choice == "by lot" else f"{apart.value:+.4f} ({apart.low:+.4f} to {apart.high:+.4f})")
        lines.append("| " + " | ".join(cells + [""] * (6 - len(cells))) + " |")
    lines += [
        "",
        "| networks | Spearman with the attention target | with the change of each patch's depth |",
        "|---|---|---|",
    ]
    for name in dict.fromkeys(k.removesuffix(" spearman") for k in rows[0] if k.endswith(" spearman")):
        cells = [
            f"{v.value:.3f} ({v.low:.3f} to {v.high:.3f})"
            for v in (interval(of(f"{name} {k}")) for k in ("spearman", "spearman_error"))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rate_at(share: float) -> float:
    """Of the share of a stage that is over: linear up over the first WARM_UP, then cosine to 0."""
    return RATE * min(1.0, max(share, 1e-3) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


class Clock:
    """What share of a stage is over: of its steps or of its minutes, whichever is more."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds, self.begun = steps, seconds, time.monotonic()

    def share(self, step: int) -> float:
        by_time = (time.monotonic() - self.begun) / self.seconds if self.seconds else 0.0
        return max(step / self.steps if self.steps else 1.0, by_time)


@denormals_flushed()
def train(args: argparse.Namespace) -> dict[str, Any]:
    """Both stages; writes distilled.safetensors (after stage one), pace.safetensors, comparison.md, curve.png, log.json. The scores."""
    import torch
    from tqdm import tqdm

    from ..accelerators.pace_networks import load_networks, make_networks, save_networks
    from ..backbones.checkpoint import bundled_weights, load_model
    from ..backbones.device import choose_device
    from .distill import RecordedWindows

    if not 0 < args.ratio < 1 or args.spread < 0 or args.minutes < 0:
        raise ConfigError(
            f"--ratio is {args.ratio:g}, --spread {args.spread:g}, --minutes {args.minutes:g}, but the first must lie between 0 and 1, the "
            "others must be 0 or more"
        )
    os.makedirs(args.output, exist_ok=True)
    torch.manual_seed(args.seed)
    device = choose_device(args.device)
    weights = args.weights or bundled_weights()
    model = load_model("", weights).to(device).eval().requires_grad_(False)
    side = args.side or model.native_side
    dim = args.dim or max(8, model.encoder_width // 4 // 8 * 8)
    scorer, restorer = (network.to(device) for network in make_networks(model, dim, args.spread))
    how = {"ratio": args.ratio, "spread": args.spread}
    networks = torch.nn.ModuleDict({"scorer": scorer, "restorer": restorer})
    optimiser = torch.optim.AdamW(networks.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    settings = {
        "weights": os.path.basename(weights),
        "dim": dim,
        **how,
        "steps": args.steps,
        "refine_steps": args.refine_steps,
    }
    about = {
        "licence": "Apache-2.0",
        "made_by": "come_ros train-pace",
        "seed": str(args.seed),
        "settings": json.dumps(settings),
    }
    paths = {name: os.path.join(args.output, f"{name}.safetensors") for name in ("distilled", "pace")}
    state_path, log = os.path.join(args.output, "state.pt"), []
    at = {1: 0, 2: 0}  # steps of each stage so far
    if args.resume:
        state = read_state(state_path, settings)
        networks.load_state_dict(state["networks"])
        optimiser.load_state_dict(state["optimiser"])
        at, log = state["at"], state["log"]
    seed = args.seed + sum(at.values())  # other windows after an interruption

    if args.source:
        recorded = RecordedWindows(args.source, side, model.patch, seed)
        batches = recorded_batches(recorded, args.batch, seed)
        held = [{"images": torch.from_numpy(w)[None]} for w in recorded.validation()[:VALIDATION_WINDOWS]]
    else:
        batches = room_batches(side, args.batch, seed)
        held = room_validation(side, model.patch, 2 * VALIDATION_WINDOWS)
    held = [{k: v.to(device) for k, v in w.items()} for w in held]

    def entry(stage: int, losses: dict[str, float]) -> None:
        """One more line of the log: losses, and scores on part of the windows."""
        networks.eval()
        found = means(evaluate(model, {"": (scorer, restorer)}, how, held[:VALIDATION_WINDOWS]))
        log.append({"step": sum(at.values()), "stage": stage, **losses, **{k.strip(", "): v for k, v in found.items()}})
        draw_curve(log, os.path.join(args.output, "curve.png"))

    if not log:
        entry(0, {})
    begun, memory = time.monotonic(), list[Lesson]()
    for stage, steps in ((1, args.steps), (2, args.refine_steps)):
        if args.resume and at[2] and stage == 1:
            continue  # it was over, whatever ended it
        until = 60 * args.minutes * (STAGE_ONE if stage == 1 else 1.0) - (time.monotonic() - begun)
        clock, mean = Clock(steps, max(1e-3, until) if args.minutes else 0.0), dict[str, float]()
        with tqdm(total=steps, initial=at[stage], desc=f"train-pace, stage {stage}", unit="step", disable=None) as bar:
            while (share := clock.share(at[stage])) < 1:
                networks.train()
                batch = {k: v.to(device) for k, v in next(batches).items()}
                lesson = teach(model, batch, heads=stage == 2)
                if stage == 1:
                    memory = [*memory[-REPLAY + 1 :], lesson]
                for update in range(UPDATES if stage == 1 else 1):
                    if stage == 1:
                        terms = distill_losses(
                            model, scorer, restorer, memory[-1 - (update * 5) % len(memory)], args.ratio
                        )
                        loss = terms["distill"] + terms["restore"]
                    else:
                        terms = refine_losses(model, scorer, restorer, how, batch, lesson)
                        loss = L_RESTORE * terms["restore"] + L_TASK * terms["task"]
                        loss = loss + L_ERROR * terms["error"] + L_DISTILL * terms["distill"]
                    for group in optimiser.param_groups:
                        group["lr"] = rate_at(share)
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    norm = torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
                    if torch.isfinite(norm):  # one bad batch must not spoil the networks
                        optimiser.step()
                at[stage] += 1
                bar.update()
                for name, term in terms.items():
                    value = float(term.detach())
                    mean[name] = 0.95 * mean.get(name, value) + 0.05 * value
                if at[stage] % EVERY == 0 or clock.share(at[stage]) >= 1:
                    entry(stage, mean)
                    bar.set_postfix(restored=log[-1]["restored"], by_lot=log[-1]["by lot"])
                    state = {
                        "networks": networks.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "at": at,
                    }
                    torch.save({**state, "log": log, "settings": settings}, state_path + ".part")
                    os.replace(state_path + ".part", state_path)
        save_networks(paths["distilled" if stage == 1 else "pace"], scorer, restorer, about)
    nets = {name: load_networks(paths[file], model) for name, file in (("distilled", "distilled"), ("refined", "pace"))}
    nets = {name: tuple(n.to(device) for n in pair) for name, pair in nets.items()}  # type: ignore[misc]
    rows = evaluate(model, nets, how, held)
    text = comparison(rows, how)
    with open(os.path.join(args.output, "comparison.md"), "w", encoding="utf-8") as fh:
        fh.write(text)
    with open(os.path.join(args.output, "log.json"), "w", encoding="utf-8") as fh:
        json.dump({"settings": settings, "log": log, "comparison": rows}, fh, indent=1)
    return {"pace": paths["pace"], "untrained": log[0], "steps": sum(at.values()), "scores": means(rows)}


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


def draw_curve(log: list[dict[str, Any]], path: str) -> None:
    """Losses, rank correlations and depth against the step; a line where stage two begins."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ways = ("copied", "restored", "by lot", "evenly", "by attention")
    panels = {
        "loss": {n: n for n in ("distill", "restore", "error", "task")},
        "rank correlation of the score": {
            "spearman": "with the attention target",
            "spearman_error": "with the change of depth, by lot",
        },
        "change of depth, mean |log|": {n: n for n in ways},
        "AbsRel to the truth": {"dense abs_rel": "whole model"} | {f"{n} abs_rel": n for n in ways},
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
