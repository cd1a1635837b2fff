"""A headless Chromium, driven over its DevTools protocol: opens a page, clicks, evaluates, takes pictures, and notes every request."""

from __future__ import annotations

import base64
import itertools
import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-default-apps", "--hide-scrollbars", "--mute-audio", "--enable-precise-memory-info",
    "--remote-debugging-port=0",
)  # fmt: skip
"""Software rendering: a test machine has no GPU."""


def installed() -> str | None:
    """The path of Chromium."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


def chromium() -> str:
    """The path of Chromium; skips the test, with the reason, where there is none."""
    found = installed()
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium, so that the 3D view is opened in a real browser")
    return found


class Browser:
    """One page of a browser of its own. A context manager.

    requests: URLs of all requests of the page so far, data: and blob: left out. errors: exceptions and console errors.
    """

    def __init__(self, path: str, width: int = 1280, height: int = 800, before: str = "") -> None:
        """before: JavaScript that runs in each page before its own."""
        from websockets.sync.client import connect

        self.requests: list[str] = []
        self.errors: list[str] = []
        self._numbers = itertools.count(1)
        self._folder = tempfile.mkdtemp(prefix="come_ros_browser_")
        environment = {**os.environ, "HOME": self._folder, "DBUS_SESSION_BUS_ADDRESS": "disabled:"}
        self._process = subprocess.Popen(
            [path, *FLAGS, f"--window-size={width},{height}", f"--user-data-dir={self._folder}/profile", "about:blank"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            where = Path(self._folder, "profile", "DevToolsActivePort")
            _wait(lambda: where.exists() and len(where.read_text().splitlines()) == 2, 60, "Chromium does not start")
            port, name = where.read_text().splitlines()
            self._socket = connect(f"ws://127.0.0.1:{port}{name}", max_size=None)
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            self._session = ""
            self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self._call(f"{domain}.enable")
            if before:
                self._call("Page.addScriptToEvaluateOnNewDocument", source=before)
            self._call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the browser and all its processes."""
        if (socket := getattr(self, "_socket", None)) is not None:
            socket.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def version(self) -> str:
        return str(self._call("Browser.getVersion")["product"])

    def open(self, url: str) -> None:
        """Opens a page; it may still be loading afterwards."""
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, which may be a promise. Raises RuntimeError for its exceptions."""
        got = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in got:
            raise RuntimeError(str(got["exceptionDetails"].get("exception", {}).get("description")))
        return got["result"].get("value")

    def wait_for(self, script: str, timeout_s: float = 120.0) -> Any:
        """Polls until the expression is true; an element counts as false. Returns its value. Raises TimeoutError."""
        return _wait(lambda: self.evaluate(script), timeout_s, f"never true: {script}; errors: {self.errors}")

    def click(self, x: float, y: float) -> None:
        """The left button, at a pixel of the page."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        time.sleep(0.3)  # hovering is noticed in the next frame
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], reach: float, seconds: float) -> float:
        """Holds the left button at a pixel of the page and moves it to and fro, by `reach` px and 30 times a second. Returns how many
        seconds it took."""

        def mouse(kind: str, x: float, buttons: int) -> None:
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=start[1], button="left", buttons=buttons, clickCount=1
            )

        mouse("mousePressed", start[0], 1)
        begun = time.monotonic()
        while (since := time.monotonic() - begun) < seconds:
            mouse("mouseMoved", start[0] + reach * math.sin(2 * since), 1)
            time.sleep(1 / 30)
        mouse("mouseReleased", start[0], 0)
        return since

    def press(self, key: str, code: str) -> None:
        """A key, such as (" ", "Space")."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=code)

    def picture(self, path: Path | None = None) -> bytes:
        """PNG of the page, also written to `path`."""
        data = base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(data)
        return data

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self._processes())

    def memory_mb(self) -> dict[str, float]:
        """JavaScript heap, and resident memory of the browser's largest renderer and of its GPU process, MB."""
        heap = self.evaluate("performance.memory.usedJSHeapSize") / 1e6
        out = {"heap": heap, "renderer": 0.0, "gpu": 0.0}
        for child in self._processes():
            words = " ".join(child.cmdline())
            kind = "renderer" if "--type=renderer" in words else "gpu" if "--type=gpu-process" in words else ""
            if kind:
                out[kind] = max(out[kind], child.memory_info().rss / 1e6)
        return out

    def _processes(self) -> list[Any]:
        import psutil

        return psutil.Process(self._process.pid).children(recursive=True)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if getattr(self, "_session", ""):
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            got = json.loads(self._socket.recv(timeout=180))
            self._note(got)
            if got.get("id") == number:
                if "error" in got:
                    raise RuntimeError(f"{method}: {got['error']}")
                return dict(got["result"])

    def _note(self, event: dict[str, Any]) -> None:
        what, values = event.get("method"), event.get("params", {})
        if what in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            url = values["request"]["url"] if "request" in values else values["url"]
            if not url.startswith(("data:", "blob:")):
                self.requests.append(url)
        elif what == "Runtime.exceptionThrown":
            self.errors.append(str(values["exceptionDetails"].get("exception", {}).get("description", values)))
        elif what == "Runtime.consoleAPICalled" and values["type"] == "error":
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in values["args"]))
        elif what == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.errors.append(values["entry"]["text"] + " " + values["entry"].get("url", ""))


def _wait(asked: Any, timeout_s: float, why: str) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := asked():
            return value
        time.sleep(0.1)
    raise TimeoutError(why)
