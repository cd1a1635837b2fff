"""Holds what a network says of a window against the tracks of its images: a bundle adjustment with the published keyframes as constants.

The network gives every new keyframe a pose and a depth, a little wrong and in a scale that wanders. Tracks tie each to what was
published: the poses of the new keyframes, landmarks, and one smooth correction of each depth are estimated together (bundle.py), so that
scale and frame carry on without a similarity per window. How much the network counts is earned: its errors are estimated from how far it
lay from the bundle lately (agreement.py). A keyframe that too few tracks speak for keeps the network's answer, and the report says so.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..config import Config
from ..tracking.resection import Rays
from ..types import F64, I64, Frame, Refinement
from .agreement import Agreement
from .scene import ITERATIONS, KERNEL, WIDE, Scene
from .state import Outcome, Proposal, State, intrinsics_matrix


class Unrefined:
    """The network's answer as it is: `refine.mode: none`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def refine(self, proposal: Proposal) -> Outcome:
        return as_proposed(proposal, Refinement(reason="refine.mode is none"))

    def commit(self, outcome: Outcome) -> None:
        pass

    def intrinsics(self, frame: Frame) -> F64 | None:
        return None

    def landmarks(self) -> tuple[I64, Rays]:
        state = State()
        return state.ids, state.rays

    def restart(self) -> None:
        pass

    def reset(self) -> None:
        pass


def as_proposed(proposal: Proposal, report: Refinement) -> Outcome:
    """Nothing is refined."""
    n = proposal.new
    return Outcome(
        accepted=False,
        odom_from_camera=proposal.odom_from_camera[len(proposal.odom_from_camera) - n :],
        depth=proposal.depth,
        confidence=proposal.confidence,
        scale=proposal.alignment.scale,
        covariance=np.zeros((n, 6, 6)),
        report=report,
    )


class Refiner:
    """One thread. `refine` asks, `commit` remembers."""

    def __init__(self, config: Config, metric: bool) -> None:
        """config: may be replaced between windows. metric: whether the network's unit is the metre."""
        self.config, self.metric = config, metric
        self.reset()

    def reset(self) -> None:
        """The world begins again, and the network has to earn its weight again."""
        self._state = State()
        self._agreements: dict[str, Agreement] = {}

    def restart(self) -> None:
        """Forgets what is published: the next window stands for itself."""
        self._state = State(focals=self._state.focals, unit=self._state.unit)

    def intrinsics(self, frame: Frame) -> F64 | None:
        """(3, 3) in pixels of the image of `frame`, as estimated; None if they are given with it, or unknown yet."""
        focal = self._state.focals.get(frame.camera)
        return None if frame.intrinsics is not None or focal is None else intrinsics_matrix(focal.intrinsics)

    def landmarks(self) -> tuple[I64, Rays]:
        """Ids (n,), ascending, and places of the points that are known, in the aligner's frame."""
        return self._state.ids, self._state.rays

    def agreement(self, camera: str) -> Agreement:
        """How far the network is trusted with that camera."""
        return self._agreements.setdefault(camera, Agreement())

    def commit(self, outcome: Outcome) -> None:
        """`outcome` is published."""
        if outcome.state is not None:
            self._state = outcome.state
        for camera, agreement in outcome.agreements.items():
            self._agreements[camera] = agreement

    def refine(self, proposal: Proposal) -> Outcome:
        """The new frames as the bundle has them, or, where it cannot tell, as proposed."""
        cameras = {frame.camera for frame in proposal.frames} | {k.camera for k in self._state.published.values()}
        scene = Scene(proposal, self._state, {name: self.agreement(name) for name in cameras}, self._unit())
        scene.start()
        if not scene.worth_it:
            return self._left_alone(scene, "hardly any point is seen in two keyframes")
        try:
            solution = scene.solve(WIDE, ITERATIONS[0], rough=True)
            scene.prune(solution)
            if not scene.supported.any():
                return self._left_alone(scene, scene.reason)
            solution = scene.solve(KERNEL, ITERATIONS[1])
        except (ValueError, np.linalg.LinAlgError) as error:  # not finite: the network's answer is kept
            return self._left_alone(scene, str(error))
        return scene.outcome(solution)

    def _left_alone(self, scene: Scene, reason: str) -> Outcome:
        """The network's answer; what is seen in it is remembered all the same."""
        outcome = as_proposed(scene.proposal, Refinement(reason=reason))
        return dataclasses.replace(
            outcome,
            state=scene.state_of(outcome.odom_from_camera, None, outcome.depth),
            covariance=scene.network_covariance(),
        )

    def _unit(self) -> tuple[float, float] | None:
        """The odometry's units per metre and how sure that is (sigma of the logarithm); None where only measurements can tell."""
        if self.metric:
            return 1.0, 0.0
        if self.config.scale.mode == "fixed":
            return 1.0 / self.config.scale.fixed, 0.0
        return None
