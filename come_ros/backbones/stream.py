"""Sliding windows: the encoder's output for a frame is kept while the frame is in the window, so only new frames go through the
encoder.

The encoder processes each frame separately, so this does not change the dense model. An accelerator that plans within the encoder
keeps its plan of a frame with the tokens: the merging in a frame is decided when it enters, together with the frames that enter
with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from ..accelerators.base import Accelerator
    from ..tokens import Tokens

FrameName = tuple[int, str]
"""(stamp in ns, camera): tells frames apart while they are kept."""


class Encoded(NamedTuple):
    """Tokens after the last encoder block, restored to the full grid, with their `images` and the accelerator's plan."""

    tokens: Tokens
    plan: Any


class StreamUsage(NamedTuple):
    """What a causal backbone keeps of its stream. frames: kept frames since the stream began, of most_frames. local: those whose patches
    are kept, scale frames aside, of `window`. mib: memory of it, at most most_mib."""

    frames: int
    most_frames: int
    local: int
    window: int
    mib: float
    most_mib: float


class FrameCache(Protocol):
    """What a backbone keeps from window to window. reused, encoded: number of frames so far."""

    reused: int
    encoded: int

    def __len__(self) -> int:
        """Frames that are known."""

    def clear(self) -> None:
        """Nothing is kept; the counts go on."""

    @property
    def usage(self) -> StreamUsage | None:
        """None unless the backbone is causal."""


class EncoderCache:
    """Name of a frame -> the encoder's output for it, with a batch size of 1. All entries have one image size and one accelerator.

    Holds tensors on the model's device, about 5 MB per frame for VGGT-1B. reused, encoded: number of frames so far. encoder_ms:
    time per frame in the last pass of the encoder.
    """

    def __init__(self) -> None:
        self.reused = self.encoded = 0
        self.encoder_ms = 0.0
        self._frames: dict[FrameName, Encoded] = {}
        self._made_by: tuple[Any, tuple[int, int]] | None = None

    usage = None

    def __len__(self) -> int:
        return len(self._frames)

    def clear(self) -> None:
        """Removes all entries; the counts continue."""
        self._frames.clear()
        self._made_by = None

    def missing(self, names: Sequence[FrameName], accelerator: Accelerator, size: tuple[int, int]) -> list[int]:
        """Which of the frames must go through the encoder, for images of `size` (H, W). Entries of another accelerator or another
        size are removed."""
        made_by = accelerator, size
        if self._made_by is None or self._made_by[0] is not accelerator or self._made_by[1] != size:
            self.clear()
            self._made_by = made_by
        return [i for i, name in enumerate(names) if name not in self._frames]

    def window(
        self, names: Sequence[FrameName], new: Encoded | None, missing: Sequence[int], accelerator: Accelerator
    ) -> Encoded:
        """All frames together: `new` holds the `missing` ones, the others come from the cache, which then keeps exactly these
        frames."""
        for row, i in enumerate(missing):
            assert new is not None
            self._frames[names[i]] = frame_of(new, row, accelerator)
        self._frames = {name: self._frames[name] for name in names}
        self.encoded += len(missing)
        self.reused += len(names) - len(missing)
        return joined(list(self._frames.values()), accelerator)

    def took(self, ms: float, frames: int) -> None:
        """Records the time that the encoder took for a number of frames."""
        if frames:
            self.encoder_ms = ms / frames


@dataclass(frozen=True, eq=False)
class Step:
    """How a window continues the previous ones. names: of its frames. cache: from Backbone.new_cache(); None
    keeps nothing. dense: the frames whose depth is needed, ascending; None for all."""

    names: tuple[FrameName, ...]
    cache: FrameCache | None = None
    dense: tuple[int, ...] | None = None


def frame_of(encoded: Encoded, index: int, accelerator: Accelerator) -> Encoded:
    """One frame of a scene, in separate memory."""
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
