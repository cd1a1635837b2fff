"""Encoding, alternating attention and decoding: written once for all backbones, with the four accelerator steps at named sites.

`GeometryModel` is the network (tensors in, tensors out, differentiable); `TorchBackbone` puts one on a device and gives the pipeline
numpy arrays. Shapes: B scenes, S frames, T tokens of a frame, C width, H x W pixels, h x w patches.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accelerators.base import Accelerator
from ..camera.preprocess import patch_grid_size
from ..tokens import Layer, ModelShape, StreamPass, Tokens
from .heads import in_chunks
from .layers import Attention, Block, BlockParts, Rotary, rotary, rotate
from .stream import Encoded

log = logging.getLogger("come_ros")


Check = Callable[[], None]
"""Called between blocks; raises Cancelled when the result is no longer needed."""


def never() -> None:
    """A check that never cancels."""


class KnownTensors(NamedTuple):
    """types.Known as tensors: what is known of a scene besides its images, for models that accept it; NaN where unknown.

    intrinsics (B, S, 3, 3), pixels. depth (B, S, H, W), along z. world_from_camera (B, S, 4, 4). metric (B, S) bool: whether depth
    and world_from_camera are in metres.
    """

    intrinsics: Tensor
    depth: Tensor
    world_from_camera: Tensor
    metric: Tensor


class Trunk(NamedTuple):
    """The input of the heads. levels: tap -> (B, S, T, channels), see GeometryModel.taps; special: tokens in front of each frame's
    patches; grid: (h, w) patches; plan: the accelerator's plan, for reports; shared: (B, n, C) tokens of the scene, or None; fine:
    finer maps of the images, see Tokens; read_ratio: share of the patches whose keys global blocks read, their mean; stream: see Tokens."""

    levels: dict[int, Tensor]
    special: int
    grid: tuple[int, int]
    plan: Any
    shared: Tensor | None = None
    fine: tuple[Tensor, ...] = ()
    read_ratio: float = 1.0
    stream: StreamPass | None = None


ENCODED = -1  # the tap before the first trunk block


class GeometryModel(nn.Module, ABC):
    """A visual geometry transformer: patch encoder, trunk of blocks that attend over one frame or over all, heads.

    Subclasses define the parts of their model (encoder tokens, special tokens, blocks, heads). taps: the levels that its heads
    read; ENCODED is the encoder's output, with known geometry added.
    """

    name: ClassVar[str]
    sizes: Any
    sizes_type: ClassVar[type]
    """dataclass of what the constructor takes"""
    unsaid: ClassVar[Mapping[str, Any]] = {}
    """sizes of our own files from before sizes were stored in them"""
    landmark: ClassVar[str]
    """a key, under our names, that files of this model hold, and no others"""
    weights_from: ClassVar[str]
    """where the published files are, used in messages"""
    patch: int
    native_side: int
    taps: tuple[int, ...]
    inputs: frozenset[str] = frozenset()
    """the inputs of KnownTensors that it accepts: "intrinsics", "depth", "poses" """
    causal = False
    """whether frames come one by one and attend to the stored keys of earlier frames (causal.py)"""
    same_keys: frozenset[str] = frozenset()
    """other models whose files have the same keys: a published one does not say which of the two it belongs to, and ours run as either"""
    metric = False
    """whether its lengths are metres"""
    parts = BlockParts()
    """how its blocks are run"""
    heads_dtype = torch.float32
    """precision of the dense heads; camera heads always run in fp32, since they are small and poses must be accurate"""

    @classmethod
    @abstractmethod
    def published_sizes(cls, state: Mapping[str, Tensor]) -> Any:
        """The sizes of a published weights file, derived from its tensors under our names."""

    @classmethod
    def own_names(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published file under our names, without those that we do not run."""
        return dict(state)

    @classmethod
    def adopted(cls, sizes: Any) -> Any:
        """The sizes that run weights of ours of a model of same_keys, made for `sizes`."""
        raise NotImplementedError

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        """(W, H) of the model's image, multiples of the patch, with the longer side about `side`."""
        return patch_grid_size(width, height, side, self.patch)

    @classmethod
    def doubt(cls, state: Mapping[str, Tensor]) -> str:
        """What a published file leaves open, to be logged behind its name, and what to set; "" if nothing."""
        return ""

    @abstractmethod
    def encoder_input(self, images: Tensor) -> Tokens:
        """(B, S, 3, H, W) RGB in [0, 1] -> tokens before the first encoder block."""

    @abstractmethod
    def encoder_blocks(self) -> list[Block]: ...

    @property
    def shape(self) -> ModelShape:
        """The shape of the model, from which accelerators and their networks are built."""
        encoder, trunk = self.encoder_blocks(), self.trunk_blocks()
        widths = (blocks[0].norm1.weight.shape[0] for blocks in (encoder, [block for _, block in trunk]))
        return ModelShape(len(encoder), next(widths), tuple(part for part, _ in trunk), next(widths))

    @abstractmethod
    def encoder_output(self, encoded: Tokens, known: KnownTensors | None) -> Tokens:
        """Output of the last encoder block -> output of the encoder: normalised, known geometry added."""

    @abstractmethod
    def trunk_input(self, encoded: Tokens) -> Tokens:
        """Output of the encoder -> tokens before the first trunk block, with the trunk's special tokens."""

    @abstractmethod
    def trunk_blocks(self) -> list[tuple[str, Block]]:
        """("frame" or "global", block), in the order they run."""

    def rope(self) -> RopeTables | None:
        """Rotary tables of the trunk for one pass; None without rotary positions."""
        return RopeTables()

    def joined(self, tap: int) -> tuple[int, ...]:
        """The trunk blocks whose outputs are the channels of level `tap`, as indices; here those of the tap's pair of blocks."""
        return 2 * tap, 2 * tap + 1

    @abstractmethod
    def decode(
        self,
        trunk: Trunk,
        size: tuple[int, int],
        heads: tuple[str, ...],
        check: Check,
        dense: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Runs the named heads on the tapped levels for images of (H, W) = size. All models have the heads

        camera: world_from_camera (B, S, 4, 4), intrinsics (B, S, 3, 3) in pixels;
        depth: depth (B, S, H, W) along z, depth_conf (B, S, H, W), larger is more confident; and, if the model predicts it,
        meaningful (B, S, H, W) bool, see types.Prediction.

        dense: the frames for which dense outputs are needed (and intrinsics, if those are fitted to pixels); None for all.
        """

    def run_dense(
        self,
        head: Callable[[list[Tensor]], Tensor],
        levels: list[Tensor],
        check: Check,
        frames: Sequence[int] | None = None,
        chunk: int = 8,
    ) -> Tensor:
        """Runs a dense head in heads_dtype on levels (B, S, h*w, C), on all frames or some: (B, n, ...) in fp32. See
        heads.in_chunks."""
        low = self.heads_dtype != torch.float32
        with torch.autocast(levels[0].device.type, self.heads_dtype) if low else nullcontext():
            return in_chunks(head, levels, check, chunk, frames)

    def run_trunk(
        self,
        images: Tensor,
        accelerator: Accelerator,
        check: Check = never,
        known: KnownTensors | None = None,
        stream: StreamPass | None = None,
    ) -> Trunk:
        """Runs images (B, S, 3, H, W) through encoder and trunk; only the tapped levels are kept. stream: see Tokens."""
        encoded = self.encode(images, accelerator, check)
        encoded = encoded._replace(tokens=encoded.tokens._replace(stream=stream))
        return self.attend(encoded, accelerator, check, known)

    def encode(self, images: Tensor, accelerator: Accelerator, check: Check = never) -> Encoded:
        """Runs images (B, S, 3, H, W) through the encoder's blocks, each frame separately (except for the accelerator's plan)."""
        sites = accelerator.sites
        tokens = self.encoder_input(images)._replace(images=images)
        blocks = self.encoder_blocks()
        plan_after, plan = accelerator.plan_block(len(blocks)), None
        for i, block in enumerate(blocks):
            check()
            tokens, plan = run_block(block, tokens, None, accelerator, plan, Layer("encoder", i), self.parts)
            if i == plan_after:
                plan = accelerator.plan(tokens)
                if "encoder_k" in sites:
                    tokens, plan = accelerator.compress(tokens, plan, "encoder_k")
        if "encoder_end" in sites:
            tokens, plan = accelerator.restore(tokens, plan, "encoder_end")
        return Encoded(tokens._replace(layer=None), plan)

    def attend(
        self, encoded: Encoded, accelerator: Accelerator, check: Check = never, known: KnownTensors | None = None
    ) -> Trunk:
        """Runs the encoder's output for a scene through the trunk."""
        sites, plan = accelerator.sites, encoded.plan
        stream = encoded.tokens.stream
        tokens = self.encoder_output(encoded.tokens, known)._replace(stream=stream)
        levels = {ENCODED: tokens.x} if ENCODED in self.taps else {}
        tokens = self.trunk_input(tokens)._replace(
            images=encoded.tokens.images, fine=encoded.tokens.fine, stream=stream
        )
        if "backbone_in" in sites:
            tokens, plan = accelerator.compress(tokens, plan, "backbone_in")
        rope = self.rope()
        joined = {tap: self.joined(tap) for tap in self.taps if tap != ENCODED}
        parts: dict[int, Tensor] = {}  # outputs of trunk blocks that are needed for a later level
        counts, read = {"frame": 0, "global": 0}, []
        for i, (part, block) in enumerate(self.trunk_blocks()):
            check()
            layer = Layer(part, counts[part])
            tokens, plan = run_block(block, tokens, rope, accelerator, plan, layer, self.parts)
            counts[part] += 1
            if part == "global":
                read.append(accelerator.read_ratio(plan, layer, tokens.x.shape[1], tokens.grid))
            if any(i in wanted for wanted in joined.values()):
                # copies are restored to the full grid; the stream itself stays compressed
                parts[i] = (accelerator.restore(tokens, plan, "tap")[0] if "tap" in sites else tokens).x
            for tap, wanted in joined.items():
                if wanted[-1] == i:
                    levels[tap] = torch.cat([parts.pop(j) for j in wanted], dim=-1) if len(wanted) > 1 else parts.pop(i)
        share = sum(read) / len(read) if read else 1.0
        return Trunk(levels, tokens.special, tokens.grid, plan, tokens.shared, tokens.fine, share, stream)

    def forward(
        self,
        images: Tensor,
        accelerator: Accelerator,
        heads: tuple[str, ...],
        check: Check = never,
        known: KnownTensors | None = None,
        stream: StreamPass | None = None,
    ) -> tuple[dict[str, Tensor], Trunk]:
        """(B, S, 3, H, W) RGB in [0, 1], sides multiples of the patch -> outputs of the named heads, and what they read."""
        trunk = self.run_trunk(images, accelerator, check, known, stream)
        return self.decode(trunk, (images.shape[-2], images.shape[-1]), heads, check), trunk


class RopeTables:
    """Rotation tables for one pass, recomputed only when the tokens' positions change.

    spatial_across_frames: if not, all patches have one position in global blocks.
    """

    KEPT = 4  # frame and global of two layouts; an accelerator may change positions in every block

    def __init__(self, spatial_across_frames: bool = True) -> None:
        self._spatial_across_frames = spatial_across_frames
        self._made: dict[tuple[int, bool, bool, int], tuple[Tensor, Rotary]] = {}

    def __call__(self, tokens: Tokens, part: str, across: bool, head_dim: int) -> Rotary:
        """Tables for a block of that part. across: all frames of a scene are one sequence; otherwise each frame is one."""
        flat = part == "global" and not self._spatial_across_frames
        key = (id(tokens.positions), flat, across, head_dim)
        if key not in self._made:
            p = tokens.positions.clamp(max=1) if flat else tokens.positions  # (B or 1, S or 1, T, 2)
            if across:
                p = p.expand(p.shape[0], tokens.x.shape[1], -1, -1).flatten(1, 2)
            elif p.shape[0] * p.shape[1] == 1:
                p = p.flatten(0, 1)
            else:
                p = p.expand(*tokens.x.shape[:2], -1, -1).flatten(0, 1)
            if tokens.shared is not None:
                p = F.pad(p, (0, 0, 0, tokens.shared.shape[1]))
            if len(self._made) == self.KEPT:
                del self._made[next(iter(self._made))]
            # holding the tensor prevents its id from being reused
            self._made[key] = (tokens.positions, rotary(p, head_dim))
        return self._made[key][1]


PLAIN = BlockParts()
INSIDE = frozenset({"before_attention", "after_attention", "residual", "before_mlp", "after_mlp"})


def run_block(
    block: Block,
    tokens: Tokens,
    rope: RopeTables | None,
    accelerator: Accelerator,
    plan: Any,
    layer: Layer,
    parts: BlockParts = PLAIN,
) -> tuple[Tokens, Any]:
    """One transformer block with the accelerator's steps around its attention and its MLP (sites: accelerators/base.py).

    Tokens shared by the scene go through global blocks together with the others, but bypass the accelerator's sites.
    """
    sites = accelerator.sites
    tokens = tokens._replace(layer=layer)
    shared = tokens.shared if layer.part == "global" else None
    if shared is None and not sites & INSIDE:  # no accelerator acts inside: two parts, which can be compiled
        (b, s, t, c), reach = tokens.x.shape, accelerator.reach(tokens, plan, layer)
        x = tokens.x.reshape(b, s * t, c) if reach.across else tokens.x.reshape(b * s, t, c)
        tables = rope(tokens, layer.part, reach.across, c // block.attn.heads) if rope else None
        q, k, v = parts.project(block, x, tables, reach.index)
        part = layer.part if reach.across or layer.part != "global" else "frame"
        stream = tokens.stream if part == "global" else None
        x = parts.finish(block, x, accelerator.attend(q, k, v, plan, layer._replace(part=part, stream=stream)))
        return tokens._replace(x=x.reshape(b, s, t, c)), plan
    h = tokens._replace(x=block.norm1(tokens.x), shared=None if shared is None else block.norm1(shared))
    if "before_attention" in sites:
        h, plan = accelerator.compress(h, plan, "before_attention")
    h = run_attention(block.attn, h, rope, accelerator, plan, layer)
    keys, h = h.keys, h._replace(keys=None)
    if "after_attention" in sites:
        h, plan = accelerator.restore(h, plan, "after_attention")
    tokens = tokens._replace(x=tokens.x + block.ls1(h.x))
    if shared is not None:
        shared = shared + block.ls1(h.shared)
        tokens = tokens._replace(shared=shared + block.ls2(block.mlp(block.norm2(shared))))
    if "residual" in sites:
        tokens, plan = accelerator.compress(tokens._replace(keys=keys), plan, "residual")
        tokens = tokens._replace(keys=None)

    h = tokens._replace(x=block.norm2(tokens.x))
    if "before_mlp" in sites:
        h, plan = accelerator.compress(h, plan, "before_mlp")
    h = h._replace(x=block.mlp(h.x))
    if "after_mlp" in sites:
        h, plan = accelerator.restore(h, plan, "after_mlp")
    return tokens._replace(x=tokens.x + block.ls2(h.x)), plan


def run_attention(
    attn: Attention, tokens: Tokens, rope: RopeTables | None, accelerator: Accelerator, plan: Any, layer: Layer
) -> Tokens:
    """Every token attends to its frame or to all frames of its scene, restricted by the accelerator's reach."""
    b, s, t, c = tokens.x.shape
    part, reach = layer.part, accelerator.reach(tokens, plan, layer)
    if part == "global":
        layer = layer._replace(stream=tokens.stream) if reach.across else layer._replace(part="frame")
    x = tokens.x.reshape(b, s * t, c) if reach.across else tokens.x.reshape(b * s, t, c)
    n, index, shared = x.shape[1], reach.index, tokens.shared
    if shared is not None:  # a frame that attends to itself includes them
        layer = layer._replace(shared=shared.shape[1])
        x = torch.cat((x, shared if reach.across else shared.repeat_interleave(s, 0)), dim=1)
        if index is not None:
            index = torch.cat((index, torch.arange(n, x.shape[1], device=x.device).expand(b, -1)), dim=1)
    q, k, v = attn.heads_of(x, index)
    if "residual" in accelerator.sites and index is None:
        tokens = tokens._replace(keys=k[:, :, :n].mean(1).view(b, s, t, -1))
    q, k, v = rotate(q, k, v, rope(tokens, part, reach.across, c // attn.heads) if rope else None, index)
    x = attn.merge_heads(accelerator.attend(q, k, v, plan, layer))
    if shared is not None:
        shared = x[:, n:] if reach.across else x[:, n:].unflatten(0, (b, s)).mean(1)
        x = x[:, :n]
    return tokens._replace(x=x.reshape(b, s, t, c), shared=shared)
