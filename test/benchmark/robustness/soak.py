"""A long day of the live node: over DDS, at twice the load it can handle, with a camera and an operator that do everything wrong.

One thing happens after the other, again and again (EVENTS): the images change size, encoding and frame_id, are damaged or stop, the
camera restarts, time jumps back and ahead, the node is paused, reset, deactivated, freed and loaded again. Sampled meanwhile: memory,
threads, files and shared memory of the node's process, what became of every frame, and latency.

    python test/benchmark/robustness/soak.py [--minutes 20] [--backbone fake]     writes soak.json, soak.md, soak.png into results/

Exit code 0 if every bound holds. How much the machine can handle is measured first and last, by `come_ros bag` on the same images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.stamped import TINY, write_result  # noqa: E402

from come_ros.config import Config  # noqa: E402
from come_ros.ros.programs.live import Processes, live_environment  # noqa: E402
from come_ros.tools.demo import render_room  # noqa: E402

RESULTS = Path(__file__).with_name("results")
IMAGES, SIZE = 120, "320x240"
SEED = 20_000_548  # a room that is neither trained on nor scored
FAKE_HZ = 30.0
START_TIMEOUT_S, ANSWER_TIMEOUT_S = 180.0, 60.0
LEAST_FOR_SLOPE_S = 600.0
REASONS = ("not_keyframe", "busy", "old", "decode", "sync", "time", "rejected", "paused")
NAN = float("nan")


@dataclass(frozen=True)
class Camera:
    """How the images are at the moment. damaged: share of them that cannot be decoded."""

    width: int = 320
    height: int = 240
    encoding: str = "rgb8"
    frame: str = "camera_optical_frame"
    damaged: float = 0.0


@dataclass(frozen=True)
class Sample:
    """The node at one moment. t: s. rss: MiB. segments: of DDS shared memory that it has mapped. counts: since the start, by name,
    as its diagnostics of that moment say. p50, p95: latency since the sample before, ms."""

    t: float
    event: str
    state: str
    rss: float
    threads: int
    files: int
    segments: int
    counts: dict[str, int]
    p50: float
    p95: float


class Soak:
    """Feeds the node and watches it. The node's answers come in another thread, that of the peer."""

    def __init__(self, node: Any, frames: list[np.ndarray], hz: float, sample_s: float) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from lifecycle_msgs.srv import ChangeState
        from nav_msgs.msg import Odometry
        from ros.live_node import Peer
        from sensor_msgs.msg import CameraInfo
        from std_srvs.srv import SetBool, Trigger

        self.node, self.frames, self.period, self.sample_s = node, frames, 1 / hz, sample_s
        self.camera, self.event, self.silent = Camera(), "start", False
        self.shift_ns = 0  # of the camera's clock
        self.samples: list[Sample] = []
        self.sent = self.checks = self.unbalanced = 0
        self.latencies: list[float] = []  # s, from the publication of an image to the arrival of its odometry
        self.steady: list[tuple[float, int]] = []  # (s, frames used) of undisturbed stretches
        self.configured: list[
            tuple[int, int]
        ] = []  # (used, published keyframes) of each time between configure and cleanup
        self.bar = tqdm(unit=" s", disable=None)
        self._begun = self._due = time.monotonic()
        self._index, self._next_sample = 0, 0.0
        self._rng = np.random.default_rng(0)
        self._when: OrderedDict[int, float] = OrderedDict()  # stamp -> when it was published
        self._status: dict[str, dict[str, str]] = {}
        self._before: dict[str, int] = {}  # counts of times of configuration that are over
        self._frames, self._told = 0, 0  # _frames: keyframes published since configure
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.peer = Peer(self._context)
        make = self.peer.node.create_client
        self._services = {
            "change_state": make(ChangeState, "/come/change_state"),
            "reset": make(Trigger, "/come/reset"),
            "pause": make(SetBool, "/come/pause"),
        }
        self.peer.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.peer.node.create_subscription(Odometry, "/come/odometry", self._on_odometry, 100)
        self.peer.node.create_subscription(CameraInfo, "/come/depth/camera_info", self._on_frame, 100)

    def close(self) -> None:
        self.bar.close()
        self.peer.close()
        self._context.try_shutdown()

    # What the node says

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            self._status[status.name] = {v.key: v.value for v in status.values}
        if (counts := self._now()) and "come: input" in self._status:
            self.checks += 1
            self.unbalanced += counts["received"] != counts["used"] + counts["pending"] + sum(
                counts[r] for r in REASONS
            )

    def _on_frame(self, message: Any) -> None:
        self._frames += 1

    def _on_odometry(self, message: Any) -> None:
        sent = self._when.pop(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec, None)
        if sent is not None:
            self.latencies.append(time.monotonic() - sent)

    def _now(self) -> dict[str, int]:
        """Counts since the last configure."""
        status = self._status.get("come: input", {})
        names = {"received": "received", "used": "used", "pending": "pending", **{r: f"dropped_{r}" for r in REASONS}}
        return {name: int(status[key]) for name, key in names.items()} if "received" in status else {}

    @property
    def state(self) -> str:
        return self._status.get("come: inference", {}).get("state", "unknown")

    def totals(self) -> dict[str, int]:
        """Counts since the start. Without a model, the node still tells those of the time before."""
        now = self._now() if self.state in ("inactive", "active", "paused") else {}
        return {name: now.get(name, 0) + self._before.get(name, 0) for name in now or self._before}

    # Feeding and waiting

    def feed(self, seconds: float) -> None:
        """Images at the pace of the camera, for so long."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if now - self._begun >= self._next_sample:
                self._sample(now)
            if self.silent:
                time.sleep(min(0.05, max(0.0, end - now)))
                self._due = time.monotonic()
            elif now < self._due:
                time.sleep(min(self._due, end) - now)
            else:
                self._due = max(self._due + self.period, now - 10 * self.period)  # what is very late is left out
                self._send()

    def until(self, condition: Callable[[], Any], timeout_s: float, what: str) -> None:
        """Goes on feeding until `condition` holds. Raises TimeoutError."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end or not self.node.running():
                raise TimeoutError(f"waited for {what}; the node's log:\n{self.node.tail()}")
            self.feed(0.05)

    def ask(self, service: str, **request: Any) -> Any:
        client = self._services[service]
        self.until(client.service_is_ready, ANSWER_TIMEOUT_S, f"the service {service}")
        future = client.call_async(client.srv_type.Request(**request))
        self.until(future.done, ANSWER_TIMEOUT_S, f"the answer of {service}")
        if not future.result().success:
            raise RuntimeError(f"{service} {request} was refused; the node's log:\n{self.node.tail()}")

    def change(self, label: str) -> None:
        from lifecycle_msgs.msg import Transition

        self.ask("change_state", transition=Transition(label=label))

    def settled(self) -> None:
        """Nothing is sent any more, and nothing is pending."""
        self.silent = True
        self.feed(0.5)  # what is on its way
        seen = self.checks

        def at_rest() -> bool:
            return self.checks >= seen + 2 and self._now()["pending"] == 0 and self._now()["used"] == self._frames

        try:
            self.until(at_rest, 10.0, "the last results")
        except TimeoutError:
            if not self.node.running():
                raise
        self.configured.append((self._now()["used"], self._frames))

    def _send(self) -> None:
        from come_ros.ros import messages

        camera, index = self.camera, self._index
        self._index += 1
        last = len(self.frames) - 1  # there and back again
        picture = self.frames[last - abs(last - index % (2 * last))]
        if picture.shape[:2] != (camera.height, camera.width):
            import cv2

            picture = cv2.resize(picture, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
        stamp_ns = time.time_ns() + self.shift_ns
        head = messages.header(stamp_ns, camera.frame)
        image = messages.image_message(picture, head)
        if camera.encoding == "mono8":
            image.data, image.step = messages.payload(picture[..., 1]), camera.width
        image.encoding = camera.encoding
        if self._rng.random() < camera.damaged:
            damage = ("cut", "encoding", "size")[self._rng.integers(3)]
            image.data = image.data[: len(image.data) // 3] if damage == "cut" else image.data
            image.encoding = "sepia" if damage == "encoding" else image.encoding
            image.width = 0 if damage == "size" else image.width
        k = np.array([[280.0, 0, 159.5], [0, 280.0, 119.5], [0, 0, 1]]) * camera.width / 320
        k[2, 2] = 1.0
        self._when[stamp_ns] = time.monotonic()
        while len(self._when) > 2000:
            self._when.popitem(last=False)
        self.peer.camera_info.publish(messages.camera_info_message(k, camera.width, camera.height, head))
        self.peer.image.publish(image)
        self.sent += 1

    def _sample(self, now: float) -> None:
        self._next_sample = now - self._begun + self.sample_s
        recent, self._told = np.array(self.latencies[self._told :] or [NAN]) * 1e3, len(self.latencies)
        self.samples.append(
            Sample(
                now - self._begun,
                self.event,
                self.state,
                *held(self.node.pid),
                self.totals(),
                float(np.percentile(recent, 50)),
                float(np.percentile(recent, 95)),
            )
        )
        self.bar.set_description_str(self.event)
        self.bar.update(round(now - self._begun) - self.bar.n)

    # What happens

    def run(self, seconds: float, period_s: float, rounds: int, used: int) -> None:
        """EVENTS in turn, one every `period_s`, for so long, each at least `rounds` times, and until `used` images were used; then to the
        end of what is pending."""
        self.bar.total = round(seconds)
        self.until(lambda: self.state == "active", START_TIMEOUT_S, "the node to become active")
        self.until(lambda: self.peer.node.count_publishers("/come/odometry"), 10.0, "discovery")
        self._begun = self._due = time.monotonic()
        self._next_sample = 0.0
        self.samples.clear()
        for count, event in enumerate(itertools.cycle(EVENTS)):
            begun = time.monotonic()
            if begun - self._begun >= seconds and count >= rounds * len(EVENTS) and self.totals()["used"] >= used:
                break
            self.event = event.__name__
            event(self)
            self.feed(max(0.0, period_s - (time.monotonic() - begun)))
            if event is nothing and period_s > 4:
                self._measure_steadily(period_s)
            self.camera, self.silent = Camera(), False
        self.event = "end"
        self.settled()
        self._sample(time.monotonic())

    def _measure_steadily(self, seconds: float) -> None:
        begun, used = time.monotonic(), self._frames
        self.feed(seconds)
        self.steady.append((time.monotonic() - begun, self._frames - used))

    def count_again(self, before: dict[str, int]) -> None:
        """Counts begin at zero with the next configure. before: the totals so far."""
        self._before = before
        self._status.clear()
        self._frames = 0


def nothing(soak: Soak) -> None:
    """Images as they should be."""


def smaller_images(soak: Soak) -> None:
    soak.camera = replace(soak.camera, width=240, height=180)


def larger_images_of_another_encoding(soak: Soak) -> None:
    soak.camera = replace(soak.camera, width=424, height=240, encoding="bgr8")


def grey_images_of_another_frame(soak: Soak) -> None:
    soak.camera = replace(soak.camera, encoding="mono8", frame="other_optical_frame")


def damaged_images(soak: Soak) -> None:
    soak.camera = replace(soak.camera, damaged=0.3)


def silence(soak: Soak) -> None:
    soak.silent = True


def restart_of_the_camera(soak: Soak) -> None:
    """Its publishers go, and come again."""
    node, peer = soak.peer.node, soak.peer
    for name in ("image", "camera_info"):
        old = getattr(peer, name)
        kind, topic, qos = old.msg_type, old.topic_name, old.qos_profile
        node.destroy_publisher(old)
        setattr(peer, name, node.create_publisher(kind, topic, qos))


def time_jumps_back(soak: Soak) -> None:
    """As when a bag is played in a loop."""
    soak.shift_ns -= 30 * 10**9


def time_jumps_ahead(soak: Soak) -> None:
    soak.shift_ns += 20 * 10**9


def pause(soak: Soak) -> None:
    soak.ask("pause", data=True)
    soak.feed(0.5)
    soak.ask("pause", data=False)


def reset(soak: Soak) -> None:
    soak.ask("reset")


def deactivate_and_activate(soak: Soak) -> None:
    soak.change("deactivate")
    soak.feed(0.3)
    soak.change("activate")


def cleanup_and_configure(soak: Soak) -> None:
    soak.settled()
    soak.change("deactivate")
    before = soak.totals()
    soak.change("cleanup")
    soak.count_again(before)
    soak.change("configure")
    soak.change("activate")
    soak.until(lambda: soak.peer.node.count_publishers("/come/odometry"), 10.0, "discovery")
    soak.feed(0.5)
    soak.silent = False


EVENTS: tuple[Callable[[Soak], None], ...] = (
    nothing, smaller_images, damaged_images, pause, time_jumps_back, larger_images_of_another_encoding, deactivate_and_activate, silence,
    reset, grey_images_of_another_frame, restart_of_the_camera, time_jumps_ahead, cleanup_and_configure,
)  # fmt: skip


def held(pid: int) -> tuple[float, int, int, int]:
    """Resident memory in MiB, threads, open files, and mapped segments of DDS shared memory of a process."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    mapped = {
        line.split()[-1]
        for line in (process / "maps").read_text().splitlines()
        if re.search("/dev/shm/(fastdds|fastrtps)_", line)
    }
    return int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), len(os.listdir(process / "fd")), len(mapped)


def offline_rate(bag: Path, out: Path) -> float:
    """Frames used per second by `come_ros bag`, which loses none."""
    command = [sys.executable, "-m", "come_ros.tools.cli", "bag", str(bag), "-o", str(out), "--no-bag", "--overwrite"]
    subprocess.run([*command, "--set", "keyframe.mode=every"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return float(json.loads((out / "metrics.json").read_text())["timings"]["frames_used_per_s"])


def slope(samples: list[Sample]) -> tuple[float, float]:
    """Growth of the resident memory while active, MiB/h, and its standard error."""
    t, rss = np.array([(s.t / 3600, s.rss) for s in samples if s.state == "active"]).T
    (rate, _), covariance = np.polyfit(t, rss, 1, cov=True)
    return float(rate), float(math.sqrt(covariance[0, 0]))


def growth(samples: list[Sample], name: str) -> float:
    """How much the median of the last quarter is above that of the first, while active."""
    values = [getattr(s, name) for s in samples if s.state == "active"]
    quarter = max(1, len(values) // 4)
    return float(np.median(values[-quarter:]) - np.median(values[:quarter]))


def summary(soak: Soak, offline: list[float], seconds: float, stop: tuple[float, int]) -> dict[str, Any]:
    """Figures, and each bound: [name, value, relation, bound, whether it holds]."""
    warm_up = min(240.0, 0.25 * seconds)
    warm = [s for s in soak.samples if s.t >= warm_up]
    counts, latency = soak.totals(), np.array(soak.latencies) * 1e3
    p50, p95, p99 = (float(np.percentile(latency, p)) for p in (50, 95, 99))
    bounds: list[tuple[str, float, str, float]] = [
        ("diagnostics whose counts do not add up", soak.unbalanced, "<=", 0),
        ("frames pending at the end", counts["pending"], "<=", 0),
        (
            "frames used that were not published, or the reverse",
            sum(abs(u - o) for u, o in soak.configured),
            "<=",
            0,
        ),
        ("growth of threads", growth(warm, "threads"), "<=", 0),
        ("growth of open files", growth(warm, "files"), "<=", 2),
        ("growth of mapped DDS segments", growth(warm, "segments"), "<=", 0),
        ("latency p99, ms", p99, "<", 1e3 * Config().max_data_age),
        ("exit code of the node", stop[1], "<=", 0),
        ("s from SIGINT to its end", stop[0], "<", 3.0),
    ]
    result: dict[str, Any] = {
        "seconds": round(soak.samples[-1].t, 1), "warm_up_s": warm_up, "image_size": SIZE, "sent": soak.sent, "counts": counts,
        "diagnostics_checked": soak.checks, "configured_times": len(soak.configured),
        "latency_ms": {"p50": p50, "p95": p95, "p99": p99, "messages": len(latency)},
        "rss_mib": {"first": warm[0].rss, "last": warm[-1].rss, "most": max(s.rss for s in soak.samples)},
        "stop_s": round(stop[0], 2),
    }  # fmt: skip
    if len(warm) > 3:
        rate, error = slope(warm)
        result["rss_mib_per_h"] = {"rate": round(rate, 2), "standard_error": round(error, 2)}
        if seconds >= LEAST_FOR_SLOPE_S:
            bounds.append(("growth of memory after warm-up, MiB/min", rate / 60, "<", 1.0))
    if soak.steady and offline:
        live = sum(used for _, used in soak.steady) / sum(span for span, _ in soak.steady)
        result["used_per_s"] = {"live": round(live, 2), "offline_before_and_after": [round(r, 2) for r in offline]}
        bounds.append(("frames used per s, of those of the offline tool", live / float(np.mean(offline)), ">=", 0.8))
    result["bounds"] = [
        [n, round(v, 4), r, b, v < b if r == "<" else v <= b if r == "<=" else v >= b] for n, v, r, b in bounds
    ]
    result["ok"] = all(bound[-1] for bound in result["bounds"])
    result["machine"] = (
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[2]:.1f} over the last 15 min"
    )
    return result


def markdown(result: dict[str, Any]) -> str:
    counts, latency = result["counts"], result["latency_ms"]
    dropped = ", ".join(f"{counts[r]} {r}" for r in REASONS if counts[r])
    lines = [
        "# Soak", "",
        f"Made by `python test/benchmark/robustness/soak.py`: {result['seconds'] / 60:.1f} minutes, {result['backbone']} backbone, "
        f"images of {result['image_size']} at {result['hz']:.1f} Hz. {result['machine']}.", "",
        f"- {result['sent']} images sent, {counts['received']} received, {counts['used']} used, dropped: {dropped}",
        f"- latency to the odometry p50 {latency['p50']:.0f}, p95 {latency['p95']:.0f}, p99 {latency['p99']:.0f} ms "
        f"({latency['messages']} messages)",
        f"- resident memory {result['rss_mib']['first']:.0f} MiB after {result['warm_up_s']:.0f} s, {result['rss_mib']['last']:.0f} at "
        f"the end, {result['rss_mib']['most']:.0f} at most",
    ]  # fmt: skip
    if result["load_before"] > 0.5 * (os.cpu_count() or 1):
        text = "had other work when this began: rates and latencies say little"
        lines.append(f"- **the machine** (load {result['load_before']:.1f}) **{text}**")
    if "rss_mib_per_h" in result:
        fit = result["rss_mib_per_h"]
        lines.append(f"- growth of memory {fit['rate']:.1f} +- {fit['standard_error']:.1f} MiB/h")
    if "used_per_s" in result:
        rates = result["used_per_s"]
        lines.append(
            f"- used per s {rates['live']:.1f}; offline, before and after: {rates['offline_before_and_after']}"
        )
    lines += ["", "| bound | measured | | allowed | holds |", "|---|---|---|---|---|"]
    lines += [f"| {n} | {v:g} | {r} | {b:g} | {'yes' if ok else '**NO**'} |" for n, v, r, b, ok in result["bounds"]]
    return "\n".join([*lines, "", f"**{'PASS' if result['ok'] else 'FAIL'}**", ""])


def draw(samples: list[Sample], result: dict[str, Any], path: Path) -> None:
    from come_ros.tools.report.figures import pyplot

    plt = pyplot()

    t = np.array([s.t for s in samples]) / 60
    figure, axes = plt.subplots(5, 1, sharex=True, figsize=(11, 11), gridspec_kw={"height_ratios": [2, 1.5, 2, 2, 2]})
    axes[0].plot(t, [s.rss for s in samples], lw=1, label="resident memory")
    if "rss_mib_per_h" in result:
        warm = [s for s in samples if s.t >= result["warm_up_s"] and s.state == "active"]
        x = np.array([s.t for s in warm]) / 60
        fit, rate = np.polyfit(x, [s.rss for s in warm], 1), result["rss_mib_per_h"]["rate"]
        axes[0].plot(x, np.polyval(fit, x), color="tab:red", label=f"{rate:.1f} MiB/h after warm-up, while active")
    axes[0].set_ylabel("MiB")
    for name, label in (("threads", "threads"), ("files", "open files"), ("segments", "DDS segments")):
        axes[1].plot(t, [getattr(s, name) for s in samples], lw=1, label=label)
    axes[1].set_ylabel("number")
    for name in ("p50", "p95"):
        axes[2].plot(t, [getattr(s, name) for s in samples], ".-", ms=2, lw=0.7, label=f"latency {name}")
    axes[2].set(ylabel="ms", yscale="log")
    spans = np.diff([s.t for s in samples])
    for axis, names in ((axes[3], ("received", "used")), (axes[4], REASONS)):
        for name in names:
            # while there is no model, the node has no counts of it
            counts = np.maximum.accumulate([s.counts.get(name, 0) for s in samples])
            if counts.any():
                axis.plot(t[1:], np.diff(counts) / spans, lw=1, label=name)
    axes[3].set_ylabel("images/s")
    axes[4].set(ylabel="dropped/s", yscale="symlog", xlabel="minutes")
    for before, sample in itertools.pairwise(samples):
        if sample.event != before.event and sample.event == "cleanup_and_configure":
            for axis in axes:
                axis.axvline(sample.t / 60, color="grey", lw=0.6, ls=":")
    for axis in axes:
        axis.legend(loc="upper right", fontsize=8, ncols=4)
    axes[0].set_title(f"{result['backbone']}, {result['hz']:.0f} images/s; dotted: freed and loaded again", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--period", type=float, default=8.0, help="s from one event to the next (default %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often each event happens at least (default %(default)s)"
    )
    parser.add_argument(
        "--used",
        type=int,
        default=0,
        help="go on until so many images were used, however slow the machine (default %(default)s)",
    )
    parser.add_argument("--backbone", default="vggt", help="vggt, the bundled model, or fake (default %(default)s)")
    parser.add_argument(
        "--hz",
        type=float,
        default=0.0,
        help="images per second; 0: twice what the offline tool uses, or 30 for the fake one",
    )
    parser.add_argument("--sample", type=float, default=3.0, help="s between two samples (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    from come_ros.datasets.rosbag import Bag

    with tempfile.TemporaryDirectory() as folder:
        scratch, seconds, offline, load = Path(folder), 60 * options.minutes, [], os.getloadavg()[0]
        environment = live_environment(scratch)
        os.environ.update(environment)  # before this process meets DDS
        if options.backbone == "fake":  # which takes no time, and sees nothing
            from ros.live_node import picture

            frames, hz = [picture(i) for i in range(IMAGES)], options.hz or FAKE_HZ
        else:
            bag = render_room(scratch / "input", SEED, IMAGES, SIZE)
            with Bag(bag) as source:
                frames = [frame.image for frame in source.iter_frames()]
            offline.append(offline_rate(bag, scratch / "before"))
            hz = options.hz or 2 * offline[0]
        with Processes(environment, scratch) as processes:
            arguments = {
                "backbone": options.backbone,
                "keyframe.mode": "every",
                "diagnostics.period": min(1.0, options.period / 4),
            }
            given = [word for name, value in arguments.items() for word in ("-p", f"{name}:={value}")]
            node = processes.start("node", "come_ros.ros.main", "--ros-args", *given)
            soak = Soak(node, frames, hz, min(options.sample, options.period))
            try:
                soak.run(seconds, options.period, options.rounds, options.used)
            finally:
                soak.close()
            stop = node.stop(signal.SIGINT)
        if offline:
            offline.append(offline_rate(bag, scratch / "after"))
    result = {"backbone": options.backbone, "hz": hz, "load_before": load, **summary(soak, offline, seconds, stop)}
    series = [{**vars(s), "counts": {k: v for k, v in s.counts.items() if v}} for s in soak.samples]
    lines = ",\n  ".join(json.dumps(_rounded(s)) for s in series)
    content = json.dumps(result, indent=1)[:-2] + f',\n "samples": [\n  {lines}\n ]\n}}\n'
    weights = () if options.backbone == "fake" else TINY
    write_result(
        options.out, "soak", content, markdown(result), lambda p: draw(soak.samples, result, p), weights=weights
    )
    print(markdown(result))
    return int(not result["ok"])


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON allows: no NaN."""
    rounded = {k: round(v, 1) if isinstance(v, float) else v for k, v in values.items()}
    return {k: None if v != v else v for k, v in rounded.items()}


if __name__ == "__main__":
    sys.exit(main())
