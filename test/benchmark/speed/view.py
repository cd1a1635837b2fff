"""What the 3D view costs the browser at 0.3 and 2 million points, served by `come_ros view` and as the folder of `--save`.

    python test/benchmark/speed/view.py [--points 300000 2000000] [--seconds 8] [--pictures out/view]       about five minutes

The points are those of a rendered room, seen by a camera that walks through it, in a folder of results as `come_ros bag` writes it. A
headless Chromium opens the page, which is then turned with the mouse. A frame counts when the graphics library says that it is complete
(a fence), and holds as many points as the page asks it to draw; nothing is counted while the page rests, because it does not draw then.
Without a GPU, Chromium draws in software (SwiftShader), which is what such machines show: the name of the renderer is in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.stamped import write_result  # noqa: E402
from browser import Browser, installed  # noqa: E402

from come_ros.datasets.bag_writer import BagWriter  # noqa: E402
from come_ros.datasets.rooms.rooms import SyntheticSequence, render_sequence  # noqa: E402
from come_ros.files import write_ply, write_tum  # noqa: E402
from come_ros.geometry import apply, unproject  # noqa: E402
from come_ros.outputs.cloud import points_of  # noqa: E402
from come_ros.outputs.frames_file import FRAMES, PlacedFrames, write_frames  # noqa: E402

RESULTS = Path(__file__).with_name("results")
SEED, KEYFRAMES, SIZE = 20_000_950, 100, (320, 240)
WINDOW = (1280, 800)
PLACE, REACH = (700, 420), 160  # px, of the mouse that turns the view
SETTLE_S = 10.0  # after a turn, so that all points that are drawn at rest are
GROWN_MS = 8000  # without more points in a frame, after which all that are shown at first have come
COME_ROS = (sys.executable, "-m", "come_ros.tools.cli")
COUNTED = """(() => {
  const count = window.__drawn = {frames: 0, points: 0, most: 0, first: 0, grown: 0, times: []};
  const prototype = WebGL2RenderingContext.prototype, draw = prototype.drawArrays;
  let points = 0;
  prototype.drawArrays = function (mode, first, number) {
    draw.call(this, mode, first, number);
    if (mode !== this.POINTS) return;
    if (!points) Promise.resolve().then(() => {
      const drawn = points, fence = this.fenceSync(this.SYNC_GPU_COMMANDS_COMPLETE, 0);
      points = 0;
      this.flush();
      const look = () => {
        if (this.getSyncParameter(fence, this.SYNC_STATUS) !== this.SIGNALED) { setTimeout(look, 4); return; }
        this.deleteSync(fence);
        const now = performance.now();
        count.frames++; count.points = drawn; count.times.push(now); count.first = count.first || now;
        if (drawn > count.most) { count.most = drawn; count.grown = now; }
      };
      setTimeout(look, 0);
    });
    points += number;
  };
})()"""
"""Counts complete frames with points, and the points in each."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[300_000, 2_000_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=8.0, help="how long the view is turned")
    parser.add_argument("--out", type=Path, default=Path("out/view_speed"))
    parser.add_argument("--pictures", type=Path, help="folder for a screenshot of each case")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    chromium = installed()
    if chromium is None:
        print("view.py: there is no Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    load, about, rows = os.getloadavg()[0], {}, []
    room = render_sequence(SEED, KEYFRAMES, *SIZE)
    for points in options.points:
        folder = results_with(options.out / f"{points}", room, points)
        for kind in options.kinds:
            with KINDS[kind](folder, points) as (url, prepared), Browser(chromium, *WINDOW, before=COUNTED) as browser:
                row = measured(browser, url, options.seconds)
                about = {"chromium": browser.version, "renderer": renderer(browser), "window": WINDOW}
                if options.pictures:
                    options.pictures.mkdir(parents=True, exist_ok=True)
                    browser.picture(options.pictures / f"{kind}_{points}.png")
                row["errors"] = list(browser.errors)
            rows.append({"points": points, "kind": kind, **prepared, **row})
            print(json.dumps(rows[-1]), flush=True)
    result = {"cores": len(os.sched_getaffinity(0)), "load_before": round(load, 2), **about, "rows": rows}
    text = markdown(result)
    print(text)
    write_result(options.results, "view", result, text)
    shutil.rmtree(options.out)
    return 0


def results_with(folder: Path, room: SyntheticSequence, points: int) -> Path:
    """A folder of results of that room, with true depth and poses, and a map of so many points."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stamps = [int(stamp) for stamp in room.stamps_ns]
    small = room.depth[:, ::2, ::2]
    camera = np.diag([0.5, 0.5, 1.0]) @ room.intrinsics
    rng, parts = np.random.default_rng(0), []
    with BagWriter(folder / "output") as bag:
        for i, stamp in enumerate(stamps):
            head = bag.messages.header(stamp, "camera_optical_frame")
            sure = (1 / (1 + small[i])).astype(np.float32)
            height, width = small[i].shape
            bag.put("/come/depth/camera_info", bag.messages.camera_info(camera, width, height, head), stamp)
            bag.put("/come/depth/image", bag.messages.depth(small[i], head), stamp)
            bag.put("/come/rgb/image_rect", bag.messages.image(room.images[i, ::2, ::2], head), stamp)
            bag.put("/come/confidence", bag.messages.depth(sure, head), stamp)
            rows = rng.permutation(room.depth[i].size)[: -(-points // len(stamps))]
            seen = unproject(room.depth[i], room.intrinsics).reshape(-1, 3)[rows]
            places = apply(room.world_from_camera[i], seen).astype(np.float32)
            parts.append(points_of(places, room.images[i].reshape(-1, 3)[rows], 1 / (1 + seen[:, 2])))
    poses = dict(zip(stamps, room.world_from_camera, strict=True))
    write_frames(
        folder / FRAMES, PlacedFrames({t: (p, 1.0) for t, p in poses.items()}, "map frame", "lengths in metres", poses)
    )
    write_tum(folder / "trajectory_map.tum", poses, "lengths in metres")
    write_tum(folder / "trajectory.tum", poses)
    write_ply(folder / "map.ply", np.concatenate(parts)[:points], "lengths in metres", "map frame")
    return folder


@contextmanager
def served(folder: Path, points: int) -> Iterator[tuple[str, dict[str, float]]]:
    """`come_ros view`: its address once it answers, and what it took until then."""
    begun = time.monotonic()
    with subprocess.Popen(
        [*COME_ROS, "view", str(folder), "--port", "0", "--json", "--quiet", "--max-points", str(points)],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            text = ""
            while "}" not in text:
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError("come_ros view ended")
                text += line
            of = psutil.Process(process.pid)
            prepared = {"prepare_s": time.monotonic() - begun, "prepare_cpu_s": sum(of.cpu_times()[:2])}
            yield json.loads(text)["url"], prepared
            prepared["server_mb"] = of.memory_info().rss / 1e6
        finally:
            process.terminate()


@contextmanager
def saved(folder: Path, points: int) -> Iterator[tuple[str, dict[str, float]]]:
    """`come_ros view --save`: the address of the page, what writing it took, and its size."""
    page, begun = folder / "page", time.monotonic()
    before = os.times()
    command = [*COME_ROS, "view", str(folder), "--save", str(page), "--quiet", "--max-points", str(points)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    yield (
        (page / "index.html").resolve().as_uri(),
        {
            "prepare_s": time.monotonic() - begun,
            "prepare_cpu_s": cpu,
            "page_mb": (page / "index.html").stat().st_size / 1e6,
        },
    )


KINDS = {"served": served, "folder": saved}


def measured(browser: Browser, url: str, seconds: float) -> dict[str, Any]:
    """Seconds until the first points, and the last of those that are shown at first, are drawn; frames while the view is turned, after a
    first turn from which the page learns how fast the browser draws."""
    browser.open(url)
    browser.wait_for(f"window.__drawn?.frames && performance.now() - __drawn.grown > {GROWN_MS}", 300)
    out = {"first_s": browser.evaluate("__drawn.first") / 1000, "loaded_s": browser.evaluate("__drawn.grown") / 1000}
    out["loaded_points"] = browser.evaluate("__drawn.most")
    browser.press(" ", "Space")  # a replay stops
    browser.drag(PLACE, REACH, seconds)
    time.sleep(SETTLE_S)
    browser.evaluate("__drawn.times = []")
    before, cpu = browser.evaluate("__drawn.frames"), browser.cpu_s()
    took = browser.drag(PLACE, REACH, seconds)
    frames, times = browser.evaluate("__drawn.frames") - before, browser.evaluate("__drawn.times")
    out |= {
        "frames_per_s": frames / took, "worst_frame_ms": float(np.diff(times).max()) if frames > 1 else None,
        "cpu_ms_per_frame": 1000 * (browser.cpu_s() - cpu) / max(1, frames), "turned_points": browser.evaluate("__drawn.points"),
    }  # fmt: skip
    time.sleep(SETTLE_S)
    out["rest_points"] = browser.evaluate("__drawn.points")
    return out | {f"{name}_mb": value for name, value in browser.memory_mb().items()}


def renderer(browser: Browser) -> str:
    """What draws, as WebGL says."""
    return str(
        browser.evaluate(
            "(() => { const gl = document.createElement('canvas').getContext('webgl2'); "
            "return gl.getParameter(gl.getExtension('WEBGL_debug_renderer_info').UNMASKED_RENDERER_WEBGL); })()"
        )
    )


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['chromium']}, window {result['window'][0]} x {result['window'][1]}, renderer: {result['renderer']}. "
        f"{result['cores']} cores, load before {result['load_before']}.",
        "",
        "| points | page | ready after, s (CPU) | first points, s | points shown at first: after, s | frames per s while turned "
        "| worst frame, ms | CPU ms a frame | points in a frame while turned, at rest "
        "| browser's memory, MB: JavaScript, tab, GPU process | server or page, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        size = f"server {r['server_mb']:.0f}" if "server_mb" in r else f"page {r['page_mb']:.1f}"
        worst = "-" if r["worst_frame_ms"] is None else f"{r['worst_frame_ms']:.0f}"
        cells = [
            f"{r['points']:,}", r["kind"], f"{r['prepare_s']:.1f} ({r['prepare_cpu_s']:.1f})", f"{r['first_s']:.1f}",
            f"{r['loaded_points']:,}: {r['loaded_s']:.1f}",
            f"{r['frames_per_s']:.1f}", worst, f"{r['cpu_ms_per_frame']:.0f}", f"{r['turned_points']:,}, {r['rest_points']:,}",
            f"{r['heap_mb']:.0f}, {r['renderer_mb']:.0f}, {r['gpu_mb']:.0f}", size,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
