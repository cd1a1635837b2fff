"""Rehearsal for a model that is adapted to one place: rendered rooms with the model's own answers of before, so that it keeps what it knew.

The answers, not the truth: a large model knows more than these rooms could teach it, and must only not change there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..accelerators import NoAccelerator
from ..backbones.cameras import invert_rigid
from ..backbones.model import GeometryModel
from .lessons import Batch
from .room_windows import RENDERED, WindowStream

ROOMS = 24  # rendered, 12 frames each
BATCHES = 48
LENGTHS = (2, 3, 4, 6)  # frames of a window
REACH = 0.5  # of a room's frames that a window may span


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Batches as lessons.Lessons gives them, without points; floating point in half precision."""

    batches: tuple[Batch, ...]

    @staticmethod
    def of(model: GeometryModel, frames: int, seed: int, rooms: int = ROOMS, count: int = BATCHES) -> Rehearsal:
        """`count` batches of about `frames` frames, of so many rooms. model: as it is now, in fp32."""
        stream = WindowStream(seed)
        for _ in range(rooms):
            stream.render()
        return Rehearsal(tuple(_answered(model, _windows(stream, model, frames)) for _ in range(count)))

    def batch(self, rng: np.random.Generator) -> Batch:
        """One of them, drawn at random."""
        batch = self.batches[rng.integers(len(self.batches))]
        plain = {name: x.float() if x.dtype == torch.float16 else x for name, x in batch.items()}
        plain["depth"] = plain.pop("log_depth").exp()
        nothing = torch.zeros_like(plain["depth"])
        return {**plain, "log_points": nothing, "weight": nothing}


def size_for(model: GeometryModel) -> tuple[int, int]:
    """(W, H) of its windows: the model's native size, or what is rendered if that is smaller."""
    width = min(model.native_side, RENDERED[0]) // model.patch * model.patch
    return width, min(round(0.75 * width / model.patch), RENDERED[1] // model.patch) * model.patch


def _windows(stream: WindowStream, model: GeometryModel, frames: int) -> torch.Tensor:
    """Images (B, S, 3, H, W) uint8."""
    length = int(stream.rng.choice([n for n in LENGTHS if n <= max(frames, LENGTHS[0])]))
    size = size_for(model)
    drawn = [stream.window(length, REACH, size).images for _ in range(max(1, frames // length))]
    return torch.from_numpy(np.stack(drawn))


@torch.no_grad()
def _answered(model: GeometryModel, images: torch.Tensor) -> Batch:
    device = next(model.parameters()).device
    out, _ = model(images.to(device).float() / 255, NoAccelerator(), ("camera", "depth"))
    pose = out["world_from_camera"].float()
    return {
        "images": images,
        "log_depth": out["depth"].float().clamp_min(1e-6).log().cpu().half(),
        "log_confidence": out["depth_conf"].float().clamp_min(1e-6).log().cpu().half(),
        "camera_from_first": (invert_rigid(pose) @ pose[:, :1]).cpu(),
        "intrinsics": out["intrinsics"].float().mean(1).cpu(),
    }
