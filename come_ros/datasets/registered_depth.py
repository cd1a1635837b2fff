"""Chooses the depth topic of a recording that belongs to its images.

Results are scored against that depth, so another sensor's depth, a confidence map or a thermal image must not be mistaken for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..camera.rectify import Lens
from ..camera.transports import namespace
from ..types import F32

SAME_SHAPE = 0.02  # tolerance of width / height
SAME_LENS = 0.05  # tolerance of the focal length / width; rectified and raw calibration differ a little
PLAUSIBLE_M = (0.05, 1000.0)  # plausible medians of a depth image
_DEPTH_WORDS = {"depth", "aligned", "registered", "range", "distance", "z16", "z"}
_REGISTERED_WORDS = {"aligned", "registered"}
# topics with the encodings of depth that hold no depth
_OTHER_WORDS = {
    "confidence", "conf", "thermal", "lwir", "mwir", "ir", "infra", "infrared", "disparity", "label", "labels", "mask", "semantic",
    "segmentation", "variance", "uncertainty", "sigma", "noise", "normal", "normals", "intensity", "amplitude", "cost", "error",
    "temperature", "heatmap", "gradient", "quality", "certainty",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class View:
    """Properties of a topic. frame: of its header. lens: of the camera_info next to it, None if there is none. count: messages.
    sample: (H, W) metres of one message, None of images."""

    topic: str
    frame: str
    width: int
    height: int
    count: int
    lens: Lens | None = None
    sample: F32 | None = None


@dataclass(frozen=True)
class Choice:
    """topic: the depth that belongs to the images, "" if there is none. remarks: why others were not chosen."""

    topic: str
    remarks: tuple[str, ...] = ()


def choose_depth(image: View, candidates: Sequence[View]) -> Choice:
    """Chooses the depth with the same field of view as the image, from the same place; none if two are equally good."""
    refused = [f"{view.topic} is not used as depth: {why}" for view in candidates if (why := why_not(image, view))]
    fitting = [view for view in candidates if not why_not(image, view)]
    if not fitting:
        return Choice("", tuple(refused))
    ranks = [_rank(image, view) for view in fitting]
    best = [view for view, rank in zip(fitting, ranks, strict=True) if rank == max(ranks)]
    if len(best) > 1:
        names = ", ".join(view.topic for view in best)
        return Choice("", (*refused, f"{names} could all be the depth of {image.topic}: choose one with --depth-topic"))
    return Choice(best[0].topic, tuple(refused))


def why_not(image: View, view: View) -> str:
    """Why the depth does not belong to the image, "" if it does."""
    words = _words(view.topic)
    other = sorted(words & _OTHER_WORDS)
    if other:
        return f"its name says {other[0]}"
    odd = _implausible(view.sample)
    if odd:
        return odd
    same_lens = _same_lens(image.lens, view.lens)
    registered = bool(words & _REGISTERED_WORDS)
    if view.frame and image.frame and view.frame != image.frame and not (registered and same_lens):
        return f"it is seen from {view.frame}, the images from {image.frame}"
    if abs((view.width * image.height) / (view.height * image.width) - 1) > SAME_SHAPE:
        return f"it has {view.width}x{view.height} px, the images {image.width}x{image.height}, which is another aspect ratio"
    if same_lens is False:
        return "its camera_info describes another lens than that of the images"
    if not (words & _DEPTH_WORDS or same_lens):
        return "neither its name nor a camera_info shows that it is depth"
    return ""


def mismatch(image: View, view: View) -> str:
    """Why a depth topic chosen by the user may be wrong, "" if nothing is suspicious."""
    why = why_not(image, view)
    return "" if why.startswith("nothing says") else why


def _rank(image: View, view: View) -> tuple[bool, bool, int]:
    """Better views have higher ranks."""
    near = zip(namespace(view.topic).split("/"), namespace(image.topic).split("/"), strict=False)
    shared = next((i for i, (a, b) in enumerate(near) if a != b), len(namespace(image.topic).split("/")))
    full = (view.width, view.height) == (image.width, image.height)
    return bool(_words(view.topic) & _REGISTERED_WORDS), full, shared


def _words(topic: str) -> set[str]:
    return set(re.findall(r"z16|[a-z]+", topic.lower()))


def _implausible(sample: F32 | None) -> str:
    """Why the values cannot be distances, "" if they can."""
    if sample is None:
        return ""
    known = sample[np.isfinite(sample)]
    if not known.size:
        return ""  # the first image of a sensor may be empty
    low, high = PLAUSIBLE_M
    median = float(np.median(known))
    if not low <= median <= high:
        return f"its values are not plausible distances: their median would be {median:.3g} m"
    some = known[:: max(1, known.size // 10_000)]
    if len(np.unique(some)) > 3 and np.array_equal(some, np.rint(some)):
        return "its values are whole numbers of metres, so they are not distances"
    return ""


def _same_lens(a: Lens | None, b: Lens | None) -> bool | None:
    """Whether the two have the same field of view, regardless of size; None if one is unknown."""
    if a is None or b is None:
        return None
    ours, theirs = (np.array([v.fx / v.width, v.fy / v.height, v.cx / v.width, v.cy / v.height]) for v in (a, b))
    return bool(np.abs(ours - theirs).max() <= SAME_LENS * max(1.0, float(ours[0])))
