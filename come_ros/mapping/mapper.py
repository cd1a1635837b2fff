"""The map's keyframes: selects them, connects them by edges, and computes the pose of the odometry frame in the map.

Odometry is never rewritten: a loop moves `map_from_odom`, and with it everything attached to the keyframes. Without loops the map equals
the odometry to the last bit. A loop is accepted if the views agree (loops.py), if it is plausible given the drift, and if the same view
fits no other place: two doors that look alike prove nothing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..geometry import inverse, rotation_angle
from ..tracking.drift import by_network
from ..types import F64, Alignment, Submap
from .graph import Edges, Similarities, news, optimise, root_information
from .loops import Match, compare
from .view import View, view_of

# The map keeps a keyframe of the windows if the camera moved or turned this far since the last one that it kept
LEAST_WAY, LEAST_TURN = 0.1, np.deg2rad(8.0)  # of the scene's depth; rad
RECENT = 4  # newest keyframes that are not candidates for a loop
ALIKE, NEAR = 3, 2  # number of candidates by appearance, and by position
LEAST_ALIKE = 0.1  # least cosine of two place descriptors, after subtracting their mean
MOST_ANGLE, MOST_WAY = np.deg2rad(50.0), 1.0  # candidates by position: largest angle, and distance in scene depths
MOST_SURPRISE = 50.0  # squared sigmas; drift and matches have heavier tails than their sigmas say
LEAST_GAIN = 1.0  # see graph.News: loops share errors of depth, so a loop that repeats known ones improves nothing
ELSEWHERE = np.deg2rad(20.0), 0.5  # rad, scene depths: a larger difference means another place, not an inexact match
LEAST_TRUST = 0.5  # of a new loop in the solution, else the loop is removed again
# Errors of a step: share of the angle turned, rad; share of the distance moved, and of the depth, since a wrong turn looks like a motion
TURN_SHARE, LEAST_ROTATION, WAY_SHARE, DEPTH_SHARE = 0.02, 0.001, 0.15, 0.006
# and of its log scale: without a bundle; with one, per distance in scene depths, per rad turned, and at least
NETWORK_SCALE, WAY_SCALE, TURN_SCALE, LEAST_SCALE = 0.1, 0.03, 0.03, 0.002
LOST = 1.0, 1.0  # rad, and scene depths: error of a window that shares nothing with earlier ones


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A keyframe of the map. odom_from_camera: (4, 4) as published. view: None if only the pose is kept."""

    stamp_ns: int
    odom_from_camera: F64
    view: View | None


@dataclass(frozen=True, eq=False)
class Corrections:
    """Pose of the odometry frame in the map at each of K keyframes. stamps_ns: (K,), ascending. map_from_odom: K similarities; the last
    one is rigid. version: grows with every loop; while it is 0, all similarities are the identity."""

    stamps_ns: NDArray[np.int64]
    map_from_odom: Similarities
    version: int = 0

    @staticmethod
    def none() -> Corrections:
        return Corrections(np.empty(0, np.int64), Similarities.of(np.empty((0, 4, 4))))

    def latest(self) -> F64:
        """(4, 4) rigid."""
        return self.map_from_odom.poses()[-1] if self.version else np.eye(4)


@dataclass
class LoopCounts:
    """offered: number of pairs of keyframes compared. accepted: number of loops closed. refused: number of others, by reason."""

    offered: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Mapper:
    """Builds the map from published submaps. One thread calls it. The same submaps give the same map."""

    def __init__(self, metric: bool, most_keyframes: int, loops: bool = True) -> None:
        """metric: whether lengths are in metres, so that scales are not estimated."""
        self.free_scale, self.most, self.loops = not metric, most_keyframes, loops
        self.reset()

    def reset(self) -> None:
        """Starts a new world."""
        self.counts = LoopCounts()
        self.keyframes: list[Keyframe] = []
        self.nodes = Similarities.of(np.empty((0, 4, 4)))
        self.chain, self.closed = Edges.none(), Edges.none()
        self.corrections = Corrections.none()
        self._ambiguous: set[int] = set()  # stamps of views that look like another place
        self._since: list[F64] = []  # poses since the last keyframe of the map
        self._unsure = np.zeros(3)  # variances of rotation, position and log scale since then, in addition to drift

    def add(self, submap: Submap, row: int) -> bool:
        """Adds a published keyframe. Returns whether a loop was closed."""
        frame, pose = submap.frames[row], submap.odom_from_camera[row]
        depth = submap.depth[row]
        usual = float(np.median(depth[np.isfinite(depth)])) if np.isfinite(depth).any() else 1.0
        if row == 0:
            self._unsure = self._unsure + _doubt(submap.alignment, submap.refinement.refined > 0, usual)
        if not self.keyframes:
            self.nodes = Similarities.of(pose)
        else:
            self._since.append(pose)
            last = self.keyframes[-1].odom_from_camera
            step = inverse(last) @ pose
            turn, way = float(rotation_angle(step[:3, :3])), float(np.linalg.norm(step[:3, 3]))
            if turn < LEAST_TURN and way < LEAST_WAY * usual:
                return False
            self._link(last, pose, usual)
        place = None if submap.places is None else submap.places[row]
        view = view_of(frame.image, depth, submap.intrinsics[row], place) if self.loops else None
        self.keyframes.append(Keyframe(frame.stamp_ns, pose.copy(), view))
        self._since, self._unsure = [], np.zeros(3)
        changed = self.loops and self._close()
        if len(self.keyframes) > self.most:
            self._thin()
        self._publish(changed)
        return changed

    @property
    def edges(self) -> Edges:
        return self.chain.joined(self.closed)

    def _link(self, last: F64, pose: F64, usual: float) -> None:
        """Adds the newest keyframe as a node, and the step to it as an edge."""
        newest = len(self.keyframes)
        way = np.stack([last, *self._since])
        steps = inverse(way[:-1]) @ way[1:]
        gone = float(np.linalg.norm(steps[:, :3, 3], axis=1).sum())
        turned = float(rotation_angle(steps[:, :3, :3]).sum())
        sigmas = (
            np.hypot(TURN_SHARE * turned, LEAST_ROTATION),
            np.hypot(WAY_SHARE * gone, usual * np.hypot(DEPTH_SHARE, TURN_SHARE * turned)),
            LEAST_SCALE + WAY_SCALE * gone / usual + TURN_SCALE * turned,
        )
        rotation, position, scale = np.sqrt(np.square(sigmas) + self._unsure)
        step = Similarities.of(inverse(last) @ pose)
        root = root_information(rotation, position, scale)
        self.chain = self.chain.joined(Edges.one(newest - 1, newest, step, root))
        # the newest keyframe has scale 1, see _publish
        self.nodes = self.nodes.joined(self.nodes.at([newest - 1]).after(step))

    def _close(self) -> bool:
        """Searches for loops of the newest keyframe. Returns whether any was closed."""
        found: list[tuple[int, Match]] = []
        for i in self._candidates():
            there, here = self.keyframes[i].view, self.keyframes[-1].view
            assert there is not None and here is not None
            match = compare(there, here)
            self.counts.offered += 1
            if match.reason:
                self.counts.refused[match.reason] += 1
            else:
                found.append((i, match))
        fixed = np.arange(len(self.keyframes)) == 0
        edges = self.edges
        loops = []
        for i, match in found:
            assert match.first_from_second is not None
            measured, sigma = match.first_from_second, match.sigma
            # lengths in a keyframe's frame are in its own units of the odometry
            loop = Edges.one(i, len(self.keyframes) - 1, measured, root_information(*sigma), True)
            said = news(self.nodes, edges, loop, fixed, self.free_scale)
            if said.surprise > MOST_SURPRISE:
                if self._elsewhere(loop):
                    self.counts.refused["another place that looks the same"] += len(found)
                    self._ambiguous |= {self.keyframes[-1].stamp_ns, *(self.keyframes[j].stamp_ns for j, _ in found)}
                    return False
                self.counts.refused["not exact enough"] += 1
            elif said.gain < LEAST_GAIN:
                self.counts.refused["known already"] += 1
            else:
                loops.append(loop)
                edges = edges.joined(loop)  # further loops must agree with this one
        believed = len(loops)
        loops = [e for e in loops if not self._is_ambiguous(e)]
        if believed > len(loops):
            self.counts.refused["a place that looks like another one"] += believed - len(loops)
        if not loops:
            return False
        closed = self.closed
        for loop in loops:
            closed = closed.joined(loop)
        edges = self.chain.joined(closed)
        solution = optimise(self.nodes, edges, fixed, self.free_scale)
        trust = solution.trust[len(self.chain.first) :]
        if trust.min() < LEAST_TRUST:
            self.counts.refused["does not fit the graph"] += len(loops)
            return False
        self.closed, self.nodes = closed, solution.nodes
        self.counts.accepted += len(loops)
        return True

    def _elsewhere(self, loop: Edges) -> bool:
        """Whether `loop` places the newest keyframe far from its pose in the graph."""
        here, view = self.nodes.at([-1]), self.keyframes[-1].view
        there = self.nodes.at(loop.first).after(loop.measured)
        way = float(np.linalg.norm(there.translation - here.translation))
        turn = float(rotation_angle(there.rotation[0].T @ here.rotation[0]))
        return turn > ELSEWHERE[0] or way > ELSEWHERE[1] * (1.0 if view is None else view.usual_depth)

    def _is_ambiguous(self, loop: Edges) -> bool:
        ends = (int(loop.first[0]), int(loop.second[0]))
        return any(self.keyframes[i].stamp_ns in self._ambiguous for i in ends)

    def _candidates(self) -> list[int]:
        """Earlier keyframes that may show the same place as the newest one: the most similar ones, and those nearby."""
        count = len(self.keyframes) - 1 - RECENT
        here = self.keyframes[-1].view
        known = [i for i in range(max(0, count)) if self.keyframes[i].view is not None]
        if not known or here is None or len(here) == 0:
            return []
        rows = np.array(known)
        places = np.stack([v.place for i in known if (v := self.keyframes[i].view) is not None])
        if places.shape[1] != len(here.place):  # the backbone's images have another size now
            return []
        centre = places.mean(axis=0) if len(places) > 2 * ALIKE else np.zeros(places.shape[1])
        alike = _cosine(places - centre, here.place - centre)
        best = [int(rows[i]) for i in np.argsort(-alike, kind="stable")[:ALIKE] if alike[i] >= LEAST_ALIKE]
        newest = self.nodes.at([-1])
        angle = rotation_angle(np.swapaxes(self.nodes.rotation[rows], 1, 2) @ newest.rotation)
        way = np.linalg.norm(self.nodes.translation[rows] - newest.translation, axis=1) / here.usual_depth
        cost = angle / MOST_ANGLE + way / MOST_WAY
        near = [int(rows[i]) for i in np.argsort(cost, kind="stable")[:NEAR] if cost[i] < 1]
        return list(dict.fromkeys([*best, *near]))

    def _publish(self, changed: bool) -> None:
        """Updates the corrections. The newest keyframe gets scale 1: the map's unit is the odometry's current unit."""
        if changed:
            first, shrink = self.nodes.translation[0], self.nodes.log_scale[-1]
            self.nodes = Similarities(
                self.nodes.log_scale - shrink, self.nodes.rotation,
                first + np.exp(-shrink) * (self.nodes.translation - first),
            )  # fmt: skip
        version = self.corrections.version + int(changed)
        poses = Similarities.of(np.stack([k.odom_from_camera for k in self.keyframes]))
        if version:
            at = self.nodes.after(poses.inverse())
        else:
            at = Similarities.of(np.tile(np.eye(4), (len(self.keyframes), 1, 1)))
        self.corrections = Corrections(np.array([k.stamp_ns for k in self.keyframes], np.int64), at, version)

    def _thin(self) -> None:
        """Drops every second keyframe of the older half, except those with a loop."""
        count = len(self.keyframes)
        held = set(self.closed.first.tolist()) | set(self.closed.second.tolist())
        kept = [i for i in range(count) if i % 2 == 0 or i >= count // 2 or i in held]
        if len(kept) == count:  # all of them have loops: drop the oldest ones with their loops
            drop = set(range(1, count // 4))
            kept = [i for i in range(count) if i not in drop]
            good = np.array(
                [not ({int(a), int(b)} & drop) for a, b in zip(self.closed.first, self.closed.second, strict=True)]
            )
            self.closed = Edges(
                self.closed.first[good], self.closed.second[good], self.closed.measured.at(good), self.closed.root[good],
                self.closed.switchable[good],
            )  # fmt: skip
        place = np.full(count, -1)
        place[kept] = np.arange(len(kept))
        poses = Similarities.of(np.stack([k.odom_from_camera for k in self.keyframes]))
        variances = 1 / np.einsum("eii->ei", self.chain.root) ** 2
        chain = Edges.none()
        for n, (i, j) in enumerate(itertools.pairwise(kept)):
            root = np.diag(1 / np.sqrt(variances[i:j].sum(axis=0)))
            chain = chain.joined(Edges.one(n, n + 1, poses.at([i]).inverse().after(poses.at([j])), root))
        self.chain = chain
        self.closed = self.closed._replace(first=place[self.closed.first], second=place[self.closed.second])
        self.nodes = self.nodes.at(kept)
        self.keyframes = [self.keyframes[i] for i in kept]
        self._ambiguous &= {k.stamp_ns for k in self.keyframes}


def _doubt(alignment: Alignment, refined: bool, usual: float) -> F64:
    """(3,) variances of rotation, position and log scale that a window adds to drift."""
    if alignment.shared == 0:
        return np.array([LOST[0] ** 2, (LOST[1] * usual) ** 2, LOST[1] ** 2])
    if refined:
        return np.zeros(3)
    covariance = by_network(alignment, usual)
    return np.array([covariance[5, 5], covariance[0, 0], NETWORK_SCALE**2 + alignment.depth_residual**2])


def _cosine(many: F64, one: F64) -> F64:
    """(n,) cosines between the rows of `many` (n, d) and `one` (d,)."""
    lengths = np.linalg.norm(many, axis=1) * np.linalg.norm(one)
    return np.asarray(many @ one / np.where(lengths > 0, lengths, 1.0), np.float64)
