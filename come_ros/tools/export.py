"""Writes results in the formats of other programs.

DIR is the output folder of `come_ros bag` or `come_ros demo`, a folder that ~/save_map wrote, or a recording of the node. Poses and
depth are those of the map where it is known, as its loops corrected them, else those of the odometry. Lengths are metres where the run knew
them, else in the model's own unit; export.json and comments in the files say which, and from what. It is written whole or not at all.

FORMAT is one or more of:
{formats}
  all         everything above that the results hold and this machine can write

examples:
  come_ros export out --to transforms -o out/nerf       ns-train splatfacto --data out/nerf
  come_ros export out --to colmap -o out/colmap         images/ and sparse/0, for gsplat and COLMAP
  come_ros export out --to depth confidence -o arrays   16-bit PNG and float NPZ of each frame
  come_ros export out --to tum kitti -o paths           evo_traj tum paths/trajectory.tum
  come_ros export out --to glb mesh -o scene            opens in Blender, MeshLab and browsers
  come_ros export out --to ply pcd -o cloud --voxel 0.05
  come_ros export ~/.ros/come_ros/2026-01-01T12-00-00.000000 --to all -o export
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from ..errors import ConfigError
from ..exports.formats import ALL, FORMATS, names_of
from ..files import shown
from .result import print_result

assert __doc__ is not None
__doc__ = __doc__.replace("{formats}", "\n".join(f"  {name:11} {f.doc}" for name, f in FORMATS.items()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="DIR", help="results of come_ros bag or demo, a saved map, or a recording")
    parser.add_argument(
        "--to", metavar="FORMAT", nargs="+", required=True, choices=[*FORMATS, ALL], help="what to write, see above"
    )
    parser.add_argument(
        "-o", "--output", dest="out", required=True, metavar="OUT", help="output folder; created if missing"
    )
    parser.add_argument("--every", metavar="N", type=int, default=1, help="every Nth frame only")
    parser.add_argument(
        "--voxel", metavar="EDGE", type=float, default=0.0,
        help="edge of the voxels of cloud and mesh, in the unit of the results (default: the cloud as it was saved; the mesh 1 %% of the "
        "median depth)",
    )  # fmt: skip
    parser.add_argument("--node", default="/come", help="full name of the node in a recording (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace these files in OUT; others are kept")


def run(options: argparse.Namespace) -> int:
    """Returns 0. Raises ComeRosError."""
    if options.every < 1:
        raise ConfigError(f"--every is {options.every}, but must be 1 or more")
    if not 0 <= options.voxel < float("inf"):
        raise ConfigError(f"--voxel is {options.voxel:g}, but must be 0 or a positive length")
    from ..exports.export import available, write_exports
    from ..results import open_results
    from .report.results import ResultFolder

    results = open_results(options.results, options.node)
    formats = available(results) if ALL in options.to else list(dict.fromkeys(options.to))
    with ExitStack() as stack:
        folder = stack.enter_context(ResultFolder(Path(options.out), names_of(formats), options.overwrite))
        made = write_exports(results, formats, folder.path, options.every, options.voxel)
        folder.reserve.release()
        folder.publish()
    lines = [
        f"{made['frames']} frames, {made['poses']} poses of {results.kind} {shown(results.path)}, in the {results.world}; {made['unit']}"
    ]
    if "points" in made:
        lines.append(f"cloud of {made['points']} points")
    if "mesh" in made:
        lines.append("mesh of {vertices} vertices, {triangles} triangles, voxels of {voxel:.4g}".format(**made["mesh"]))
    if results.remark:
        lines.append(f"note: {results.remark}")
    lines.append(f"{', '.join(names_of(formats))} in {shown(options.out)}")
    print_result(options, {**made, "folder": str(options.out), "files": names_of(formats)}, "\n".join(lines))
    return 0
