"""Writes results in the formats of other programs: nerfstudio, gsplat, COLMAP, evo, KITTI, CloudCompare, Blender, Open3D.

from come_ros.exports.export import write_exports
write_exports(open_results("out"), ["transforms", "glb"], Path("folder"))
"""
