"""Publishes every submap, row by row, and every located image. The node and the bag tool only provide the sink."""

from __future__ import annotations

import dataclasses
import threading
from typing import Protocol

from ..config import Config
from ..mapping.aside import Call, directly
from ..mapping.saved_map import SavedMap
from ..messages import Messages
from ..tracking.odometry import Located
from ..types import Submap
from .motion import Motion, MotionEstimator, motion_of
from .topics import OUTPUTS, FrameMessages
from .world import World


class Sink(Protocol):
    """The destination of what is published."""

    def frame(self, topic: str, made: FrameMessages) -> None:
        """One of OUTPUTS except odometry, for a used frame. The sink builds the message if it needs it, see topics.Output."""

    def moved(self, motion: Motion, config: Config) -> None:
        """A new pose: TF and odometry."""

    def new_world(self) -> None:
        """A new world starts: later poses and points are unrelated to earlier ones."""


class Reporter:
    """Follows the pipeline: motion between frames, messages, path and map, and new worlds.

    world: path and map so far. `add_row` is called in the pipeline's thread, `add_located` in the thread that locates images.
    """

    def __init__(
        self, sink: Sink, messages: Messages, config: Config, metric: bool, cameras: int = 1, background: bool = False,
        saved: SavedMap | None = None, places: str = "", call: Call = directly,
    ) -> None:  # fmt: skip
        """config: of the world. metric: whether the model's unit is the metre. cameras: rows of each instant, the first of which leads.
        background: whether another thread does the world's `work`; else it is done at once, so that results are the same every time.
        saved, places: the map to begin in, and what makes place descriptors, see SavedMap. call: runs what takes long in that work."""
        self.world = World(config, messages, metric, saved, places, call)
        self._sink, self._messages, self._cameras, self._background = sink, messages, cameras, background
        self._estimator = MotionEstimator()
        self._number = 0  # of the world, see Submap.world
        self._following = threading.Lock()

    def add_row(self, submap: Submap, row: int, config: Config) -> FrameMessages:
        """Publishes frame `row` of a submap: its pose (unless poses of all images are published separately), its messages, then the
        map."""
        self.follow(submap.world)
        if submap.world == self._number:
            self.world.learn_scale(submap.scale)
        if row % self._cameras == 0:  # the first camera gives the robot's pose
            self._motion = self._estimator.step(submap, row, config)
            if config.odometry.rate != "image":
                self._moved(self._motion, config)
        made = FrameMessages(self._messages, submap, row, self._motion, config)
        for topic in OUTPUTS:
            if topic != "odometry":
                self._sink.frame(topic, made)
        if submap.world == self._number:
            # the stamp of the set: those of its cameras differ a little
            leader = submap.frames[row - row % self._cameras]
            self.world.add_points(lambda: made.odom_points, submap.depth[row], leader.stamp_ns)
            if row % self._cameras == 0:
                self.world.add_keyframe(submap, row)
                if not self._background:
                    self.world.work()
        return made

    def add_located(self, located: Located, config: Config) -> None:
        """Publishes the pose of one image, unless the other thread has begun a newer world since it was computed: it would be in the old
        world's frame and unit."""
        self.follow(located.world)
        with self._following:
            if located.world == self._number:
                self._moved(motion_of(located, config), config)

    def follow(self, number: int) -> None:
        """Switches to that world and drops everything of older ones. Either thread may see it first."""
        with self._following:
            if number > self._number:
                self._number = number
                self._estimator.reset()
                self.world.clear()
                self._sink.new_world()

    def _moved(self, motion: Motion, config: Config) -> None:
        self._sink.moved(
            dataclasses.replace(motion, map_from_odom=self.world.map_from_odom(motion.odom_from_child)), config
        )
        self.world.add_pose(motion.stamp_ns, motion.odom_from_child)
