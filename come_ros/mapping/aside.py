"""Runs functions in a process of low priority, so that what takes long leaves processor and interpreter to everything else.

A thread would share Python's interpreter lock with the threads that serve images, and must not have a low priority itself: while it waits
for a processor with the lock in its hand, all threads wait. Functions, arguments and results travel by pickle over pipes between the two
processes; functions are those of modules that the process can import. The results are those of a direct call, to the last bit.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any

Call = Callable[..., Any]
"""call(function, *arguments) -> function(*arguments), computed here or elsewhere"""

NICE = 10  # a tenth of a core where others want all of it
PATIENCE_S = 2.0
_SERVE = "import sys; from come_ros.mapping.aside import serve; serve(sys.argv[1:])"


def directly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function in this thread."""
    return function(*arguments)


class Aside:
    """A process that runs functions one at a time. It starts with the first call, and again after it died. Any thread may call it."""

    def __init__(self, *modules: str) -> None:
        """modules: those that the process imports first, before it lowers its priority."""
        self._modules = modules
        self._process: subprocess.Popen[bytes] | None = None
        self._calling, self._closed = threading.Lock(), False

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments). Raises what it raises, and RuntimeError if the process died or this is closed."""
        with self._calling:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            call = _packed(
                (function, arguments)
            )  # before anything is sent: what cannot be packed must not be sent in part
            try:
                _send(process.stdin, call)
                good, result = pickle.load(process.stdout)
            except (
                OSError,
                EOFError,
                ValueError,
                pickle.UnpicklingError,
            ) as error:  # it is gone, or `close` closed the pipes
                process.kill()
                code = process.wait()
                if self._closed:
                    raise RuntimeError(
                        f"{function.__name__} was not finished: the process that runs it was closed"
                    ) from None
                raise RuntimeError(
                    f"the process that runs {function.__name__} ended with code {code} (-9: killed, often for memory); the next call "
                    "starts a new one"
                ) from error
        if good:
            return result
        raise result

    def _running(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise RuntimeError("closed: no further function can run")
        if self._process is None or self._process.poll() is not None:
            # Not multiprocessing, which would import the main module, and with it ROS and torch. In a session of its own: Ctrl-C, which
            # a terminal sends to all processes, is left to the first one.
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, *self._modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                start_new_session=True,
            )
            if self._closed:  # `close` came just before there was a process to end
                self._process.kill()
        return self._process

    def close(self) -> None:
        """Ends the process, also in the middle of a call, which then raises."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)
            if self._calling.acquire(timeout=PATIENCE_S):
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with contextlib.suppress(OSError):
                            pipe.close()
                self._calling.release()


def serve(modules: Sequence[str]) -> None:
    """Runs in the other process: imports the modules, then reads calls from stdin until it ends, as it does with the first process."""
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    import cv2

    for module in modules:
        importlib.import_module(module)
    cv2.setNumThreads(1)
    os.nice(NICE)
    while True:
        try:
            function, arguments = pickle.load(calls)
        except EOFError:
            return
        try:
            answer = _packed((True, function(*arguments)))
        except Exception as error:
            answer = _packed((False, error))
        try:
            _send(answers, answer)
        except BrokenPipeError:
            return


def _packed(value: Any) -> bytes:
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def _send(pipe: IO[bytes], packed: bytes) -> None:
    pipe.write(packed)
    pipe.flush()
