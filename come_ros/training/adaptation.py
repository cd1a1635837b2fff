"""Teaches a trained model one camera and one place: a short fine-tuning on what the bundle of a recording says.

Of any window model: only its outputs are compared, up to the unit of each window, so that the model keeps its own. The encoder stays as it
is. The dense depth to imitate is the model's own with the bundle's smooth correction, so it also holds the model where no point teaches.
Two things keep it from forgetting: each step also rehearses rooms (rehearsal.py), and what is kept lies between the weights before and the
moving average.
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
from .rehearsal import Rehearsal
from .tiny import descend

HARM = 1.1  # greatest growth of any of these on the validation windows at a step that is kept: with few images, rotation is forgotten
UNHARMED = ("rotation", "direction", "points")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings. steps: at most. batch: frames of lessons per step, and as many to rehearse. rate: of the heads, its peak, after `warm_up`
    steps; it then falls along a cosine. trunk: the rate of the trunk over that. average: decay of the moving average. kept: how far what
    is kept lies from the weights before towards that average, 0 to 1. validate: steps between two validations; patience: validations
    without a gain after which training ends. weights: of the terms of `losses`; rehearsal: those that differ for what is rehearsed, where
    the depth map is the whole lesson on depth."""

    steps: int = 300
    batch: int = 8
    rate: float = 2e-4
    trunk: float = 0.1
    warm_up: int = 20
    average: float = 0.98
    kept: float = 0.5
    validate: int = 15
    patience: int = 5
    weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "turn": 5.0, "direction": 5.0, "length": 5.0, "distance": 5.0, "points": 1.0, "depth": 0.3, "sure": 0.05,
        }
    )  # fmt: skip
    rehearsal: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"depth": 1.0})

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
    """A run of it. model: in training. best: what lies `kept` of the way to the moving average, with the least loss on the validation
    windows so far, of the steps that do no HARM; None before the first validation. log: one entry for each validation."""

    def __init__(
        self, model: GeometryModel, lessons: Lessons, validation: Sequence[Sequence[Keyframe]], rehearsal: Rehearsal, plan: Plan,
        seed: int,
    ) -> None:  # fmt: skip
        """model: is changed. lessons: at least one run; validation: windows that lessons do not hold. rehearsal: of this model."""
        self.model, self.plan, self.step = model.eval().requires_grad_(True), plan, 0
        self.device = next(model.parameters()).device
        self._lessons, self._validation = lessons, [plain_batch(window) for window in validation]
        self._rehearsal, self._seed = rehearsal, seed
        trunk = [p for _, block in model.trunk_blocks() for p in block.parameters()]
        inside = {id(p) for p in trunk}
        groups = [
            {"params": [p for p in model.parameters() if id(p) not in inside], "factor": 1.0},
            {"params": trunk, "factor": plan.trunk},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.0)
        self._average = Average(model, plan.average)
        self._before = copy.deepcopy(self._average.model)
        self.log: list[dict[str, Any]] = []
        self.best: GeometryModel | None = None

    @property
    def validated(self) -> bool:
        """Whether the last entry of the log is of this step."""
        return bool(self.log) and self.log[-1]["step"] == self.step

    @property
    def due(self) -> bool:
        """Whether a validation comes next: every so many steps, and after the last one."""
        return not self.validated and (self.step % self.plan.validate == 0 or self.step >= self.plan.steps)

    @property
    def done(self) -> bool:
        """Whether all steps are done and validated, or the last validations brought no gain."""
        since = len(self.log) - 1 - self._best_entry if self.log else 0
        return (self.step >= self.plan.steps and self.validated) or since >= self.plan.patience

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

    def gradients(self) -> float:
        """Adds the gradients of one batch and of one that is rehearsed, and changes nothing else, so that it may be interrupted anywhere.
        Returns the loss of the first."""
        rng = np.random.default_rng((self._seed, self.step))  # of the step alone, so that a resumed run draws the same
        torch.manual_seed(int(rng.integers(2**31)))
        total = self._total(losses(self.model, self._on_device(self._lessons.batch(rng, self.plan.batch))))
        total.backward()
        self._total(losses(self.model, self._on_device(self._rehearsal.batch(rng))), self.plan.rehearsal).backward()
        return float(total.detach())

    def descend(self) -> None:
        """Ends the step: follows its gradients."""
        descend(self.model, self._optimiser, self.plan.rate_at(self.step))
        self._average.take(self.model)
        self.step += 1

    def state(self) -> dict[str, Any]:
        """The complete state between two steps."""
        return {
            "step": self.step, "log": self.log, "model": self.model.state_dict(), "optimiser": self._optimiser.state_dict(),
            "average": self._average.model.state_dict(), "average_steps": self._average.steps,
            "best": None if self.best is None else self.best.state_dict(),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues where the run was that gave this state."""
        self.step, self.log = state["step"], state["log"]
        self.model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._average.model.load_state_dict(state["average"])
        self._average.steps = state["average_steps"]
        if state["best"] is not None:
            self.best = copy.deepcopy(self._average.model)
            self.best.load_state_dict(state["best"])

    def validate(self) -> dict[str, Any]:
        """Scores what would be kept now on the validation windows, and keeps it if it is the best so far."""
        model = copy.deepcopy(self._before)
        with torch.no_grad():
            torch._foreach_lerp_(list(model.parameters()), list(self._average.model.parameters()), self.plan.kept)
        terms: dict[str, float] = {}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same frames each time
            for batch in self._validation:
                found = losses(model, self._on_device(batch))
                for name, x in {**found, "validation": self._total(found)}.items():
                    terms[name] = terms.get(name, 0.0) + float(x) / len(self._validation)
        entry = {"step": self.step, **{name: round(x, 5) for name, x in terms.items()}}
        if self.best is None or (
            self._harmless(entry) and entry["validation"] < self.log[self._best_entry]["validation"]
        ):
            self.best = model
        self.log.append(entry)  # last: a signal may end this anywhere
        return entry

    def _on_device(self, batch: Batch) -> Batch:
        return {name: x.to(self.device) for name, x in batch.items()}

    def _total(self, terms: Mapping[str, Tensor], other: Mapping[str, float] | None = None) -> Tensor:
        """other: weights that differ from the plan's."""
        weights = {**self.plan.weights, **(other or {})}
        return torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
