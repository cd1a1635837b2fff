"""Tokens and what describes them: their block, whose keys they read, and the sites where they may be reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from .kernels import KeyWeights


class StreamPass(Protocol):
    """One pass of a causal model, over frames that see those before them by keys and values that were kept (backbones/causal.py).

    first: temporal index of the first of its frames. starts: whether nothing was kept yet. scale_frames: how many of its frames begin
    the stream, and so see each other. mask: (N, N) bool, which of its N tokens read which in global blocks; None if all read all that
    `recall` gives. camera_mask: (S, S) bool, the same for its S frames in the camera head.
    """

    first: int
    starts: bool
    scale_frames: int

    @property
    def mask(self) -> Tensor | None: ...

    @property
    def camera_mask(self) -> Tensor | None: ...

    def placed(self, positions: Tensor, special: int, turn: Callable[[Tensor, int, int], Any]) -> None:
        """Where all tokens of global blocks are, frame by frame (N, 2), as in Tokens; and the rotation of a frame's tokens by their
        positions, the number of special ones among them, and the temporal index."""

    def recall(
        self, block: int, q: Tensor, k: Tensor, v: Tensor, weights: KeyWeights | None
    ) -> tuple[Tensor, Tensor, KeyWeights | None]:
        """What the queries q of these frames read in that global block: k, v and what they count for, behind those that were kept."""

    def recall_camera(self, place: tuple[int, int], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The same in the camera head, at (iteration, block)."""


class Layer(NamedTuple):
    """Which block is running: part = "encoder" | "frame" | "global", index counts within the part, from 0.

    shared: number of tokens of the whole scene that follow the others of each sequence, as queries and as keys. stream: the
    pass of a causal model, in its global blocks; None elsewhere.
    """

    part: str
    index: int  # type: ignore[assignment]  # tuple.index is never asked for
    shared: int = 0
    stream: StreamPass | None = None


class Tokens(NamedTuple):
    """Tokens of S frames and their positions.

    x: (B, S, T, C). positions: (B or 1, S or 1, T, 2) integer (y, x), special tokens at (0, 0), patch (row, column) at
    (row + 1, column + 1). special: leading tokens of each frame that no accelerator may touch. grid: (h, w) patches of the image.
    layer: the block they are in, or came out of; None before the first. images: (B, S, 3, H, W) in [0, 1], their source. keys: at
    the site `residual` only, (B, S, T, d): their keys in the preceding attention, before rotation, mean over heads. shared: (B, n,
    C) tokens of the whole scene, which take part in global blocks only and are not changed by accelerators; or None. fine: maps (B,
    S, ., H / stride, W / stride) of the images, finer than the patches, for a model's heads; not changed by accelerators.
    stream: the pass of a causal model that they belong to; None for models that see all frames at once.
    """

    x: Tensor
    positions: Tensor
    special: int
    grid: tuple[int, int]
    layer: Layer | None = None
    images: Tensor | None = None
    keys: Tensor | None = None
    shared: Tensor | None = None
    fine: tuple[Tensor, ...] = ()
    stream: StreamPass | None = None


class ModelShape(NamedTuple):
    """The properties of a model that an accelerator needs.

    encoder_depth: blocks of the encoder. encoder_width: channels of its tokens. trunk: part of each alternating block, "frame" |
    "global", in order. trunk_width: channels of the trunk's tokens.
    """

    encoder_depth: int
    encoder_width: int
    trunk: tuple[str, ...]
    trunk_width: int


class Reach(NamedTuple):
    """Which keys and values the queries of one attention read.

    across: those of all frames of the scene; otherwise each frame reads its own. index: (B, n) int64, which of the scene's S T
    tokens; None for all. Only these are projected to keys and values.
    """

    across: bool
    index: Tensor | None = None  # type: ignore[assignment]


# Where a backbone offers its tokens. Around the stack of blocks (`Tokens` of all frames):
#   encoder_k      after the encoder block after which the plan was made       compress
#   encoder_end    after the last encoder block, before its norm               restore
#   backbone_in    special tokens added, before the first alternating block    compress
#   tap            a copy of the level's tokens on its way to the heads        restore
# and inside every accelerated block:
#   before_attention, before_mlp   the normalised input of the module          compress
#   after_attention, after_mlp     the module's output, before the residual    restore
#   residual                       the residual stream between the two         compress, with Tokens.keys
SITES = frozenset(
    {
        "encoder_k",
        "encoder_end",
        "backbone_in",
        "tap",
        "before_attention",
        "after_attention",
        "residual",
        "before_mlp",
        "after_mlp",
    }
)
