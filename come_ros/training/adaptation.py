"""Teaches a trained model one camera and one place: a short fine-tuning on what the bundle of a recording says.

Of any window model: only its outputs are compared, up to the unit of each window, so that the model keeps its own. The encoder stays as it
is. The dense depth to imitate is the model's own with the bundle's smooth correction, so it also holds the model where no point teaches.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..accelerators import NoAccelerator
from ..backbones.cameras import invert_rigid, quaternion_from_rotation
from ..backbones.model import GeometryModel, never
from .lessons import LEAST_POINTS, Batch, Keyframe, Lessons, plain_batch
from .long_run import Average
from .losses import targets
from .motion_losses import depth_loss, motion_loss
from .recipes import some_frames
from .tiny import descend

HARM = 1.1  # greatest growth of any of these on the validation windows at a step that is kept: with few images, rotation is forgotten
UNHARMED = ("rotation", "direction", "points")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings. steps: at most. batch: frames per step. rate: of the heads, its peak, after `warm_up` steps; it then falls along a cosine.
    trunk: the rate of the trunk over that. average: decay of the moving average, which is what is kept. validate: steps between two
    validations; patience: validations without a gain after which training ends. weights: of the terms of `losses`."""

    steps: int = 300
    batch: int = 12
    rate: float = 2e-4
    trunk: float = 0.1
    warm_up: int = 20
    average: float = 0.98
    validate: int = 15
    patience: int = 5
    weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "turn": 5.0, "direction": 5.0, "length": 5.0, "distance": 5.0, "points": 1.0, "depth": 0.3, "sure": 0.05,
        }
    )  # fmt: skip

    def rate_at(self, step: int) -> float:
        return (
            self.rate
            * min(1.0, (step + 1) / self.warm_up)
            * (0.02 + 0.49 * (1 + math.cos(math.pi * step / self.steps)))
        )


def encodings_of(world_from_camera: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Poses (B, S, 4, 4) and intrinsics (B, S, 3, 3) in pixels of (H, W) as losses.targets encodes them, about the first frame."""
    pose = invert_rigid(world_from_camera) @ world_from_camera[:, :1]
    focal = torch.stack((intrinsics[..., 1, 1], intrinsics[..., 0, 0]), dim=-1)
    fov = 2 * torch.atan(focal.new_tensor(size) / 2 / focal)
    return torch.cat((pose[..., :3, 3], quaternion_from_rotation(pose[..., :3, :3]), fov), dim=-1)


def losses(model: GeometryModel, batch: Batch) -> dict[str, Tensor]:
    """Each term for one batch, unweighted but for what motion_loss weighs; and the mean error of the rotation about the first frame in
    deg, which only validation reads."""
    images = batch["images"].float() / 255
    size = (images.shape[-2], images.shape[-1])
    want = targets(batch)
    with torch.no_grad():
        encoded = model.encode(images, NoAccelerator())
    rows = some_frames(images.shape[1], images.device).sort().values
    trunk = model.attend(encoded, NoAccelerator())
    out = model.decode(trunk, size, ("camera", "depth"), never, rows.tolist())
    log_depth = out["depth"].float().clamp_min(1e-6).log()
    dense, weight = want["depth"][:, rows], batch["weight"][:, rows]
    points = batch["log_points"][:, rows] - want["scale"].log()[:, None, None, None]
    unit = (log_depth - dense.log()).detach().flatten(1).median(1).values  # of the window, of the model's over ours
    off = log_depth - points
    by_points, taught = unit.clone(), weight.new_zeros(())
    for i in range(len(unit)):
        here = weight[i] > 0
        if int(here.sum()) >= LEAST_POINTS:
            by_points[i] = off[i][here].detach().median()
            taught = taught + (weight[i] * (off[i] - by_points[i]).abs().clamp_max(1)).sum() / weight[i].sum()
    turned = want["encoding"].clone()
    turned[..., :3] *= by_points.exp()[:, None, None]
    found = encodings_of(out["world_from_camera"].float(), out["intrinsics"].float(), size)
    depth, _ = depth_loss(log_depth - unit[:, None, None, None], dense)
    confidence = out["depth_conf"].float().clamp_min(1e-6).log() - batch["log_confidence"][:, rows]
    between = (found[..., 3:7] * turned[..., 3:7]).sum(-1)[:, 1:].abs().clamp(max=1.0)
    return {
        **motion_loss(found[None], turned),
        "rotation": torch.rad2deg(2 * between.detach().acos()).mean(),
        "points": taught / len(unit),
        "depth": depth.mean(),
        "sure": confidence.abs().clamp_max(4).mean(),
    }


class Adaptation:
    """A run of it. model: in training. best: the moving average with the least loss on the validation windows so far, of the steps that do
    no HARM; None before the first validation. log: one entry for each validation."""

    def __init__(
        self, model: GeometryModel, lessons: Lessons, validation: Sequence[Sequence[Keyframe]], plan: Plan, seed: int
    ) -> None:
        """model: is changed. lessons: at least one run; validation: windows that lessons do not hold."""
        self.model, self.plan, self.step = model.eval().requires_grad_(True), plan, 0
        self.device = next(model.parameters()).device
        self._lessons, self._validation = lessons, [plain_batch(window) for window in validation]
        self._rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        trunk = [p for _, block in model.trunk_blocks() for p in block.parameters()]
        inside = {id(p) for p in trunk}
        groups = [
            {"params": [p for p in model.parameters() if id(p) not in inside], "factor": 1.0},
            {"params": trunk, "factor": plan.trunk},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.0)
        self._average = Average(model, plan.average)
        self.log: list[dict[str, Any]] = []
        self.best: GeometryModel | None = None

    @property
    def done(self) -> bool:
        """Whether all steps are done, or the last validations brought no gain."""
        since = len(self.log) - 1 - self._best_entry if self.log else 0
        return self.step >= self.plan.steps or since >= self.plan.patience

    @property
    def best_step(self) -> int:
        """After which `best` was."""
        return int(self.log[self._best_entry]["step"]) if self.log else 0

    @property
    def learned(self) -> bool:
        """Whether `best` is better on the validation windows than the model was."""
        return self.best is not None and self.best_step > 0

    @property
    def _best_entry(self) -> int:
        """Index in the log."""
        return int(np.argmin([entry["validation"] if self._harmless(entry) else math.inf for entry in self.log]))

    def _harmless(self, entry: Mapping[str, Any]) -> bool:
        start = self.log[0] if self.log else entry
        return all(entry[name] <= HARM * start[name] for name in UNHARMED)

    def learn(self) -> float:
        """One step. Returns its loss."""
        batch = {name: x.to(self.device) for name, x in self._lessons.batch(self._rng, self.plan.batch).items()}
        total = self._total(losses(self.model, batch))
        total.backward()
        descend(self.model, self._optimiser, self.plan.rate_at(self.step))
        self._average.take(self.model)
        self.step += 1
        return float(total.detach())

    def validate(self) -> dict[str, Any]:
        """Scores the moving average on the validation windows, and keeps it if it is the best so far."""
        model = self._average.model
        terms: dict[str, float] = {}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same frames each time
            for batch in self._validation:
                found = losses(model, {name: x.to(self.device) for name, x in batch.items()})
                for name, x in {**found, "validation": self._total(found)}.items():
                    terms[name] = terms.get(name, 0.0) + float(x) / len(self._validation)
        entry = {"step": self.step, **{name: round(x, 5) for name, x in terms.items()}}
        if self.best is None or (
            self._harmless(entry) and entry["validation"] < self.log[self._best_entry]["validation"]
        ):
            self.best = copy.deepcopy(model)
        self.log.append(entry)  # last: a signal may end this anywhere
        return entry

    def _total(self, terms: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([weight * terms[name] for name, weight in self.plan.weights.items()]).sum()
