"""Sliding windows: what the encoder gave for a frame is kept while the frame is in the window, so that only new frames go through it.

The encoder looks at each frame by itself, so for the dense model this changes nothing. An accelerator that plans within the encoder keeps
its plan of a frame next to the tokens: what is merged in a frame is decided when it enters, by the frames that enter with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..accelerators.base import Accelerator
    from ..tokens import Tokens

FrameName = tuple[int, str]
"""(stamp in ns, camera): tells frames apart while they are kept."""


class Encoded(NamedTuple):
    """Tokens after the last encoder block, whole again, with the `images` they were made of; and the accelerator's plan of them."""

    tokens: Tokens
    plan: Any


class EncoderCache:
    """Name of a frame -> what the encoder gave for it, alone in its batch. All of one image size and by one accelerator.

    Holds tensors of the model's device, some 5 MB a frame of VGGT-1B. reused, encoded: frames so far. encoder_ms: of one frame, as the
    last pass through the encoder showed.
    """

    def __init__(self) -> None:
        self.reused = self.encoded = 0
        self.encoder_ms = 0.0
        self._frames: dict[FrameName, Encoded] = {}
        self._made_by: tuple[Any, tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def clear(self) -> None:
        """Nothing is kept; the counts go on."""
        self._frames.clear()
        self._made_by = None

    def missing(self, names: Sequence[FrameName], accelerator: Accelerator, size: tuple[int, int]) -> list[int]:
        """Which of the frames must go through the encoder, for images of `size` (H, W). What another accelerator made, or of another
        size, is given up."""
        made_by = accelerator, size
        if self._made_by is None or self._made_by[0] is not accelerator or self._made_by[1] != size:
            self.clear()
            self._made_by = made_by
        return [i for i, name in enumerate(names) if name not in self._frames]

    def window(
        self, names: Sequence[FrameName], new: Encoded | None, missing: Sequence[int], accelerator: Accelerator
    ) -> Encoded:
        """All frames together: `new` holds those that were `missing`, the others were kept. From here on these are kept, no others."""
        for row, i in enumerate(missing):
            assert new is not None
            self._frames[names[i]] = frame_of(new, row, accelerator)
        self._frames = {name: self._frames[name] for name in names}
        self.encoded += len(missing)
        self.reused += len(names) - len(missing)
        return joined(list(self._frames.values()), accelerator)

    def took(self, ms: float, frames: int) -> None:
        """So long took the encoder for so many frames."""
        if frames:
            self.encoder_ms = ms / frames


@dataclass(frozen=True, eq=False)
class Step:
    """How a window stands to those before. names: of its frames. cache: None keeps nothing. dense: the frames whose depth is wanted,
    ascending; None for all."""

    names: tuple[FrameName, ...]
    cache: EncoderCache | None = None
    dense: tuple[int, ...] | None = None


def frame_of(encoded: Encoded, index: int, accelerator: Accelerator) -> Encoded:
    """One frame of a scene by itself, sharing no memory with the others."""
    tokens, s = encoded.tokens, encoded.tokens.x.shape[1]
    if s == 1:
        return encoded
    one = slice(index, index + 1)
    images = tokens.images
    return Encoded(
        tokens._replace(
            x=tokens.x[:, one].clone(),
            positions=tokens.positions.expand(-1, s, -1, -1)[:, one].clone(),
            images=None if images is None else images[:, one].clone(),
            fine=tuple(t[:, one].clone() for t in tokens.fine),
        ),
        accelerator.frame_plan(encoded.plan, index),
    )


def joined(frames: Sequence[Encoded], accelerator: Accelerator) -> Encoded:
    """Frames as one scene."""
    if len(frames) == 1:
        return frames[0]
    import torch

    tokens = [f.tokens for f in frames]
    images = [t.images for t in tokens if t.images is not None]
    return Encoded(
        tokens[0]._replace(
            x=torch.cat([t.x for t in tokens], dim=1),
            positions=torch.cat([t.positions for t in tokens], dim=1),
            images=torch.cat(images, dim=1) if images else None,
            fine=tuple(torch.cat(maps, dim=1) for maps in zip(*(t.fine for t in tokens), strict=True)),
        ),
        accelerator.join_plans([f.plan for f in frames]),
    )
