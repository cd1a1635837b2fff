"""Merge, restore and weighted attention, each one checked call."""

from .attention import KeyWeights, weighted_attention
from .reference import group_members, merge_layout, merge_tokens, restore_tokens

__all__ = ["KeyWeights", "group_members", "merge_layout", "merge_tokens", "restore_tokens", "weighted_attention"]
