"""Attention in which one key may represent several: exact, computed in the fastest way for the device.

A key of weight w counts like w equal keys: softmax(q k^T / sqrt(d) + log w) v (Co-Me, eq. for the bias; ToMe's proportional
attention). All implementations below agree; `masked` is the reference.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger("come_ros")


class KeyWeights(NamedTuple):
    """Weights of the keys.

    weight: (B or 1, N) float32, or (B or 1, S, N / S) by frame; 0 for padding. tail, size: if not None, every frame ends with
    `tail` keys of weight `size` and all keys before them have weight 1, so two plain attention calls suffice. shared: number of
    keys of weight 1 that follow those of `weight`. varies: the number of keys differs from block to block, so compiling a kernel
    for it does not pay off.
    """

    weight: Tensor
    frames: int = 1
    tail: int | None = None
    size: float = 1.0
    shared: int = 0
    varies: bool = False

    def log(self, dtype: torch.dtype) -> Tensor:
        """(B or 1, 1, 1, N + shared) to be added to the logits; -inf for padding."""
        weight = F.pad(self.weight.flatten(1), (0, self.shared), value=1.0)
        weight = weight.to(torch.promote_types(dtype, torch.float32))
        return weight.log().to(dtype)[:, None, None]


def weighted_attention(q: Tensor, k: Tensor, v: Tensor, keys: KeyWeights, way: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(d) + log w) v for (B, heads, N, d). way: auto, masked, two_calls, flex or channel.

    auto chooses `masked` on a CPU; on CUDA `two_calls` where it applies, else `flex` (not yet measured on a GPU), or `channel` where
    the number of keys varies. Raises ValueError if `way` does not apply.
    """
    if way == "auto":
        way = _choice(q.device.type, keys.tail is not None, keys.varies)
    if way == "masked":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys.log(q.dtype))
    if way == "two_calls":
        return _two_calls(q, k, v, keys)
    if way == "flex":
        return _flex(q, k, v, keys)
    if way == "channel":
        return _channel(q, k, v, keys)
    raise ValueError(f"way is {way!r}, but must be auto, masked, two_calls, flex or channel")


@functools.cache
def _choice(device: str, has_tail: bool, varies: bool) -> str:
    way = "masked" if device == "cpu" else "two_calls" if has_tail else "channel" if varies else "flex"
    if not torch.compiler.is_compiling():  # a log would break the graph in two
        log.info("weighted attention on %s: %s", device, way)
    return way


def _two_calls(q: Tensor, k: Tensor, v: Tensor, keys: KeyWeights) -> Tensor:
    """Attends to kept and merged keys separately and joins the results by their log-sum-exps: o = (e^lU oU + n e^lM oM) / (e^lU + n
    e^lM)."""
    if keys.tail is None:
        raise ValueError("two_calls needs all merged keys to have one weight and to lie at the end of each frame")
    if keys.tail == 0:
        return attention_with_lse(q, k, v)[0]
    tail, n = keys.tail, k.shape[2] - keys.shared

    def split(t: Tensor) -> tuple[Tensor, Tensor]:  # (B, heads, N, d) -> kept, merged
        by_frame = t[:, :, :n].unflatten(2, (keys.frames, -1))
        kept = by_frame[:, :, :, :-tail].flatten(2, 3)
        return torch.cat((kept, t[:, :, n:]), dim=2) if keys.shared else kept, by_frame[:, :, :, -tail:].flatten(2, 3)

    (k, k_merged), (v, v_merged) = split(k), split(v)
    out, lse = attention_with_lse(q, k, v)
    merged, lse_merged = attention_with_lse(q, k_merged, v_merged)
    share = torch.sigmoid(lse_merged + math.log(keys.size) - lse)[..., None]  # of the merged keys
    return (out + (merged - out) * share).to(q.dtype)


def _channel(q: Tensor, k: Tensor, v: Tensor, keys: KeyWeights) -> Tensor:
    """Passes the bias as two extra channels of the keys (its value in their precision, and the rounding error) against ones in the
    queries, so any flash kernel works. Channels are padded to a multiple of 8, as those kernels require."""
    b, heads, _, d = q.shape
    fill = 2 + -(d + 2) % 8
    bias = (keys.log(torch.promote_types(k.dtype, torch.float32))[:, 0, 0].clamp_min(-1000) * d**0.5).expand(b, -1)
    high = bias.to(k.dtype)
    two = torch.stack((high, (bias - high.to(bias.dtype)).to(k.dtype)), dim=-1)[:, None].expand(-1, heads, -1, -1)
    q = torch.cat((q, q.new_ones(*q.shape[:3], 2), q.new_zeros(*q.shape[:3], fill - 2)), dim=-1)
    k = torch.cat((k, two, k.new_zeros(*k.shape[:3], fill - 2)), dim=-1)
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, fill)), scale=d**-0.5)[..., :d]


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of (B, heads, N, d) by a flash kernel, and the log-sum-exp of its logits (B, heads, N) fp32."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
    if q.dtype in (torch.bfloat16, torch.float16):
        if torch.backends.cuda.cudnn_sdp_enabled() and not torch.backends.cuda.flash_sdp_enabled():
            # the kernel that the backbone chose, see backbones.device.choose_attention_kernel
            out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
            return out, lse.reshape(q.shape[:3])
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    return out, lse[..., : q.shape[2]]  # this kernel pads its log-sum-exp


def _flex(q: Tensor, k: Tensor, v: Tensor, keys: KeyWeights) -> Tensor:
    """FlexAttention with a bias that depends only on the key's index; on a GPU it is compiled once per shape."""
    bias = keys.log(torch.float32)[:, 0, 0].expand(q.shape[0], -1)

    def add(score: Tensor, b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return score + bias[b, k_index]

    return _flex_kernel(q.device.type)(q, k, v, score_mod=add)


@functools.cache
def _flex_kernel(device: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # torch 2.13 compiles it incorrectly for the CPU at lengths such as 24 (error 0.7, measured); uncompiled it is correct
    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=False)
