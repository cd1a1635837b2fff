"""Training of Co-Me's predictor, which learns the full model's confidence per patch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

LEARNING_RATE, LAST_RATE, WEIGHT_DECAY = 1e-3, 1e-6, 0.01  # as in the original study
PAIRS = 32768
REFIT_RATE = 3e-4  # first rate of a predictor that is trained further
GROUP, RATIO = (3, 3), 0.5  # share of the mask whose overlap with the teacher's is reported


def teach(model: Any, images: Any, blocks: Sequence[int]) -> tuple[dict[int, Any], Any]:
    """Tokens after each of these encoder blocks, block -> (B, S, h, w, C), and the model's own depth confidence as mean over each patch
    (B, S, h, w).

    images: (B, S, 3, H, W) uint8 tensor.
    """
    import torch
    import torch.nn.functional as F

    from ..accelerators import Accelerator, Layer, NoAccelerator, Tokens
    from ..backbones.model import run_block

    class Watch(Accelerator):  # the plan holds the features themselves
        def plan_block(self, encoder_depth: int) -> int:
            return blocks[0]

        def plan(self, features: Tokens) -> Tokens:
            return features

    images = images.float() / 255
    with torch.inference_mode():
        out, trunk = model(images, Watch(), ("depth",))
        confidence = F.avg_pool2d(out["depth_conf"], model.patch)
        seen: dict[int, Tokens] = {blocks[0]: trunk.plan}
        if len(blocks) > 1:  # to compare blocks: the encoder once more
            tokens = model.encoder_input(images)
            for i, block in enumerate(model.encoder_blocks()[: max(blocks) + 1]):
                tokens, _ = run_block(block, tokens, None, NoAccelerator(), None, Layer("encoder", i))
                if i in blocks:
                    seen[i] = tokens
    return {i: t.x[:, :, t.special :].unflatten(2, t.grid).clone() for i, t in seen.items()}, confidence.clone()


def ranking_loss(predicted: Any, wanted: Any, pairs: int = PAIRS) -> Any:
    """mean log(1 + exp(-(c'_a - c'_b) sign(c_a - c_b))) over random pairs of patches of a window. (B, n) each."""
    import torch
    import torch.nn.functional as F

    n = predicted.shape[1]
    a, b = torch.randint(n, (2, min(pairs, n * 8)), device=predicted.device)
    return F.softplus(-(predicted[:, a] - predicted[:, b]) * (wanted[:, a] - wanted[:, b]).sign()).mean()


def mse_loss(predicted: Any, wanted: Any) -> Any:
    """Squared error after normalising both to mean 0 and standard deviation 1 in each window. (B, n) each."""

    def z(x: Any) -> Any:
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-6)

    return (z(predicted) - z(wanted)).square().mean()


def agreement(predictor: Any, block: int, taught: list[tuple[dict[int, Any], Any]]) -> dict[str, float]:
    """Mean over windows of Spearman's rank correlation with the teacher, and of the overlap (IoU) of the merge masks of both.

    block: index of the encoder block that the predictor reads.
    """
    import torch
    from scipy.stats import spearmanr

    from ..accelerators.come import make_plan

    rank, overlap = [], []
    with torch.inference_mode():
        for tokens, wanted in taught:
            got = predictor(tokens[block])
            rank.append(float(spearmanr(got.flatten().cpu(), wanted.flatten().cpu()).statistic))
            grid = wanted.shape[-2:]
            k = int(RATIO * (grid[0] // GROUP[0]) * (grid[1] // GROUP[1]))
            if k:
                a, b = (make_plan(c, GROUP, k).merged for c in (got, wanted))
                overlap.append(float((a & b).sum() / (a | b).sum()))
    return {"spearman": float(np.nanmean(rank)), "mask_iou": float(np.mean(overlap)) if overlap else float("nan")}


class Student:
    """A predictor in training: loss "ranking" or "mse", from the tokens after encoder block `block`."""

    def __init__(self, model: Any, predictor: Any, block: int, loss: str, seed: int) -> None:
        """predictor: is changed. seed: for what is drawn at random while it learns."""
        import torch

        self.predictor = predictor.to(next(model.parameters()).device).requires_grad_(True)
        self.block, self.loss, self.seed = block, loss, seed
        self.optimiser = torch.optim.AdamW(self.predictor.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    @classmethod
    def new(cls, model: Any, block: int, loss: str, scope: str, dim: int, seed: int) -> Student:
        """With random weights."""
        import torch

        from ..accelerators.confidence import ConfidencePredictor

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            predictor = ConfidencePredictor(model.shape.encoder_width, dim, scope=scope)
        return cls(model, predictor, block, loss, seed)

    def learn(self, tokens: dict[int, Any], wanted: Any, rate: float) -> float:
        """One step. Returns the loss before it."""
        import torch

        features, wanted = tokens[self.block], wanted.flatten(1)
        if self.loss == "ranking":
            # before the exponential, which keeps the order: trained on exp(x) + 1, one of seven students became constant
            loss = ranking_loss(self.predictor.logits(features).flatten(1), wanted)
        else:
            loss = mse_loss(self.predictor(features).flatten(1), wanted)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.predictor.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return float(loss.detach())


def refitted(model: Any, predictor: Any, block: int, lessons: Sequence[Any], steps: int, seed: int) -> Any:
    """A copy of the predictor, trained further on what the model now says of these images, each (B, S, 3, H, W) uint8."""
    import torch

    student = Student(model, copy.deepcopy(predictor), block, "ranking", seed)
    device = next(model.parameters()).device
    taught = [teach(model, images.to(device), [block]) for images in lessons]
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(steps):
            rate = LAST_RATE + (REFIT_RATE - LAST_RATE) * 0.5 * (1 + np.cos(np.pi * step / steps))
            student.learn(*taught[rng.integers(len(taught))], rate)
    return student.predictor.cpu().eval().requires_grad_(False)
