"""Causal models: frames come one at a time and read the keys and values that were kept of earlier ones.

What a frame sees, in each global block, is all tokens of the scale frames (those the stream began with), all tokens of the newest
keyframes (the local window), and the special tokens of every keyframe between (the trajectory). Keys are kept after their norm and
rotation. A `StreamState` is a value: a pass reads one and gives the next, so a pass that is given up leaves all as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config_groups import StreamParameters
from ..errors import OutOfMemory
from ..kernels import KeyWeights
from .aging import Kept, Turn, aged, measures_attention
from .stream import FrameName, StreamUsage

MEASURED = 8  # every so many patches' attention is looked at where keys are evicted by it
MOST_SEEN = 256  # frames whose poses are remembered; no window is longer than 64

CameraKeys = dict[tuple[int, int], tuple[Tensor, Tensor]]
"""(iteration, block) of the camera head -> keys and values (1, heads, frames, d)"""


@dataclass(frozen=True, eq=False)
class StreamState:
    """What a stream keeps after some frames. count: those cached, which is the temporal index of the next one. since: all frames after
    the scale frames. scale: of the scale frames. local: of the newest keyframes, oldest first. trajectory: special tokens of those
    between. camera: of the camera head."""

    count: int = 0
    since: int = 0
    scale: Kept | None = None
    local: tuple[Kept, ...] = ()
    trajectory: Kept | None = None
    camera: CameraKeys = field(default_factory=dict)

    @property
    def started(self) -> bool:
        return self.scale is not None

    @property
    def per_frame(self) -> tuple[float, float]:
        """Bytes of a whole keyframe in the local window, and of what stays of it when it has left it."""
        if self.scale is None:
            return 0.0, 0.0
        frames = len(self.scale.frames)
        # a keyframe may get weights and measured attention of its tokens when it ages, 4 bytes each
        whole = (self.scale.bytes + 8 * len(self.scale)) / frames
        camera = sum(t.numel() * t.element_size() for pair in self.camera.values() for t in pair) / max(1, self.count)
        return whole, whole * self.scale.special / (len(self.scale) / frames) + camera

    def bound(self, parameters: StreamParameters) -> float:
        """Bytes that the stream never takes more of: `stream.memory`, or what its other parameters come to."""
        whole, rest = self.per_frame
        frames = 0 if self.scale is None else len(self.scale.frames)
        most = (frames + parameters.window) * whole + max(parameters.most, frames) * rest
        return min(most, parameters.memory * 2**20) if parameters.memory else most

    @property
    def bytes(self) -> int:
        """What it takes on the device."""
        kept = [k for k in (self.scale, self.trajectory, *self.local) if k is not None]
        camera = sum(t.numel() * t.element_size() for pair in self.camera.values() for t in pair)
        return sum(k.bytes for k in kept) + camera


class CausalPass:
    """One pass over `frames` frames from `state`; after it, `after()` is the state that follows. See tokens.StreamPass."""

    mask = camera_mask = None

    def __init__(self, state: StreamState, frames: int, parameters: StreamParameters) -> None:
        if state.started and frames != 1:
            raise ValueError(f"{frames} frames are given to a stream that has begun: run them one by one")
        self._state, self._frames, self._parameters = state, frames, parameters
        self.first, self.starts = state.count, not state.started
        self.scale_frames = frames if self.starts else 0
        self.keyframe = self.starts or state.since % parameters.keyframe_interval == 0
        trajectory, local = state.trajectory, state.local
        # a keyframe is one of the local window itself, so that the oldest makes room before anything is read
        room = _room(state, parameters) if self.keyframe else len(local)
        while len(local) > min(parameters.window - self.keyframe, room):
            gone, local = local[0].specials(), local[1:]
            trajectory = gone if trajectory is None else trajectory.joined(gone)
        self._trajectory, self._local = trajectory, local
        self.past = tuple(k for k in (state.scale, trajectory, *local) if k is not None)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._camera: CameraKeys = {}
        self._weight: Tensor | None = None
        self._past_weight: Tensor | None = None
        self._positions: Tensor | None = None
        self._special = 0
        self._turn: Turn | None = None
        self._mass: Tensor | None = None

    def placed(self, positions: Tensor, special: int, turn: Turn) -> None:
        self._positions, self._special, self._turn = positions, special, turn

    def recall(
        self, block: int, q: Tensor, k: Tensor, v: Tensor, weights: KeyWeights | None
    ) -> tuple[Tensor, Tensor, KeyWeights | None]:
        if self.keyframe:  # copied: they are parts of larger tensors
            self._keys[block], self._values[block] = k.contiguous(), v.contiguous()
            self._weight = None if weights is None else weights.weight.flatten()
        if not self.past:
            return k, v, weights
        k, v, weights = self._behind(block, k, v, weights)
        if measures_attention(self._parameters):
            self._measure(q, k, weights)
        return k, v, weights

    def _behind(
        self, block: int, k: Tensor, v: Tensor, weights: KeyWeights | None
    ) -> tuple[Tensor, Tensor, KeyWeights | None]:
        """Keys, values and weights of these frames, behind those that were kept."""
        k = torch.cat([*(p.keys[block] for p in self.past), k], dim=2)
        v = torch.cat([*(p.values[block] for p in self.past), v], dim=2)
        if weights is None and all(p.weight is None for p in self.past):
            return k, v, None
        if self._past_weight is None:
            self._past_weight = torch.cat([p.weights() for p in self.past])
        own = (
            k.new_ones(k.shape[2] - len(self._past_weight), dtype=torch.float32)
            if weights is None
            else weights.weight.flatten()
        )
        return k, v, KeyWeights(torch.cat((self._past_weight, own))[None], varies=True)

    def _measure(self, q: Tensor, k: Tensor, weights: KeyWeights | None) -> None:
        """Adds up the attention that each key receives, from the special tokens and some of the patches."""
        some = torch.cat((q[:, :, : self._special], q[:, :, self._special :: MEASURED]), dim=2)
        logits = (some @ k.transpose(-1, -2)).float() * k.shape[3] ** -0.5
        if weights is not None:
            logits = logits + weights.log(torch.float32)
        mass = logits.softmax(dim=-1).sum((0, 1, 2))
        self._mass = mass if self._mass is None else self._mass + mass

    def _measured(self) -> tuple[tuple[Kept, ...], Tensor | None]:
        """The local window with the attention it received added, and that of the new frame's own tokens."""
        if self._mass is None:
            return self._local, None
        parts = self._mass.split([*(len(p) for p in self.past), len(self._mass) - sum(len(p) for p in self.past)])
        local = []
        for kept, mass in zip(self._local, parts[len(self.past) - len(self._local) : -1], strict=True):
            local.append(dataclasses.replace(kept, mass=mass if kept.mass is None else kept.mass + mass))
        return tuple(local), parts[-1].clone()

    def recall_camera(self, place: tuple[int, int], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if place in self._state.camera:
            old_k, old_v = self._state.camera[place]
            k, v = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
        if self.keyframe:
            self._camera[place] = k.contiguous(), v.contiguous()
        return k, v

    def after(self) -> StreamState:
        """The state that this pass leaves."""
        since = self._state.since + (0 if self.starts else 1)
        local, mass = self._measured()
        if not self.keyframe:
            return dataclasses.replace(self._state, since=since, local=local, trajectory=self._trajectory)
        assert self._positions is not None and self._turn is not None
        blocks = sorted(self._keys)
        own = Kept(
            tuple(range(self.first, self.first + self._frames)),
            tuple(self._keys[i] for i in blocks),
            tuple(self._values[i] for i in blocks),
            self._special,
            self._weight,
            self._positions,
            self._turn,
            mass,
        )
        scale, local = (own, ()) if self.starts else (self._state.scale, aged((*local, own), self._parameters))
        return StreamState(self.first + self._frames, since, scale, local, self._trajectory, self._camera)


def _room(state: StreamState, parameters: StreamParameters) -> int:
    """How many keyframes of the local window may stay next to a new one, by `stream.memory`. Raises OutOfMemory if even none is too
    many."""
    if not parameters.memory or not state.started:
        return len(state.local)
    whole, rest = state.per_frame
    left = parameters.memory * 2**20 - state.bytes - whole - rest
    room = len(state.local)
    while left < 0 and room > 0:  # the oldest go first; their special tokens stay
        gone = state.local[len(state.local) - room]
        left += gone.bytes * (1 - gone.special / len(gone))
        room -= 1
    if left < 0:
        raise OutOfMemory(
            f"the keys of {len(state.scale.frames) if state.scale else 0} scale frames, the trajectory and one keyframe need "
            f"{(parameters.memory * 2**20 - left) / 2**20:.0f} MiB, but stream.memory is {parameters.memory}: raise it, or lower "
            f"window.size, stream.most or input.max_side"
        )
    return room


def _fits(state: StreamState, parameters: StreamParameters) -> bool:
    """Whether there is memory for one more keyframe."""
    try:
        _room(state, parameters)
    except OutOfMemory:
        return False
    return True


class FrameRecord(NamedTuple):
    """What is known of a frame that went through the model: world_from_camera (4, 4) in the stream's own frame, intrinsics (3, 3)."""

    pose: NDArray[np.float64]
    intrinsics: NDArray[np.float64]


class StreamCache:
    """What a causal model keeps from window to window: the state of its stream, and the poses of the frames it has seen.

    reused: frames that were seen before. encoded: those that were run. restarts: streams that were begun.
    """

    def __init__(self) -> None:
        self.reused = self.encoded = self.restarts = 0
        self.state = StreamState()
        self.parameters = StreamParameters()
        self._size = (0, 0)
        self._seen: dict[FrameName, FrameRecord] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def clear(self) -> None:
        """The next window begins a stream of its own; the counts go on."""
        self.state = StreamState()
        self._seen = {}

    @property
    def mib(self) -> float:
        """What it takes on the device."""
        return self.state.bytes / 2**20

    @property
    def most_mib(self) -> float:
        """What it takes at most, with the present parameters; 0 before the first frame."""
        return self.state.bound(self.parameters) / 2**20

    @property
    def usage(self) -> StreamUsage:
        state, p = self.state, self.parameters
        return StreamUsage(state.count, p.most, len(state.local), p.window, self.mib, self.most_mib)

    def passes(
        self, names: Sequence[FrameName], size: tuple[int, int], parameters: StreamParameters
    ) -> list[list[int]]:
        """The frames of a window that are run together, as rows of it: one by one, or all of them where a stream begins. That is where
        none of them was seen, images are of another size, the stream is as long as it may be or as memory allows, or an unknown frame
        is older than a known one."""
        known = [name in self._seen for name in names]
        missing = [i for i, seen in enumerate(known) if not seen]
        keyframes = sum((self.state.since + i) % parameters.keyframe_interval == 0 for i in range(len(missing)))
        goes_on = (
            any(known)
            and size == self._size
            and not any(known[missing[0] :] if missing else ())
            and self.state.count + keyframes <= parameters.most
            and _fits(self.state, parameters)
        )
        self.parameters = parameters
        if goes_on:
            self.reused += len(names) - len(missing)
            return [[i] for i in missing]
        self.clear()
        self._size = size
        self.restarts += 1
        return [list(range(len(names)))]

    def keep(self, passed: CausalPass, names: Sequence[FrameName], records: Sequence[FrameRecord]) -> None:
        """These frames were run; only as many are remembered as windows can share."""
        self.state = passed.after()
        if passed.starts:  # said now, not at the next frame
            _room(self.state, self.parameters)
        self._seen |= dict(zip(names, records, strict=True))
        self.encoded += len(names)
        for name in list(self._seen)[:-MOST_SEEN]:
            del self._seen[name]

    def record(self, name: FrameName) -> FrameRecord:
        return self._seen[name]

    @contextmanager
    def undone_if_it_fails(self) -> Iterator[None]:
        """Whatever is raised inside leaves the cache as it was before."""
        before = self.state, dict(self._seen), self._size
        try:
            yield
        except BaseException:
            self.state, self._seen, self._size = before
            raise
