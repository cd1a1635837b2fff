"""The thread that looks for loops and moves the map: what takes long there keeps no frame waiting."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable

from ..outputs.world import World

log = logging.getLogger("come_ros")

POLL_S = 0.1
# Of the time, for the graph, whose work a process of low priority does, and for moving path and map after loops, which this thread does.
# Where keyframes come faster, some are left out of the graph, which then has longer steps.
MOST_WORK, MOST_SETTLING = 0.3, 0.1
MOST_SEARCH = 0.5  # instead of MOST_WORK, until the camera is found in a saved map
# Python's threads hand over the interpreter every 5 ms: that is long for the thread that locates each image, which asks for it some twenty
# times an image
SWITCH_S = 0.0005


class MapThread(threading.Thread):
    """Does the `work` of whichever world is the present one."""

    def __init__(self, world: Callable[[], World], close: Callable[[], None] = lambda: None) -> None:
        """close: ends what the world's `work` waits for."""
        super().__init__(name="come_map", daemon=True)
        self._world, self._close = world, close
        self._stopping = threading.Event()
        self._failed = ""

    def run(self) -> None:
        importlib.import_module("scipy.sparse.csgraph")  # now and not at the first loop
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        settle_at, closed, pause = 0.0, 0, POLL_S
        while not self._stopping.wait(pause):
            world, begun = self._world(), time.monotonic()
            try:
                world.work(most=1)
                share = MOST_SEARCH if world.searches else MOST_WORK
                pause = max(POLL_S, (time.monotonic() - begun) * (1 / share - 1))
                loops = world.loops
                if loops is not None and loops.accepted != closed:
                    if loops.accepted > closed:
                        log.info("loop closed: %d so far, between %d keyframes", loops.accepted, world.keyframes)
                    closed = loops.accepted
                begun = time.monotonic()
                if begun >= settle_at:
                    world.settle()
                    settle_at = begun + (time.monotonic() - begun) / MOST_SETTLING
            except Exception as error:  # the node stays up, with the map as it was
                if self._stopping.is_set():
                    return
                text = f"{type(error).__name__}: {error}"
                if text != self._failed:
                    log.error("the map's graph failed, a keyframe is left out: %s", text, exc_info=error)
                self._failed = text

    def stop(self, patience_s: float) -> None:
        """Ends it, as soon as what it is doing is done."""
        self._stopping.set()
        self._close()
        if self.ident is not None:
            self.join(patience_s)
