"""`come_ros view --live` next to a running node: it finds the node's topics, and its page shows the frames as they come."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from browser import Browser, chromium

pytest.importorskip("viser", reason="viser is not installed: pip install '.[view]'")

from ros.live_node import START_NS, STEP_NS, NodeProcess, Peer, picture, wait_until


def test_a_running_node_is_shown_as_it_goes(start_node: Callable[..., NodeProcess], peer: Peer) -> None:
    start_node("-p", "backbone:=fake", "-p", "keyframe.mode:=every", "-p", "diagnostics.period:=0.2")
    peer.listen_to_outputs()
    wait_until(peer.matched, what="the node")
    command = [sys.executable, "-m", "come_ros.tools.cli", "view", "--live", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as view:
        assert view.stdout is not None and view.stderr is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(iter(view.stdout.readline, "")), daemon=True)
        reader.start()
        try:
            wait_until(lambda: peer.node.count_subscribers("/come/confidence"), what="the view's subscriptions")
            sent = iter(range(100_000))

            def address() -> str:
                i = next(sent)
                peer.send(picture(i), START_NS + i * STEP_NS)
                found = re.search(r"http://127\.0\.0\.1:\d+", "".join(lines))
                assert view.poll() is None, view.stderr.read()
                wait_until(lambda: len(peer.received["/come/odometry"]) >= i - 20)
                return found[0] if found else ""

            url = wait_until(address, what="the address of the page")
            with Browser(chromium(), 900, 640) as browser:
                browser.open(url)
                frames = "Number((document.body?.innerText.match(/live: (\\d+) frames with depth/) || [0, 0])[1])"
                first = browser.wait_for(frames)
                for _ in range(8):
                    address()
                browser.wait_for(f"{frames} > {first}")
                assert all(each.startswith((url, url.replace("http", "ws"))) for each in browser.requests)
                assert not browser.errors
                browser.open("about:blank")
        finally:
            view.terminate()
            code = view.wait(60)
            reader.join(5)
    assert code == 0
