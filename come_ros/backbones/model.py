"""Encode, alternate attention, decode: written once for all backbones, with the four accelerator steps at named places.

`GeometryModel` is the network (tensors in, tensors out, differentiable); `TorchBackbone` puts one on a device and gives the pipeline
numpy arrays. Shapes: B scenes, S frames, T tokens of a frame, C width, H x W pixels, h x w patches.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accelerators.base import Accelerator, Layer, Tokens
from ..camera.preprocess import patch_grid_size
from ..config import Config
from ..errors import Cancelled, ComeRosError, ConfigError, DeviceLost, OutOfMemory
from ..plugins import ACCELERATORS
from ..types import DeviceMemory, Known, Prediction
from .graphs import Graphs, cloned
from .layers import Attention, Block, BlockParts, Rotary, in_chunks, rotary, rotate
from .stream import Encoded, Step

log = logging.getLogger("come_ros")

MOST_FORMS = 12
"""of one accelerator, with other dynamic parameters, that are kept for their graphs (graphs.MOST)"""

Check = Callable[[], None]
"""Called between blocks; raises Cancelled when the result is no longer wanted."""


def _never() -> None:
    """The check of somebody who never cancels."""


class KnownTensors(NamedTuple):
    """What is known of a scene beside its images, for models that take it; NaN where it is not. types.Known as tensors.

    intrinsics (B, S, 3, 3), pixels. depth (B, S, H, W), along z. world_from_camera (B, S, 4, 4). metric (B, S) bool: whether depth
    and world_from_camera are in metres.
    """

    intrinsics: Tensor
    depth: Tensor
    world_from_camera: Tensor
    metric: Tensor


class Trunk(NamedTuple):
    """What the heads read. levels: tap -> (B, S, T, channels), see GeometryModel.taps; special: tokens in front of each frame's
    patches; grid: (h, w) patches; plan: the accelerator's, for its report; shared: (B, n, C) tokens of the scene, or None; fine: finer
    maps of the images, see Tokens; read_ratio: share of the patches whose keys global blocks read, their mean."""

    levels: dict[int, Tensor]
    special: int
    grid: tuple[int, int]
    plan: Any
    shared: Tensor | None = None
    fine: tuple[Tensor, ...] = ()
    read_ratio: float = 1.0


ENCODED = -1  # the tap before the first trunk block


class GeometryModel(nn.Module, ABC):
    """A visual geometry transformer: patch encoder, trunk of blocks that attend over one frame or over all, heads.

    Subclasses say where that model keeps its parts (encoder tokens, special tokens, blocks, heads). taps: the levels its heads
    read; ENCODED is what the encoder gives, with known geometry added.
    """

    name: ClassVar[str]
    sizes: Any
    sizes_type: ClassVar[type]
    """dataclass of what the constructor takes"""
    unsaid: ClassVar[Mapping[str, Any]] = {}
    """sizes of files of our own that were written before these were stored"""
    landmark: ClassVar[str]
    """a key, under our names, that files of this model hold, and no others"""
    weights_from: ClassVar[str]
    """where the published files are, for messages"""
    patch: int
    native_side: int
    taps: tuple[int, ...]
    inputs: frozenset[str] = frozenset()
    """what of KnownTensors it takes: "intrinsics", "depth", "poses" """
    metric = False
    """whether its lengths are metres"""
    parts = BlockParts()
    """how its blocks are run"""
    heads_dtype = torch.float32
    """of the dense heads; those of cameras are small, and poses are wanted exact"""

    @classmethod
    @abstractmethod
    def published_sizes(cls, state: Mapping[str, Tensor]) -> Any:
        """The sizes of a published weights file, told from its tensors under our names."""

    @classmethod
    def own_names(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published file under our names, without those that we do not run."""
        return dict(state)

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        """(W, H) at which an image is given to the model whose longer side is to be about `side`, multiples of the patch."""
        return patch_grid_size(width, height, side, self.patch)

    @abstractmethod
    def encoder_input(self, images: Tensor) -> Tokens:
        """(B, S, 3, H, W) RGB in [0, 1] -> tokens before the first encoder block."""

    @abstractmethod
    def encoder_blocks(self) -> list[Block]: ...

    @property
    def encoder_width(self) -> int:
        """Channels of the encoder's tokens."""
        return self.encoder_blocks()[0].norm1.weight.shape[0]

    @abstractmethod
    def encoder_output(self, encoded: Tokens, known: KnownTensors | None) -> Tokens:
        """Output of the last encoder block -> what the encoder gives: normalised, known geometry added."""

    @abstractmethod
    def trunk_input(self, encoded: Tokens) -> Tokens:
        """What the encoder gives -> tokens before the first trunk block, with the trunk's special tokens."""

    @abstractmethod
    def trunk_blocks(self) -> list[tuple[str, Block]]:
        """("frame" or "global", block), in the order they run."""

    def rope(self) -> RopeTables | None:
        """How positions turn queries and keys of the trunk, for one pass; None if they do not."""
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
        """Run the named heads on the tapped levels for images of (H, W) = size. All models know the heads

        camera: world_from_camera (B, S, 4, 4), intrinsics (B, S, 3, 3) in pixels;
        depth: depth (B, S, H, W) along z, depth_conf (B, S, H, W), larger is surer; and, if the model tells it, meaningful
        (B, S, H, W) bool, see types.Prediction.

        dense: the frames that are wanted of whatever has pixels (and of intrinsics, if those are fitted to pixels); None for all.
        """

    def run_dense(
        self,
        head: Callable[[list[Tensor]], Tensor],
        levels: list[Tensor],
        check: Check,
        frames: Sequence[int] | None = None,
        chunk: int = 8,
    ) -> Tensor:
        """A dense head in heads_dtype on levels (B, S, h*w, C), on all frames or some: (B, n, ...) in fp32. See layers.in_chunks."""
        low = self.heads_dtype != torch.float32
        with torch.autocast(levels[0].device.type, self.heads_dtype) if low else nullcontext():
            return in_chunks(head, levels, check, chunk, frames)

    def run_trunk(
        self, images: Tensor, accelerator: Accelerator, check: Check = _never, known: KnownTensors | None = None
    ) -> Trunk:
        """Images (B, S, 3, H, W) through encoder and trunk; only the tapped levels are kept."""
        return self.attend(self.encode(images, accelerator, check), accelerator, check, known)

    def encode(self, images: Tensor, accelerator: Accelerator, check: Check = _never) -> Encoded:
        """Images (B, S, 3, H, W) through the encoder's blocks, each frame by itself (but for what an accelerator plans)."""
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
        self, encoded: Encoded, accelerator: Accelerator, check: Check = _never, known: KnownTensors | None = None
    ) -> Trunk:
        """What the encoder gave for a scene, through the trunk."""
        sites, plan = accelerator.sites, encoded.plan
        tokens = self.encoder_output(encoded.tokens, known)
        levels = {ENCODED: tokens.x} if ENCODED in self.taps else {}
        tokens = self.trunk_input(tokens)._replace(images=encoded.tokens.images, fine=encoded.tokens.fine)
        if "backbone_in" in sites:
            tokens, plan = accelerator.compress(tokens, plan, "backbone_in")
        rope = self.rope()
        joined = {tap: self.joined(tap) for tap in self.taps if tap != ENCODED}
        parts: dict[int, Tensor] = {}  # outputs of trunk blocks that a level still waits for
        counts, read = {"frame": 0, "global": 0}, []
        for i, (part, block) in enumerate(self.trunk_blocks()):
            check()
            layer = Layer(part, counts[part])
            tokens, plan = run_block(block, tokens, rope, accelerator, plan, layer, self.parts)
            counts[part] += 1
            if part == "global":
                read.append(accelerator.read_ratio(plan, layer, tokens.x.shape[1], tokens.grid))
            if any(i in wanted for wanted in joined.values()):
                # copies are restored; the stream itself stays short
                parts[i] = (accelerator.restore(tokens, plan, "tap")[0] if "tap" in sites else tokens).x
            for tap, wanted in joined.items():
                if wanted[-1] == i:
                    levels[tap] = torch.cat([parts.pop(j) for j in wanted], dim=-1) if len(wanted) > 1 else parts.pop(i)
        share = sum(read) / len(read) if read else 1.0
        return Trunk(levels, tokens.special, tokens.grid, plan, tokens.shared, tokens.fine, share)

    def forward(
        self,
        images: Tensor,
        accelerator: Accelerator,
        heads: tuple[str, ...],
        check: Check = _never,
        known: KnownTensors | None = None,
    ) -> tuple[dict[str, Tensor], Trunk]:
        """(B, S, 3, H, W) RGB in [0, 1], sides multiples of the patch -> outputs of the named heads, and what they read."""
        trunk = self.run_trunk(images, accelerator, check, known)
        return self.decode(trunk, (images.shape[-2], images.shape[-1]), heads, check), trunk


class RopeTables:
    """Rotation tables for one pass, made anew only when the tokens' positions change.

    spatial_across_frames: if not, all patches have one position in global blocks.
    """

    KEPT = 4  # frame and global of two layouts; an accelerator may change positions in every block

    def __init__(self, spatial_across_frames: bool = True) -> None:
        self._spatial_across_frames = spatial_across_frames
        self._made: dict[tuple[int, bool, bool, int], tuple[Tensor, Rotary]] = {}

    def __call__(self, tokens: Tokens, part: str, across: bool, head_dim: int) -> Rotary:
        """For a block of that part. across: all frames of a scene are one sequence, else each is one by itself."""
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
            # holding the tensor keeps its id from being reused
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

    Tokens that the scene shares go through global blocks beside the others, past the accelerator's sites.
    """
    sites = accelerator.sites
    tokens = tokens._replace(layer=layer)
    shared = tokens.shared if layer.part == "global" else None
    if shared is None and not sites & INSIDE:  # nobody looks inside: in two parts, which can be compiled
        (b, s, t, c), reach = tokens.x.shape, accelerator.reach(tokens, plan, layer)
        x = tokens.x.reshape(b, s * t, c) if reach.across else tokens.x.reshape(b * s, t, c)
        tables = rope(tokens, layer.part, reach.across, c // block.attn.heads) if rope else None
        q, k, v = parts.project(block, x, tables, reach.index)
        part = layer.part if reach.across or layer.part != "global" else "frame"
        x = parts.finish(block, x, accelerator.attend(q, k, v, plan, layer._replace(part=part)))
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
    """Every token attends to its frame or to all frames of its scene, as far as the accelerator lets it reach."""
    b, s, t, c = tokens.x.shape
    part, reach = layer.part, accelerator.reach(tokens, plan, layer)
    if part == "global" and not reach.across:
        layer = layer._replace(part="frame")
    x = tokens.x.reshape(b, s * t, c) if reach.across else tokens.x.reshape(b * s, t, c)
    n, index, shared = x.shape[1], reach.index, tokens.shared
    if shared is not None:  # a frame that attends to itself has them with it
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


class Backbone(ABC):
    """What the pipeline sees of a model: images in, Prediction out; nothing is kept between windows."""

    name: str
    patch_size: int
    native_side: int
    """longer side of the images the model was made for, px"""
    device: str
    description: dict[str, str]
    """for logs and diagnostics: weights, parameters, precision, attention kernel"""
    metric: bool = False
    """whether depth and poses are in metres, in every window"""
    inputs: frozenset[str] = frozenset()
    """what of types.Known it takes: "intrinsics", "depth", "poses" """
    streams: bool = False
    """whether predict() takes a Step"""

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        """(W, H) of the model's image for one of (width, height) whose longer side is to be about `side`."""
        return patch_grid_size(width, height, side, self.patch_size)

    def configured(self, config: Config) -> Backbone:
        """The same model with the dynamic parameters of `config`; self if nothing changes. Weights are shared, and this one stays as it
        is. Raises ConfigError if `config` names another accelerator than the one it has."""
        return self

    def dense(self) -> Backbone:
        """The same model without an accelerator, the same object at every call; self if it has none."""
        return self

    def free_memory(self) -> None:  # noqa: B027
        """Gives back what is kept for the next window only to be fast."""

    def memory(self) -> DeviceMemory | None:
        """Of its device, None if that is the CPU."""
        return None

    @abstractmethod
    def predict(
        self,
        images: np.ndarray,
        stop: Callable[[], bool] | None = None,
        known: Known | None = None,
        step: Step | None = None,
    ) -> Prediction:
        """(S, H, W, 3) uint8 RGB, sides multiples of patch_size -> Prediction. Raises Cancelled soon after stop() turns true,
        OutOfMemory, DeviceLost.

        known: what is known beside the images; what is not among `inputs` is not looked at. step: of a sliding window; None makes
        everything anew, for all frames.
        """


class TorchBackbone(Backbone):
    """A GeometryModel on its device. CUDA: trunk in bf16 (fp16 before Ampere), heads in fp32; CPU: fp32 throughout."""

    streams = True

    def __init__(
        self,
        name: str,
        model: GeometryModel,
        accelerator: Accelerator,
        *,
        device: str = "auto",
        precision: str = "auto",
        weights: str = "",
        attention: str = "auto",
        heads_precision: str = "fp32",
        optimize: str = "none",
    ) -> None:
        """attention, heads_precision, optimize: see config.py. Raises ConfigError if device, precision, kernel or graphs cannot be had."""
        self.name = name
        self.patch_size, self.native_side = model.patch, model.native_side
        self.metric, self.inputs = model.metric, model.inputs
        self._device = choose_device(device)
        self.device = str(self._device)
        self._clock = DeviceClock(self._device)
        self._dtype = choose_precision(precision, self._device)
        self.accelerator = accelerator.to(self._device)
        self._forms: deque[Accelerator] = deque([self.accelerator], maxlen=MOST_FORMS)
        self._dense: list[TorchBackbone] = []  # of all copies: the one without an accelerator, once it is asked for
        self.model = model.to(self._device).eval().requires_grad_(False)
        if self._dtype != torch.float32:
            lower_weights(model, self._dtype)
        kernel, self._kernel_context = choose_attention_kernel(self._device, self._dtype, attention)
        model.heads_dtype = torch.bfloat16 if heads_precision == "bf16" else torch.float32
        if optimize == "graph" and self._device.type != "cuda":
            raise ConfigError(
                f"optimize is graph, but CUDA graphs need a CUDA device, and this is {self.device}: set optimize to none or compile"
            )
        if optimize == "compile":
            model.parts = BlockParts.compiled()
        # compiled parts are still launched one by one, so they are recorded as well
        self._graphs = None if optimize == "none" or self._device.type != "cuda" else Graphs(self._device)
        count = sum(p.numel() for p in model.parameters())
        self.description = {
            "backbone": name,
            "accelerator": accelerator.name,
            "weights": weights,
            "parameters": f"{count / 1e6:.1f} M",
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            "precision": str(self._dtype).removeprefix("torch."),
            "heads_precision": heads_precision,
            "optimize": optimize,
            "attention": kernel,
            "unit": "metre" if model.metric else "its own",
            "takes": ", ".join(["images", *sorted(model.inputs)]),
            "encoder_cache": self._why_no_cache() or "by frame",
        }
        log.info("model ready: %s", ", ".join(f"{k} {v}" for k, v in self.description.items()))

    def configured(self, config: Config) -> TorchBackbone:
        wanted_names = {ACCELERATORS.load(name).name for name in config.accelerator.name.split("+")}
        if wanted_names != set(self.accelerator.name.split("+")):
            raise ConfigError(
                f"accelerator.name is {config.accelerator.name}, but the model that was given runs {self.accelerator.name}: give the "
                f"configuration that it was made from"
            )
        if self.accelerator.configured(config) is self.accelerator:
            return self
        # a form that ran before is found again, and with it the graphs that were recorded of it
        wanted = next((a for a in self._forms if a.configured(config) is a), None)
        if wanted is None:
            wanted = self.accelerator.configured(config)
            self._forms.append(wanted)
        return self._with(wanted)

    def dense(self) -> TorchBackbone:
        if self.accelerator.name == Accelerator.name and not self.accelerator.sites:
            return self
        if not self._dense:
            self._dense.append(self.accelerated(Accelerator()))
        return self._dense[0]

    def accelerated(self, accelerator: Accelerator) -> TorchBackbone:
        """The same model, sharing its weights, with another accelerator, whose networks are already on its device. What is recorded of it
        (CUDA graphs) goes with the copy: keep it to have that replayed."""
        out = self._with(accelerator)
        out._forms = deque([accelerator], maxlen=MOST_FORMS)
        if self._graphs is not None:
            out._graphs = Graphs(self._device)
        return out

    def _with(self, accelerator: Accelerator) -> TorchBackbone:
        """The same model; recordings are shared, which each name the accelerator they were made with."""
        out = copy.copy(self)
        out.accelerator = accelerator
        out.description = {**self.description, "accelerator": accelerator.name}
        out.description["encoder_cache"] = out._why_no_cache() or "by frame"
        return out

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        return self.model.image_size(width, height, side)

    def predict(
        self,
        images: np.ndarray,
        stop: Callable[[], bool] | None = None,
        known: Known | None = None,
        step: Step | None = None,
    ) -> Prediction:
        def check() -> None:
            if stop is not None and stop():
                raise Cancelled("stopped between two blocks")

        with _device_errors():
            known_here = None if known is None else self.upload_known(known)
            if step is None:
                out, trunk = self.run(self.upload(images), check, known_here)
                return self.download(images, out, trunk)
            begun = self._clock.read()
            encoded, missing = self._encode_step(images, step, check)
            done = self._clock.read()
            out, trunk = self._finish(encoded, check, known_here, step.dense)
            prediction = self.download(images, out, trunk, step.dense)
            if step.cache is None:
                return prediction
            step.cache.took(self._clock.between(begun, done), len(missing))  # the device is done: there are results
            reused = len(images) - len(missing)
            return dataclasses.replace(prediction, reused=reused, saved_ms=reused * step.cache.encoder_ms)

    def free_memory(self) -> None:
        if self._graphs is not None:
            for one in (self, *self._dense):
                one._graphs.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            if "cupy" in sys.modules:
                sys.modules["cupy"].get_default_memory_pool().free_all_blocks()

    def memory(self) -> DeviceMemory | None:
        if self._device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self._device)
        return DeviceMemory((total - free) / 2**20, free / 2**20)

    def upload(self, images: np.ndarray) -> Tensor:
        """(S, H, W, 3) uint8 -> (1, S, 3, H, W) float32 in [0, 1] on the device."""
        host = torch.from_numpy(np.ascontiguousarray(images))
        if (
            self._device.type == "cuda"
        ):  # from memory that the device reads itself, several times as fast, while the host goes on
            host = host.pin_memory()
        x = host.to(self._device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        return x[None]

    def upload_known(self, known: Known) -> KnownTensors:
        """What is known of one scene, in fp32 on the device."""
        arrays = (known.intrinsics, known.depth, known.world_from_camera)
        metric = torch.full((1, len(known.depth)), known.metric, device=self._device)
        return KnownTensors(*(torch.from_numpy(a)[None].float().to(self._device) for a in arrays), metric)

    def run(
        self, x: Tensor, check: Check = _never, known: KnownTensors | None = None
    ) -> tuple[dict[str, Tensor], Trunk]:
        """The model alone, on the device: outputs of the camera and depth heads, and what they read. `check` is called before each
        block, between trunk and heads, and within the heads. With CUDA graphs it is called between encoder and trunk only, and the
        next pass writes over what this one returned."""
        return self._finish(self._encode(x, check), check, known)

    @property
    def replays(self) -> bool:
        """Whether passes are replayed from recordings (CUDA graphs), from the third one of the same form on."""
        return self._graphs is not None

    def run_trunk(self, x: Tensor) -> Trunk:
        """`run` without its heads, to be timed: by itself it is a recording of its own where passes are replayed."""
        encoded = self._encode(x, _never)
        with torch.inference_mode():
            if self._graphs is None:
                return self._attend_now(encoded, None)
            trunk: Trunk = self._graphs(("trunk", self.accelerator), self._attend_now, encoded, None)
        return trunk

    def _encode(self, x: Tensor, check: Check) -> Encoded:
        if self._graphs is None:
            return self._encode_now(x, check)
        check()
        with torch.inference_mode():  # copied: a cache may keep it
            encoded: Encoded = cloned(self._graphs(("encoder", self.accelerator), self._encode_now, x))
        return encoded

    def _encode_now(self, x: Tensor, check: Check = _never) -> Encoded:
        with torch.inference_mode(), self._kernel_context(), self._low_precision():
            return self.model.encode(x, self.accelerator, check)

    def _encode_step(self, images: np.ndarray, step: Step, check: Check) -> tuple[Encoded, list[int]]:
        """What the encoder gives for the window, and which of its frames had to go through it."""
        cache = None if self._why_no_cache() else step.cache
        if cache is None:
            return self._encode(self.upload(images), check), list(range(len(images)))
        missing = cache.missing(step.names, self.accelerator, (images.shape[1], images.shape[2]))
        new = self._encode(self.upload(images[missing]), check) if missing else None
        with torch.inference_mode():
            return cache.window(step.names, new, missing, self.accelerator), missing

    def _finish(
        self, encoded: Encoded, check: Check, known: KnownTensors | None = None, dense: Sequence[int] | None = None
    ) -> tuple[dict[str, Tensor], Trunk]:
        """Trunk and heads."""
        if self._graphs is None:
            return self._finish_now(encoded, known, dense, check)
        check()
        name = "trunk and heads", self.accelerator
        with torch.inference_mode():
            out: tuple[dict[str, Tensor], Trunk] = self._graphs(name, self._finish_now, encoded, known, dense)
        return out

    def _finish_now(
        self, encoded: Encoded, known: KnownTensors | None, dense: Sequence[int] | None, check: Check = _never
    ) -> tuple[dict[str, Tensor], Trunk]:
        images = encoded.tokens.images
        assert images is not None
        trunk = self._attend_now(encoded, known, check)
        check()
        with torch.inference_mode(), self._kernel_context():
            size = images.shape[-2], images.shape[-1]
            return self.model.decode(trunk, size, ("camera", "depth"), check, dense), trunk

    def _attend_now(self, encoded: Encoded, known: KnownTensors | None, check: Check = _never) -> Trunk:
        with torch.inference_mode(), self._kernel_context():
            with self._low_precision():
                trunk = self.model.attend(encoded, self.accelerator, check, known)
            shared = None if trunk.shared is None else trunk.shared.float()
            fine = tuple(t.float() for t in trunk.fine)
            return trunk._replace(levels={i: t.float() for i, t in trunk.levels.items()}, shared=shared, fine=fine)

    def _low_precision(self) -> Any:
        low = self._dtype != torch.float32
        return torch.autocast(self._device.type, self._dtype) if low else nullcontext()

    def _why_no_cache(self) -> str:
        why = self.accelerator.window_bound(len(self.model.encoder_blocks()))
        return f"off: {why}" if why else ""

    def download(
        self, images: np.ndarray, out: dict[str, Tensor], trunk: Trunk, dense: tuple[int, ...] | None = None
    ) -> Prediction:
        """What `run` gave for the (S, H, W, 3) `images`, as arrays; dense: the frames whose depth was asked for, None for all."""
        with torch.inference_mode():
            merged = self.accelerator.merged(trunk.plan, len(images), trunk.grid)
            wanted = {name: out[name][0] for name in ("depth", "depth_conf", "world_from_camera", "intrinsics")}
            wanted |= {name: out[name][0] for name in ("meaningful",) if name in out}
            if merged is not None:
                wanted["merged"] = _to_pixels(merged, self.patch_size)
            arrays = to_host(wanted)
        intrinsics = arrays["intrinsics"].astype(np.float64)
        if dense is not None and len(intrinsics) != len(images):  # fitted to pixels, so of these frames only
            of_all = np.full((len(images), 3, 3), np.nan)
            of_all[list(dense)] = intrinsics
            intrinsics = of_all
        return Prediction(
            images=images,
            depth=arrays["depth"],
            confidence=arrays["depth_conf"],
            window_from_camera=arrays["world_from_camera"].astype(np.float64),
            intrinsics=intrinsics,
            merged=arrays.get("merged"),
            kept_ratio=self.accelerator.kept_ratio(trunk.plan),
            read_ratio=trunk.read_ratio,
            meaningful=arrays.get("meaningful"),
            dense=dense,
        )


class DeviceClock:
    """Notes the time on a device without waiting for it: on CUDA by events in the current stream, elsewhere by the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def read(self) -> Any:
        """A note of now."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Milliseconds from one note to another; on CUDA once the device has come to the second one, for which this waits."""
        if self._device.type != "cuda":
            return 1e3 * float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end))

    def synchronize(self) -> None:
        """Wait until all that was asked of the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


# What the allocators and drivers say; torch has classes of its own for both only since 2.5 and 2.8, and none for the CPU.
_FULL = ("out of memory", "can't allocate memory", "cannot allocate memory", "status_alloc_failed")
_LOST = ("illegal memory access", "device-side assert", "unspecified launch failure", "illegal instruction", "misaligned address",
         "device is lost", "device has been lost", "hardware stack error", "uncorrectable ecc")  # fmt: skip


@contextmanager
def _device_errors() -> Iterator[None]:
    """Turns what a device raises into OutOfMemory or DeviceLost, in one line. Whoever catches it must let go of it before trying again:
    the traceback holds the tensors."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kind = device_error(error)
        if kind is None:
            raise
        raise kind((str(error).strip().splitlines() or [type(error).__name__])[0]) from None


def device_error(error: Exception) -> type[ComeRosError] | None:
    """What an exception of torch, CuPy or Python says of the device: OutOfMemory, DeviceLost, or None if it is something else."""
    said = str(error).lower()
    if isinstance(error, MemoryError) or any(words in said for words in _FULL):
        return OutOfMemory
    return DeviceLost if any(words in said for words in _LOST) else None


def _to_pixels(mask: Tensor, patch: int) -> Tensor:  # (S, h, w) -> (S, H, W)
    return mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Arrays of their own memory. From a GPU all copies run behind one another, and the host waits for them once."""
    out = {}
    for name, tensor in tensors.items():
        if tensor.device.type == "cuda":
            out[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        else:
            out[name] = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    for device in {t.device for t in tensors.values() if t.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
    return {name: tensor.numpy() for name, tensor in out.items()}


def lower_weights(model: GeometryModel, dtype: torch.dtype) -> None:
    """Weights of the linear maps of encoder and trunk in `dtype`: what autocast would make of them in every pass, made once."""
    for block in (*model.encoder_blocks(), *(block for _, block in model.trunk_blocks())):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)


def choose_device(wish: str) -> torch.device:
    """`auto` is CUDA if a tensor can really be made there, else the CPU with one warning. Raises ConfigError otherwise."""
    if wish not in ("auto", "cpu") and not wish.startswith("cuda"):
        raise ConfigError(f"device is {wish!r}, but must be auto, cpu, cuda or cuda:N")
    if wish == "cpu":
        return torch.device("cpu")
    name = "cuda" if wish == "auto" else wish
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # no driver, no device, or torch built without CUDA
        reason = str(error).splitlines()[0]
        if wish == "auto":
            log.warning("no usable CUDA (%s): running on the CPU; set device:=cpu to silence this", reason)
            return torch.device("cpu")
        raise ConfigError(
            f"device {wish!r} cannot be used ({reason}): set device:=auto or cpu, or install a CUDA build of torch"
        ) from error
    return torch.device(name)


def choose_precision(wish: str, device: torch.device) -> torch.dtype:
    """fp32 on the CPU; on a GPU bf16, or fp16 below compute capability 8.0."""
    if device.type == "cpu":
        if wish in ("bf16", "fp16"):
            raise ConfigError(f"precision is {wish!r}, but the CPU runs fp32 only: set precision:=auto or fp32")
        return torch.float32
    if wish == "auto":
        wish = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[wish]


def choose_attention_kernel(
    device: torch.device, dtype: torch.dtype, wish: str = "auto"
) -> tuple[str, Callable[[], Any]]:
    """Name of the attention kernel, and a context in which scaled_dot_product_attention uses it and nothing slower by surprise.

    wish: flash, cudnn, efficient, or auto: the fastest of them on this device, timed. Raises ConfigError if it cannot be had.
    """
    if device.type == "cpu":
        return "torch SDPA, cpu flash", nullcontext
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    q = torch.randn(1, 16, 4096, 64, device=device, dtype=dtype)
    clock, ms, why = DeviceClock(device), {}, "it was not tried"
    for name in backends if wish == "auto" else [wish]:
        try:
            with sdpa_kernel(backends[name]):
                for _ in range(3):  # the first one makes plans
                    F.scaled_dot_product_attention(q, q, q)
                begun = clock.read()
                for _ in range(5):
                    F.scaled_dot_product_attention(q, q, q)
                ms[name] = clock.between(begun, clock.read())
        except RuntimeError as error:  # this one does not run on the device at this precision
            why = str(error).splitlines()[0]
    if not ms and wish != "auto":
        raise ConfigError(
            f"attention is {wish}, but it does not run on {torch.cuda.get_device_name(device)} in {dtype} ({why}): set attention to auto"
        )
    if not ms:
        return "torch SDPA, math", lambda: sdpa_kernel(SDPBackend.MATH)
    best = min(ms, key=lambda name: ms[name])
    # what that one cannot do (fp32, masks) goes on to the next
    order = list(dict.fromkeys([backends[best], SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]))
    if "set_priority" in inspect.signature(sdpa_kernel).parameters:  # torch 2.6
        return f"torch SDPA, {best}", lambda: sdpa_kernel(order, set_priority=True)
    return f"torch SDPA, {best}", lambda: sdpa_kernel([backends[best], SDPBackend.MATH])
