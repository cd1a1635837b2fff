"""How far a network lay from the bundle lately, which is how much it counts in the next one: its weight is earned."""

from __future__ import annotations

import numpy as np

# What is taken until there is something to go by: a small network's errors
ROTATION = np.deg2rad(4.0)  # of a step from keyframe to keyframe, each axis
TRANSLATION = 0.1  # the same, of the scene's depth
DEPTH = 0.15  # of the logarithm, after the correction
PIXEL = 0.7  # px of an image 640 px wide, each axis
# Of the correction's terms, not learnt
COMMON = np.array([0.3, 0.15, 0.15, 0.1, 0.1, 0.1, 0.2])  # what a window's frames share
OWN = np.array([0.05, 0.05, 0.05, 0.03, 0.03, 0.03, 0.05])  # and what each has of its own
# Nobody is trusted more than that
LEAST = {"rotation": np.deg2rad(0.1), "translation": 0.002, "depth": 0.02, "pixel": 0.15}
MOST = {"rotation": np.deg2rad(20.0), "translation": 1.0, "depth": 0.5, "pixel": 2.0}
FIRST, MEMORY = 3.0, 15.0  # windows that the first guess counts for, and that are remembered at most


class Agreement:
    """Standard deviations that are learnt, each from medians, so that a bad window does not change much."""

    def __init__(self) -> None:
        self.rotation, self.translation, self.depth, self.pixel = ROTATION, TRANSLATION, DEPTH, PIXEL
        self._windows: dict[str, float] = {}

    def learn(self, name: str, sigma: float) -> None:
        """`sigma` is what one window showed of `name`, one of LEAST."""
        if not np.isfinite(sigma):
            return
        count = self._windows[name] = min(MEMORY, self._windows.get(name, FIRST) + 1)
        before = getattr(self, name)
        # of logarithms: a factor of two too small costs as much as one too large
        now = np.exp(np.log(before) + (np.log(np.clip(sigma, LEAST[name], MOST[name])) - np.log(before)) / count)
        setattr(self, name, float(now))
