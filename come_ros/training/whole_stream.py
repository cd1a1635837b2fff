"""A causal model over a whole stream in one pass, for training: a mask shows each frame what it would find in the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import KeyWeights


class WholePass:
    """All frames of a stream at once, each a keyframe, with what frame by frame gives (backbones/causal.py). See tokens.StreamPass.

    The first `scale_frames` see each other. Every later frame sees those, all tokens of the newest `window` frames, itself among them,
    and the special tokens of those between.
    """

    first, starts = 0, True

    def __init__(self, frames: int, scale_frames: int, window: int) -> None:
        if not 1 <= scale_frames <= frames or window < 1:
            raise ValueError(
                f"scale_frames is {scale_frames} and window {window}, of {frames} frames: take 1 to {frames}, and 1 or more"
            )
        self.frames, self.scale_frames, self.window = frames, scale_frames, window
        self.mask: Tensor | None = None
        self.camera_mask: Tensor | None = None

    def placed(self, positions: Tensor, special: int, turn: Callable[[Tensor, int, int], Any]) -> None:
        per_frame, i = len(positions) // self.frames, torch.arange(self.frames, device=positions.device)
        n = self.scale_frames
        earlier = (i[None] <= i[:, None]) | (i[None] < n)  # scale frames see those after them too
        near = (i[None] < n) | (i[None] > i[:, None] - self.window)
        token = torch.arange(len(positions), device=positions.device)
        frame, is_special = token // per_frame, token % per_frame < special
        self.camera_mask = earlier
        self.mask = earlier[frame[:, None], frame[None]] & (near[frame[:, None], frame[None]] | is_special[None])

    def recall(
        self, block: int, q: Tensor, k: Tensor, v: Tensor, weights: KeyWeights | None
    ) -> tuple[Tensor, Tensor, KeyWeights | None]:
        if weights is not None:
            raise ValueError("tokens were merged, but a whole stream is trained dense: merge none")
        return k, v, None

    def recall_camera(self, place: tuple[int, int], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v
