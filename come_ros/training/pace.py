"""How PaceVGGT's networks learn which patches to keep, and to rebuild the others: targets and losses of both stages."""

from __future__ import annotations

from typing import Any, NamedTuple

from .data import Batch

ALPHA = 0.25  # share of the camera token in the target
L_RESTORE, L_TASK, L_ERROR, L_DISTILL = 1.0, 0.1, 1.0, 0.1  # weights of stage two's losses
EXPLORE = 0.5  # in stage two, standard deviations of the score by which the choice is perturbed, so every patch is dropped sometimes
QUERIES = 512  # rows of attention processed at once


class Lesson(NamedTuple):
    """The full model's output for a batch. features (B, S, h, w, C), target (B, S, h, w) in 0 .. 1, levels: tap -> (B, S, P,
    channels) of its patches, want: the targets of a recipe's head_losses."""

    features: Any
    target: Any
    levels: dict[int, Any]
    want: dict[str, Any]


def teach(model: Any, batch: Batch, heads: bool = True) -> Lesson:
    """Runs the full model. heads: whether to return `want`: from the ground truth where the batch has it, else from the model
    itself."""
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
    return Lesson(patches, target, patches_only(trunk.levels, trunk.special), want)


def said(score: Any) -> Any:
    """A scorer with a constant output."""
    import torch

    class Fixed(torch.nn.Module):
        def forward(self, tokens: Any) -> Any:
            return score

    return Fixed()


def attention_watch() -> Any:
    """An accelerator that changes nothing and records, for one pass: features (Tokens before the trunk), and total (B, N, N),
    global attention (mean over heads) summed over `layers` layers."""
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


def attention_target(attention: Any, frames: int, special: int, grid: tuple[int, int]) -> Any:
    """S* (B, S, h, w) in 0 .. 1 of attention (B, N, N) between all tokens of a scene (PaceVGGT's target).

    ALPHA times the attention of the frame's camera token to a patch, plus 1 - ALPHA times the largest attention of the patch to any
    other token; each normalised to 0 .. 1 in every frame.
    """
    import torch

    b, n, _ = attention.shape
    t = n // frames

    def patches(x: Any) -> Any:  # (B, N) -> (B, S, P)
        return x.unflatten(1, (frames, t))[:, :, special:]

    camera = torch.arange(frames, device=attention.device) * t
    seen = attention[:, camera].unflatten(2, (frames, t)).diagonal(dim1=1, dim2=2).transpose(1, 2)[:, :, special:]
    others = attention.masked_fill(torch.eye(n, dtype=torch.bool, device=attention.device), 0).amax(2)
    target = ALPHA * _unit_range(seen) + (1 - ALPHA) * _unit_range(patches(others))
    return target.reshape(b, frames, *grid)


def _unit_range(x: Any) -> Any:
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-12)


def distill_loss(logit: Any, target: Any) -> Any:
    import torch.nn.functional as F

    return F.binary_cross_entropy_with_logits(logit.flatten(), target.flatten())


def restore_loss(levels: dict[int, Any], wanted: dict[int, Any], missing: Any) -> Any:
    """Smooth L1, in units of each level's own spread, and 1 - cosine to the full model's levels (B, S, P, channels), where patches
    were dropped: missing (B, S, P) bool."""
    import torch.nn.functional as F

    total = 0.0
    for tap, level in levels.items():
        got, want = level[missing], wanted[tap][missing]
        unit = wanted[tap].std()
        total = total + F.smooth_l1_loss(got / unit, want / unit) + 1 - F.cosine_similarity(got, want, dim=-1).mean()
    return total / len(levels)


def patch_errors(levels: dict[int, Any], wanted: dict[int, Any]) -> Any:
    """(B, S, P): squared distance of each patch's tokens to the full model's, in units of the level's variance, mean over levels."""
    import torch

    with torch.no_grad():
        return sum((level - wanted[tap]).square().mean(-1) / wanted[tap].var() for tap, level in levels.items()) / len(
            levels
        )


def error_loss(logit: Any, error: Any, missing: Any) -> Any:
    """Cross entropy of the score with the rank of the error among the missing patches of a frame, 0 to 1; logit, error, missing
    (B, S, P). The hard choice passes no gradient and merging almost none; from this loss a scorer learns the cost of its choice."""
    import torch.nn.functional as F

    asked = error.masked_fill(~missing, -1.0)
    among = asked.argsort(-1).argsort(-1) - (~missing).sum(-1, keepdim=True)
    rank = among / (missing.sum(-1, keepdim=True) - 1).clamp_min(1)
    return F.binary_cross_entropy_with_logits(logit[missing], rank[missing].clamp(0, 1))


def patches_only(levels: dict[int, Any], special: int) -> dict[int, Any]:
    return {tap: level[:, :, special:] for tap, level in levels.items()}


def rebuilt(model: Any, restorer: Any, lesson: Lesson, kept: Any) -> dict[int, Any]:
    """The full model's levels (B, S, P, channels), rebuilt by the restorer from the kept patches (B * S, K)."""
    import torch

    from ..backbones.model import ENCODED

    b, s, h, w, _ = lesson.features.shape
    lookup = restorer.lookup(lesson.features.flatten(0, 1).flatten(1, 2), kept, (h, w))
    blocks = [part for part, _ in model.trunk_blocks()]
    out = {}
    for tap, level in lesson.levels.items():
        if tap == ENCODED:  # before patches are dropped
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

    The trunk needs no gradient: the restorer reads its outputs, and the scorer learns from the remaining errors.
    """
    import torch

    from ..accelerators import Pace
    from .recipes import recipe_for

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
