"""Recent differences between the network and the bundle. They set the network's weight in the next bundle."""

from __future__ import annotations

import numpy as np

# Initial values, until there are measurements: the errors of a small network
ROTATION = np.deg2rad(4.0)  # of a step from keyframe to keyframe, each axis
TRANSLATION = 0.1  # the same, of the scene's depth
DEPTH = 0.15  # of the logarithm, after the correction
PIXEL = 0.7  # px of an image 640 px wide, each axis
# Sigmas of the terms of the depth correction; these are not learnt
COMMON = np.array([0.3, 0.15, 0.15, 0.1, 0.1, 0.1, 0.2])  # of the part that the frames of a window share
OWN = np.array([0.05, 0.05, 0.05, 0.03, 0.03, 0.03, 0.05])  # and of the part that differs from frame to frame
# Bounds of the learnt sigmas
LEAST = {"rotation": np.deg2rad(0.1), "translation": 0.002, "depth": 0.02, "pixel": 0.15}
MOST = {"rotation": np.deg2rad(20.0), "translation": 1.0, "depth": 0.5, "pixel": 2.0}
FIRST, MEMORY = 3.0, 15.0  # weight of the initial value, and longest memory, in windows


class Agreement:
    """Learnt standard deviations. Each is updated from medians, so that one bad window changes little."""

    def __init__(self) -> None:
        self.rotation, self.translation, self.depth, self.pixel = ROTATION, TRANSLATION, DEPTH, PIXEL
        self._windows: dict[str, float] = {}

    def learn(self, name: str, sigma: float) -> None:
        """Updates `name`, one of LEAST, with the `sigma` measured in one window."""
        if not np.isfinite(sigma):
            return
        count = self._windows[name] = min(MEMORY, self._windows.get(name, FIRST) + 1)
        before = getattr(self, name)
        # mean of logarithms: a factor of two too small counts as much as one too large
        now = np.exp(np.log(before) + (np.log(np.clip(sigma, LEAST[name], MOST[name])) - np.log(before)) / count)
        setattr(self, name, float(now))
