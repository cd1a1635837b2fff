"""A map before and after loop closures, seen from above: the same keyframes where odometry has them, and where the graph has them.

    python test/benchmark/accuracy/map_picture.py [--seed 20000900] [--images 300] [--out FOLDER]

A room of the test split, walked there and back, goes through the pipeline and the bundled model as in `come_ros bag`. The points are those
that a saved map holds. Writes results/map_before_after.png and .json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from benchmark.accuracy.relocalise import Pipelines, world_from_map  # noqa: E402
from benchmark.stamped import TINY, write_result  # noqa: E402

from come_ros.datasets.rooms.returning import returning_room  # noqa: E402
from come_ros.mapping.graph import Similarities  # noqa: E402
from come_ros.mapping.mapper import Mapper  # noqa: E402
from come_ros.mapping.saved_map import SavedMap  # noqa: E402
from come_ros.outputs.cloud import trusted_mask  # noqa: E402
from come_ros.types import F64, Frame  # noqa: E402

RESULTS = Path(__file__).with_name("results")
HEIGHTS_M = 0.3, 1.9  # above the lowest point: neither floor nor ceiling


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=20_000_900)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    room = returning_room(options.seed, options.images)
    frames = [
        Frame(image, int(stamp), "camera_optical_frame", room.intrinsics)
        for image, stamp in zip(room.images, room.stamps_ns, strict=True)
    ]
    real = {int(s): p for s, p in zip(room.stamps_ns, room.world_from_camera, strict=True)}
    pipelines, mapper = Pipelines(), Mapper(False, 2000)
    for submap in pipelines.submaps(frames)[0]:
        for row in range(len(submap)):
            mapper.add(submap, row, lambda s, r: trusted_mask(s.depth[r], s.confidence[r], pipelines.config))
    after = mapper.save("bundled", float("nan"), float("nan"), float("nan"))
    assert after is not None
    odometry = Similarities.of(np.stack([k.odom_from_camera for k in after.keyframes]))
    before = SavedMap(after.keyframes, odometry, after.edges, after.places)
    parts = {"odometry, before loop closures": before, "the map, after them": after}
    drawn = {name: placed(part, real) for name, part in parts.items()}
    data = {
        "seed": options.seed, "images": options.images, "keyframes": len(after.keyframes), "loops": mapper.counts.accepted,
        **{f"rmse_m, {name}": float(np.sqrt((d["off"] ** 2).mean())) for name, d in drawn.items()},
        **{f"end_m, {name}": float(d["off"][-1]) for name, d in drawn.items()},
    }  # fmt: skip
    print(data)
    write_result(options.out, "map_before_after", data, draw=lambda path: draw(path, drawn, data), weights=TINY)
    return 0


def placed(part: SavedMap, real: dict[int, F64]) -> dict[str, Any]:
    """Points and path in metres, in the frame of the truth."""
    world = world_from_map(part, real)
    points, colours = [], []
    for keyframe, node in zip(part.keyframes, part.nodes.matrices(), strict=True):
        assert keyframe.thumbnail is not None
        places, rgb = keyframe.thumbnail.points()
        both = world @ node
        points.append(places @ both[:3, :3].T + both[:3, 3])
        colours.append(rgb)
    path = part.nodes.translation @ world[:3, :3].T + world[:3, 3]
    truth = np.stack([real[k.stamp_ns][:3, 3] for k in part.keyframes])
    return {
        "points": np.concatenate(points), "colours": np.concatenate(colours), "path": path, "truth": truth,
        "off": np.linalg.norm(path - truth, axis=1),
    }  # fmt: skip


def draw(path: Path, drawn: dict[str, dict[str, Any]], data: dict[str, Any]) -> None:
    import matplotlib
    from PIL import Image

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 5), sharex=True, sharey=True)
    for axis, (name, d) in zip(axes, drawn.items(), strict=True):
        points = d["points"]
        low = np.percentile(points[:, 2], 1)
        between = np.flatnonzero((points[:, 2] > low + HEIGHTS_M[0]) & (points[:, 2] < low + HEIGHTS_M[1]))
        some = np.random.default_rng(0).permutation(between)[:60_000]
        axis.scatter(*points[some, :2].T, s=0.4, c=d["colours"][some] / 255.0, linewidths=0, rasterized=True)
        axis.plot(*d["truth"][:, :2].T, color="white", lw=2.6)
        axis.plot(*d["truth"][:, :2].T, color="black", lw=0.9, label="truth")
        axis.plot(*d["path"][:, :2].T, color="red", lw=1.2, label="keyframes")
        axis.plot(*d["path"][-1, :2], "o", color="red", ms=4)
        axis.set_aspect("equal")
        axis.set_title(f"{name}\nRMSE {data[f'rmse_m, {name}']:.3f} m, end {data[f'end_m, {name}']:.3f} m", fontsize=9)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7, loc="upper right")
    low, high = (
        np.percentile(np.concatenate([d["points"][:, :2] for d in drawn.values()]), q, axis=0) for q in (1, 99)
    )
    axes[0].set_xlim(low[0] - 0.3, high[0] + 0.3)
    axes[0].set_ylim(low[1] - 0.3, high[1] + 0.3)
    figure.suptitle(
        f"room {data['seed']}, {data['keyframes']} keyframes, {data['loops']} loops closed; from above, m", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    with Image.open(path) as image:  # a third of the size, and no difference to be seen
        small = image.convert("RGB").quantize(64)
    small.save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
