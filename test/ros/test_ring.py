"""The ring and the counters under threads that do as they like: nothing is lost, the sum always holds."""

from __future__ import annotations

import random
import threading

import pytest

from come_ros.ros.diagnostics.counters import DROP_REASONS, FrameCounters
from come_ros.ros.ring import FrameRing


def test_a_full_ring_gives_up_its_oldest():
    ring = FrameRing(3)
    assert [ring.put(i) for i in range(5)] == [0, 0, 0, 1, 1]
    assert [ring.pop() for _ in range(4)] == [2, 3, 4, None]
    for i in range(3):
        ring.put(i)
    assert ring.resize(1) == 2 and ring.pop() == 2
    with pytest.raises(ValueError, match="not 0"):
        FrameRing(0)


def test_waiting_ends_with_an_item_or_a_wake():
    ring = FrameRing(2)
    assert not ring.wait(0.0)
    threading.Timer(0.02, ring.put, ["x"]).start()
    assert ring.wait(5.0)
    ring.clear()
    threading.Timer(0.02, ring.wake).start()
    assert not ring.wait(5.0)


def test_every_frame_is_accounted_for_at_any_instant():
    ring, counters, done = FrameRing(4), FrameCounters(), threading.Event()
    problems = []

    def camera():
        for i in range(3000):
            counters.receive()
            counters.drop("busy", ring.put(i))
        done.set()

    def worker():
        rng = random.Random(0)
        while not done.is_set() or len(ring):
            if ring.pop() is None:
                ring.wait(0.001)
            elif rng.random() < 0.5:
                counters.use()
            else:
                counters.drop(rng.choice(list(DROP_REASONS)))

    def observer():
        while not done.is_set():
            counts = counters.snapshot()
            if not counts.balanced() or counts.pending < 0:
                problems.append(counts)

    threads = [threading.Thread(target=f) for f in (camera, worker, observer, observer)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    end = counters.snapshot()
    assert not problems and end.balanced() and end.pending == 0 and end.received == 3000


def test_counting_what_is_not_there_is_an_error():
    counters = FrameCounters()
    with pytest.raises(ValueError, match="0 pending"):
        counters.use()
    with pytest.raises(ValueError, match="unknown reason"):
        counters.drop("mood")
