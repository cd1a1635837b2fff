"""LingBot-Map ("Geometric Context Transformer", arXiv 2604.14141, 2026): a VGGT whose frames come one at a time.

Written from a description of the published checkpoints' names, shapes and rules. `stream` is the causal model: a scale token next to
the camera token, a rotation of keys by time as well as by place, and the keys of earlier frames kept (causal.py). `stage1` is what it
was trained from: a VGGT in all but its poses, which are camera-to-world. A file does not say which of the two conventions it holds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config_groups import StreamParameters
from ..errors import CheckpointError
from ..tokens import StreamPass, Tokens
from .layers import Rotary, rotary, video_rotary
from .model import RopeTables
from .vggt import VARIANTS as VGGT_VARIANTS
from .vggt import VGGT, VGGTSizes


@dataclass(frozen=True)
class LingBotSizes(VGGTSizes):
    """causal: frames see earlier ones only; else those of a window see each other. scale_token: one more special token of each frame.
    points: a head for point maps. rope_split: channels of a head that turn with time, y and x in global blocks; () for VGGT's rotation
    by y and x. camera_to_world: what its poses are, else camera-from-world as VGGT's."""

    causal: bool = True
    scale_token: bool = True
    points: bool = False
    rope_split: tuple[int, ...] = (20, 22, 22)
    camera_to_world: bool = True


AS_VGGT: dict[str, Any] = {"scale_token": False, "rope_split": (), "camera_to_world": False}
"""what makes the stream of a VGGT's weights"""

VARIANTS = {
    "stream": LingBotSizes(),
    "stage1": LingBotSizes(causal=False, scale_token=False, points=True, rope_split=()),
    **{name: LingBotSizes(**dataclasses.asdict(VGGT_VARIANTS[name]), **AS_VGGT) for name in ("tiny", "tiny2")},
}


def stream_mib(
    sizes: LingBotSizes, patches: int, scale_frames: int, parameters: StreamParameters, element: int = 4
) -> float:
    """What a stream of frames of so many patches keeps at most, MiB, if nothing is merged on entry; element: bytes of a number in the
    trunk. See StreamState.bound."""
    special = 1 + sizes.registers + sizes.scale_token
    token = 2 * sizes.depth * sizes.dim * element + 16 + 8  # with its position and weight
    camera = sizes.camera_iterations * sizes.camera_depth * 2 * 2 * sizes.dim * 4  # heads are fp32
    whole, rest = (patches + special) * token, special * token + camera
    most = (scale_frames + parameters.window) * whole + max(parameters.most, scale_frames) * rest
    return min(most / 2**20, parameters.memory or float("inf"))


class LingBot(VGGT):
    """Images to cameras and depth, with poses that are camera-to-world. Parameter names are the published checkpoints'."""

    name = "lingbot"
    sizes: LingBotSizes
    sizes_type = LingBotSizes
    unsaid = {}  # noqa: RUF012
    landmark, weights_from = "aggregator.scale_token", "robbyant/lingbot-map on Hugging Face"
    same_keys = frozenset({"vggt"})

    def __init__(self, sizes: LingBotSizes) -> None:
        super().__init__(sizes)
        head = sizes.dim // sizes.heads
        if sizes.rope_split and (len(sizes.rope_split) != 3 or sum(sizes.rope_split) != head):
            raise ValueError(
                f"rope_split is {sizes.rope_split}, but must be three even numbers, together the {head} channels of a head"
            )
        self.causal, self.camera_to_world = sizes.causal, sizes.camera_to_world
        if sizes.scale_token:
            self.aggregator.scale_token = nn.Parameter(torch.zeros(1, 2, 1, sizes.dim))
        if not sizes.points:
            del self.point_head

    @classmethod
    def published_sizes(cls, state: Mapping[str, Tensor]) -> LingBotSizes:
        if any(key.startswith("track_head.") for key in state):
            raise CheckpointError(
                "the weights file holds a track head, as those of VGGT do and those of LingBot-Map do not: the poses of the two mean "
                "different things, so set backbone to vggt"
            )
        return VARIANTS["stream" if cls.landmark in state else "stage1"]

    @classmethod
    def own_names(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A file with a point head is of the first stage, which runs without the scale token."""
        first_stage = any(key.startswith("point_head.") for key in state)
        return {k: v for k, v in state.items() if not (first_stage and k == cls.landmark)}

    @classmethod
    def adopted(cls, sizes: VGGTSizes) -> LingBotSizes:
        """A VGGT frame by frame, untrained for it: its tokens, rotation and poses, with our rules of what is kept."""
        own = {f.name: getattr(sizes, f.name) for f in dataclasses.fields(sizes)}
        return LingBotSizes(**own, points=True, **AS_VGGT)

    @classmethod
    def doubt(cls, state: Mapping[str, Tensor]) -> str:
        return ""

    def special_tokens(self, frames: int, stream: StreamPass | None) -> Tensor:
        a, starts = self.aggregator, stream is None or stream.starts
        if starts:
            front = super().special_tokens(frames, stream)
        else:
            front = torch.cat((a.camera_token, a.register_token), dim=2)[:, 1:].expand(-1, frames, -1, -1)
        if not self.sizes.scale_token:
            return front
        first = frames if stream is None else stream.scale_frames
        slots = [a.scale_token[:, i : i + 1].expand(-1, n, -1, -1) for i, n in enumerate((first, frames - first))]
        return torch.cat((front, torch.cat(slots, dim=1)), dim=2)

    def rope(self) -> RopeTables:
        return StreamRope(self.sizes.rope_split) if self.sizes.causal else RopeTables()


class StreamRope(RopeTables):
    """Rotation tables of a causal model. In global blocks special token i of frame f sits at (t, y, x) = (f, i, i), and patches follow
    behind the last one; without a `split`, where VGGT has them."""

    def __init__(self, split: tuple[int, ...]) -> None:
        super().__init__()
        self._split = split
        self._across: dict[tuple[int, bool], tuple[Tensor, Rotary]] = {}

    def __call__(self, tokens: Tokens, part: str, across: bool, head_dim: int) -> Rotary:
        if part != "global":
            return super().__call__(tokens, part, across, head_dim)
        key = id(tokens.positions), across
        if key not in self._across:
            if len(self._across) == self.KEPT:
                del self._across[next(iter(self._across))]
            b, s = tokens.x.shape[:2]
            places, first = tokens.positions.expand(b, s, -1, -1), 0  # (B, S, T, 2)
            if tokens.stream is not None:
                first = tokens.stream.first
                if across:
                    turn = functools.partial(turns, split=self._split, head_dim=head_dim)
                    tokens.stream.placed(places[0].flatten(0, 1), tokens.special, turn)
            frames = [turns(places[:, i], tokens.special, first + i, self._split, head_dim) for i in range(s)]
            cos, sin = (torch.stack(part, dim=1) for part in zip(*frames, strict=True))  # (B, S, 1, T, d)
            if across:
                made = type(frames[0])(cos.transpose(1, 2).flatten(2, 3), sin.transpose(1, 2).flatten(2, 3))
            else:
                made = type(frames[0])(cos.flatten(0, 1), sin.flatten(0, 1))
            self._across[key] = tokens.positions, made
        return self._across[key][1]


def turns(places: Tensor, special: int, frame: int, split: tuple[int, ...], head_dim: int) -> Rotary:
    """How the tokens of frame `frame` are rotated in global blocks; places: (..., T, 2), see StreamRope."""
    if not split:
        return rotary(places, head_dim)
    index = torch.arange(special, device=places.device, dtype=places.dtype)[:, None].expand(*places.shape[:-2], -1, 2)
    p = torch.cat((index, places[..., special:, :] + (special - 1)), dim=-2)
    t, y, x = split
    return video_rotary(torch.cat((torch.full_like(p[..., :1], frame), p), dim=-1), (t, y, x))
