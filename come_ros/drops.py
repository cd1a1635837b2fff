"""Why a frame was dropped: one list of reasons for the node's diagnostics, the tools and their result files."""

from __future__ import annotations

from collections.abc import Mapping

DROP_REASONS: Mapping[str, str] = {
    "not_keyframe": "too little image motion since the last keyframe",
    "busy": "newer frames came while the worker was busy",
    "old": "the result came later than max_data_age",
    "decode": "the image could not be decoded, or its size cannot be used",
    "sync": "no images of all cameras lay within sync.slop of it, or one of them could not be decoded",
    "time": "its stamp was not newer than the frame before, or time jumped back",
    "rejected": "its window was refused by the alignment gate, did not fit into memory, or failed",
    "paused": "the node was paused, deactivated, or reset, before it was used",
}
"""name, as in diagnostics (`dropped_NAME`) and metrics.json -> meaning"""

IN_PIPELINE = ("not_keyframe", "time", "decode", "rejected")
"""those that the pipeline counts itself; the others are the node's"""

UNUSABLE_IMAGES = ("decode", "time")
"""those that are faults of the images themselves"""


def in_words(counts: Mapping[str, int]) -> str:
    """What was dropped and why, "" if nothing was. counts: by the names of DROP_REASONS, others as they are."""
    return "; ".join(f"{n} ({DROP_REASONS.get(reason, reason)})" for reason, n in counts.items() if n)
