"""Merging, restoring and weighted attention: one function each, with checked arguments."""

from .attention import KeyWeights, weighted_attention
from .compiled import choose
from .merging import merge_layout, merge_positions, merge_tokens, restore_tokens
from .reference import group_members

__all__ = [
    "KeyWeights",
    "choose",
    "group_members",
    "merge_layout",
    "merge_positions",
    "merge_tokens",
    "restore_tokens",
    "weighted_attention",
]
