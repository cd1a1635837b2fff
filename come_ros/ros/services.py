"""The node's services. Their work runs in other threads; awaiting it keeps the executor free."""

from __future__ import annotations

import json
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any

import rclpy
import rclpy.task
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from ..errors import ComeRosError
from ..outputs.world import World
from .worker import Worker

log = logging.getLogger("come_ros")


class Services:
    """~/reset, ~/save_map, ~/self_check and ~/pause."""

    def __init__(self, node: Node, worker: Worker, world: Callable[[], World], tend: Callable[[], None]) -> None:
        """world: what ~/save_map saves. tend: called when the worker has begun a new world."""
        self._node, self._worker, self._world, self._tend = node, worker, world, tend
        self._saving: threading.Thread | None = None
        # each in a separate callback group: in the default group, awaiting would block images and timers
        for name, answer in (("reset", self._reset), ("save_map", self._save_map), ("self_check", self._self_check)):
            node.create_service(Trigger, f"~/{name}", answer, callback_group=MutuallyExclusiveCallbackGroup())
        node.create_service(SetBool, "~/pause", self._pause)

    def close(self, patience_s: float) -> None:
        """Waits for a map that is being saved, so that no partial files are left behind."""
        if self._saving is not None:
            self._saving.join(patience_s)

    async def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        log.info("reset: a new map and odometry origin start at the next frame")
        return await self._answer(
            response, self._worker.reset(self._tend), "a new map and odometry origin start at the next frame"
        )

    def _pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._worker.pause(request.data)
        log.info("paused: frames are dropped, the model stays loaded" if request.data else "resumed")
        response.success, response.message = True, "paused" if request.data else "running"
        return response

    async def _save_map(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        saved: Future[None] = Future()
        world = self._world()  # not the node: an unfinished task must not keep the node alive
        folder = Path(self._worker.config.map.save_dir).expanduser() / datetime.now().strftime("%Y-%m-%dT%H-%M-%S.%f")

        def save() -> None:
            try:
                world.snapshot().save(folder)
            except Exception as error:
                saved.set_exception(error)
            else:
                saved.set_result(None)

        # not in the worker, which may be in a pass; and a disk may be slow
        self._saving = threading.Thread(target=save, name="come_save", daemon=True)
        self._saving.start()
        return await self._answer(response, saved, str(folder))

    async def _self_check(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return await self._answer(response, self._worker.self_check())

    async def _answer(self, response: Trigger.Response, work: Future[Any], message: str = "") -> Trigger.Response:
        """Answers with success and `message` (by default the result of `work` as JSON), or with its exception, once it is done."""
        executor = self._node.executor
        done: rclpy.task.Future[None] = rclpy.task.Future(executor=executor)
        waiting = weakref.ref(executor)

        def wake(_: Future[Any]) -> None:
            done.set_result(None)
            if (alive := waiting()) is not None:
                alive.wake()  # Humble to Kilted resume awaiting coroutines only when they are woken

        del executor
        work.add_done_callback(wake)
        await done
        error = work.exception()
        response.success = error is None
        response.message = str(error) if error is not None else message or json.dumps(work.result())
        if error is not None:
            log.error("%s", error, exc_info=None if isinstance(error, ComeRosError) else error)
        return response
