"""Refines the network's result for a window with the tracks of its images: a bundle adjustment in which published keyframes are constant.

The network gives every new keyframe a pose and a depth, with errors and a scale that drifts. Tracks connect each keyframe to published
ones: the poses of the new keyframes, landmarks, and one smooth correction of each depth are estimated together (bundle.py), so that scale
and frame continue without a similarity transform per window. The network's weight follows from its recent differences to the bundle
(agreement.py). A keyframe with too few tracks keeps the network's result, and the report says so.
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
    """Keeps the network's result: `refine.mode: none`."""

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
    """The network's result, unrefined."""
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
    """Refines windows; one thread. `refine` computes a result without changing the state, `commit` takes it over once it is published."""

    def __init__(self, config: Config, metric: bool) -> None:
        """config: may be replaced between windows. metric: whether the network's unit is the metre."""
        self.config, self.metric = config, metric
        self.reset()

    def reset(self) -> None:
        """Starts a new world. The network's weight starts from its initial value, too."""
        self._state = State()
        self._agreements: dict[str, Agreement] = {}
        self._fixed: float | None = None  # scale.fixed of this world, once it has begun

    def restart(self) -> None:
        """Drops the published keyframes and landmarks: the next window does not depend on them."""
        self._state = State(focals=self._state.focals, unit=self._state.unit)

    def intrinsics(self, frame: Frame) -> F64 | None:
        """(3, 3) estimated intrinsics in pixels of the image of `frame`; None if the frame has its own, or if they are not known yet."""
        focal = self._state.focals.get(frame.camera)
        return None if frame.intrinsics is not None or focal is None else intrinsics_matrix(focal.intrinsics)

    def landmarks(self) -> tuple[I64, Rays]:
        """Ids (n,), ascending, and positions of the known points, in the aligner's frame."""
        return self._state.ids, self._state.rays

    def agreement(self, camera: str) -> Agreement:
        """Learnt errors of the network for that camera."""
        return self._agreements.setdefault(camera, Agreement())

    def commit(self, outcome: Outcome) -> None:
        """Takes over the state of an `outcome` that is published."""
        if self._fixed is None:
            self._fixed = self.config.scale.fixed
        if outcome.state is not None:
            self._state = outcome.state
        for camera, agreement in outcome.agreements.items():
            self._agreements[camera] = agreement

    def refine(self, proposal: Proposal) -> Outcome:
        """The refined new frames, or the proposal itself if the bundle cannot be solved."""
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
        """The network's result; its observations are kept for the next windows."""
        outcome = as_proposed(scene.proposal, Refinement(reason=reason))
        return dataclasses.replace(
            outcome,
            state=scene.state_of(outcome.odom_from_camera, None, outcome.depth),
            covariance=scene.network_covariance(),
        )

    def _unit(self) -> tuple[float, float] | None:
        """Odometry units per metre and the sigma of its logarithm; None if it has to be measured."""
        if self.metric:
            return 1.0, 0.0
        if self.config.scale.mode == "fixed":
            return 1.0 / (self.config.scale.fixed if self._fixed is None else self._fixed), 0.0
        return None
