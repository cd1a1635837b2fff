"""Each format is read back by a program that is not ours: counts, poses and axes are those of the results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import made_results as made
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install '.[tools]'")
pytest.importorskip("mcap", reason="mcap is not installed: pip install '.[tools]'")

from come_ros.datasets.sequence import open_sequence
from come_ros.errors import OutputError
from come_ros.exports import arrays, export
from come_ros.exports.formats import FORMATS, names_of
from come_ros.outputs.cloud import colours_of
from come_ros.tools import cli

COUNT = 4
PIXELS = np.stack(np.meshgrid(np.arange(made.WIDTH), np.arange(made.HEIGHT)), axis=-1)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.bag_results(tmp_path_factory.mktemp("made") / "out", COUNT)


@pytest.fixture(scope="module")
def out(results: Path) -> Path:
    """Everything but the mesh."""
    folder = results.parent / "export"
    formats = [name for name in FORMATS if name != "mesh"]
    assert cli.main(["export", str(results), "--to", *formats, "-o", str(folder)]) == 0
    return folder


def on_the_wall(i: int) -> tuple[Any, Any]:
    """Points (n, 3) of frame `i` in the map, and where its image has them (n, 2), pixel centres at whole numbers; from the geometry that
    the results were made of."""
    known = np.isfinite(made.depth(i))
    u, v = PIXELS[known].T
    z = made.depth(i)[known].astype(np.float64)
    seen = np.stack([(u - made.K[0, 2]) / made.K[0, 0] * z, (v - made.K[1, 2]) / made.K[1, 1] * z, z], axis=-1)
    return seen @ made.pose(i)[:3, :3].T + made.pose(i)[:3, 3], PIXELS[known]


def test_nothing_but_what_was_asked_for_is_written(out: Path) -> None:
    assert sorted(p.name for p in out.iterdir()) == sorted(names_of(name for name in FORMATS if name != "mesh"))
    about = json.loads((out / "export.json").read_text())
    assert (about["unit"], about["metres"], about["world"]) == (made.METRES, True, "map frame")
    assert [f["stamp_ns"] for f in about["frames"]] == made.stamps(COUNT)
    np.testing.assert_allclose(about["frames"][2]["world_from_camera"], made.pose(2), atol=1e-8)
    assert about["frames"][0]["fx_fy_cx_cy"] == [30.0, 31.0, 15.0, 12.5]


def test_depth_images_and_confidence(out: Path) -> None:
    about = json.loads((out / "export.json").read_text())["depth_png"]
    assert about == {"unit_per_value": 0.001, "unknown": 0}
    for i in range(COUNT):
        name = f"frame_{i:05d}"
        raw = np.asarray(Image.open(out / "depth" / f"{name}.png"))
        assert raw.dtype in (np.uint16, np.int32) and raw.shape == (made.HEIGHT, made.WIDTH)
        np.testing.assert_array_equal(raw == 0, np.isnan(made.depth(i)))
        known = raw > 0
        np.testing.assert_allclose(raw[known] * 0.001, made.depth(i)[known], atol=0.000501)
        with np.load(out / "depth" / f"{name}.npz") as found:
            np.testing.assert_allclose(found["depth"], made.depth(i), rtol=1e-6)
            np.testing.assert_allclose(found["world_from_camera"], made.pose(i), atol=1e-8)
            np.testing.assert_array_equal(found["intrinsics"], made.K)
            assert found["depth"].dtype == np.float32 and found["stamp_ns"] == made.stamps(COUNT)[i]
        with np.load(out / "confidence" / f"{name}.npz") as found:
            np.testing.assert_array_equal(found["confidence"], made.confidence(i))
        np.testing.assert_array_equal(np.asarray(Image.open(out / "images" / f"{name}.png")), made.picture(i))


def test_transforms_have_the_axes_of_opengl(out: Path) -> None:
    about = json.loads((out / "transforms.json").read_text())
    assert len(about["frames"]) == COUNT and (out / about["ply_file_path"]).is_file()
    for i, frame in enumerate(about["frames"]):
        assert (out / frame["file_path"]).is_file() and (out / frame["depth_file_path"]).is_file()
        places, pixels = on_the_wall(i)
        x, y, z = (np.linalg.inv(frame["transform_matrix"]) @ np.c_[places, np.ones(len(places))].T)[:3]
        assert (z < 0).all()  # the camera looks along -z, y is up
        u, v = frame["cx"] + frame["fl_x"] * x / -z, frame["cy"] - frame["fl_y"] * y / -z
        np.testing.assert_allclose(np.stack([u, v], -1), pixels + 0.5, atol=1e-4)
    with open_sequence(out) as again:  # our own reader as well
        assert len(list(again.iter_frames())) == COUNT
        poses = np.stack(list(again.truth().values()))
    np.testing.assert_allclose(poses, [made.pose(i) for i in range(COUNT)], atol=1e-7)


def test_pycolmap_reads_the_model(out: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed: pip install '.[test]'")
    model = pycolmap.Reconstruction(str(out / "sparse" / "0"))
    assert (model.num_images(), model.num_cameras()) == (COUNT, 1)
    assert model.num_points3D() == len(made.cloud(COUNT))
    for i in range(COUNT):
        image = model.images[i + 1]
        assert image.name == f"frame_{i:05d}.png" and (out / "images" / image.name).is_file()
        places, pixels = on_the_wall(i)
        camera_from_world = image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world
        np.testing.assert_allclose(camera_from_world.matrix()[:3], np.linalg.inv(made.pose(i))[:3], atol=1e-7)
        for place, pixel in zip(places[::50], pixels[::50], strict=True):
            np.testing.assert_allclose(image.project_point(place), pixel + 0.5, atol=1e-4)
    first = model.points3D[1]
    np.testing.assert_allclose(first.xyz, [made.cloud(COUNT)[0][a] for a in "xyz"], rtol=1e-5)
    assert first.color.tolist() == colours_of(made.cloud(COUNT))[0].tolist()


def test_evo_reads_the_trajectories(out: Path) -> None:
    interface = pytest.importorskip("evo.tools.file_interface", reason="evo is not installed: pip install '.[test]'")
    tum = interface.read_tum_trajectory_file(str(out / "trajectory.tum"))
    assert tum.num_poses == COUNT
    np.testing.assert_allclose(tum.timestamps, np.array(made.stamps(COUNT)) * 1e-9, atol=1e-6)
    np.testing.assert_allclose(tum.poses_se3, [made.pose(i) for i in range(COUNT)], atol=1e-8)
    kitti = interface.read_kitti_poses_file(str(out / "trajectory_kitti.txt"))
    first = np.linalg.inv(made.pose(0))
    np.testing.assert_allclose(kitti.poses_se3, [first @ made.pose(i) for i in range(COUNT)], atol=1e-8)
    times = np.loadtxt(out / "times_kitti.txt")
    np.testing.assert_allclose(times, np.arange(COUNT) * made.STEP_NS * 1e-9, atol=1e-9)


def test_plyfile_reads_the_cloud(out: Path) -> None:
    plyfile = pytest.importorskip("plyfile", reason="plyfile is not installed: pip install '.[test]'")
    found = plyfile.PlyData.read(out / "cloud.ply")
    assert made.METRES in found.comments[1] and "map frame" in found.comments[0]
    rows, wanted = found["vertex"], made.cloud(COUNT)
    for ours, theirs in (("x", "x"), ("y", "y"), ("z", "z"), ("conf", "confidence")):
        np.testing.assert_array_equal(rows[theirs], wanted[ours])
    colours = np.stack([rows[c] for c in ("red", "green", "blue")], axis=-1)
    np.testing.assert_array_equal(colours, colours_of(wanted))


def test_trimesh_reads_cloud_path_and_cameras_with_y_up(out: Path) -> None:
    trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed: pip install '.[test]'")
    scene = trimesh.load_scene(out / "scene.glb")
    cloud = made.cloud(COUNT)
    world, name = scene.graph.get("cloud")
    found = scene.geometry[name]
    np.testing.assert_array_equal(found.vertices, np.stack([cloud[a] for a in "xyz"], axis=-1))
    np.testing.assert_array_equal(found.colors[:, :3], colours_of(cloud))
    up = world[:3, :3] @ [0, 0, 1]  # of ROS
    assert up.tolist() == [0, 1, 0] and np.linalg.det(world) == pytest.approx(1)
    way = scene.geometry[scene.graph.get("path")[1]].vertices
    for i in range(COUNT):
        assert np.linalg.norm(way - made.pose(i)[:3, 3], axis=1).min() < 1e-6
        camera, _ = scene.graph.get(f"frame_{i:05d}")
        places, pixels = on_the_wall(i)
        seen = np.linalg.inv(camera) @ world @ np.c_[places, np.ones(len(places))].T
        assert (seen[2] < 0).all()
        right, up = seen[0] / -seen[2], seen[1] / -seen[2]
        np.testing.assert_allclose(right, (pixels[:, 0] - made.K[0, 2]) / made.K[0, 0], atol=1e-6)
        np.testing.assert_allclose(up, -(pixels[:, 1] - made.K[1, 2]) / made.K[1, 1], atol=1e-6)
    head = json.loads(_json(out / "scene.glb"))
    lens = head["cameras"][0]["perspective"]
    assert np.tan(lens["yfov"] / 2) == pytest.approx(made.HEIGHT / 2 / made.K[1, 1])
    assert np.tan(lens["yfov"] / 2) * lens["aspectRatio"] == pytest.approx(made.WIDTH / 2 / made.K[0, 0])
    assert head["asset"]["extras"]["unit"] == made.METRES


def _json(path: Path) -> bytes:
    """The first chunk of a GLB file."""
    data = path.read_bytes()
    return data[20 : 20 + int.from_bytes(data[12:16], "little")]


def test_a_cloud_of_other_voxels_and_every_second_frame(results: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--to", "ply", "images", "-o", str(tmp_path / "out"), "--voxel", "0.2", "--every", "2"]
    assert cli.main(["export", str(results), *words]) == 0
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == ["frame_00000.png", "frame_00001.png"]
    stamps = [f["stamp_ns"] for f in json.loads((tmp_path / "out" / "export.json").read_text())["frames"]]
    assert stamps == made.stamps(COUNT)[::2]
    said = capsys.readouterr().out
    count = int(said.split("cloud of ")[1].split()[0])
    assert 0 < count < len(made.cloud(COUNT)) / 4 and made.METRES in said


def test_open3d_fuses_the_wall(results: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("open3d", reason="open3d is not installed: pip install '.[mesh]'")
    trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed: pip install '.[test]'")
    words = ["--to", "mesh", "pcd", "-o", str(tmp_path / "out"), "--voxel", "0.1"]
    assert cli.main(["export", str(results), *words]) == 0
    about = json.loads((tmp_path / "out" / "export.json").read_text())["mesh"]
    for name in ("mesh.ply", "mesh.glb"):
        surface = trimesh.load(tmp_path / "out" / name, force="mesh", process=False)
        assert (len(surface.vertices), len(surface.faces)) == (about["vertices"], about["triangles"])
    surface = trimesh.load(tmp_path / "out" / "mesh.ply", process=False)
    np.testing.assert_allclose(surface.vertices[:, 2], made.WALL_Z, atol=0.02)
    assert np.median(surface.face_normals[:, 2]) < -0.99  # towards the camera
    assert surface.area == pytest.approx(_seen_area(), rel=0.25)
    assert np.ptp(surface.visual.vertex_colors[:, 0]) > 50
    assert surface.visual.vertex_colors.tobytes() in (tmp_path / "out" / "mesh.glb").read_bytes()
    assert "triangles" in capsys.readouterr().out
    import open3d

    cloud = open3d.io.read_point_cloud(str(tmp_path / "out" / "cloud.pcd"))
    assert len(cloud.points) > 10
    np.testing.assert_allclose(np.asarray(cloud.points)[:, 2], made.WALL_Z, rtol=1e-4)


def _seen_area() -> float:
    """Of the wall's part that the frames see, roughly: of the box around it."""
    size = np.ptp(np.concatenate([on_the_wall(i)[0] for i in range(COUNT)]), axis=0)
    return float(size[0] * size[1])


def test_without_open3d_the_package_is_named(results: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "open3d" else found(name, *a))
    assert cli.main(["export", str(results), "--to", "mesh", "-o", str(tmp_path / "out")]) == 1
    assert "pip install 'come_ros[mesh]'" in capsys.readouterr().err
    assert cli.main(["export", str(results), "--to", "all", "-o", str(tmp_path / "all"), "--every", "4"]) == 0
    assert (tmp_path / "all" / "scene.glb").is_file() and not (tmp_path / "all" / "mesh.ply").exists()


def test_results_never_overwrite_unasked(results: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["export", str(results), "--to", "tum", "-o", str(tmp_path)]
    (tmp_path / "mine.txt").write_text("kept")
    assert cli.main(words) == 0
    before = (tmp_path / "trajectory.tum").read_bytes()
    (tmp_path / "trajectory.tum").write_text("edited")
    assert cli.main(words) == 1 and "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "trajectory.tum").read_text() == "edited"
    assert cli.main([*words, "--overwrite"]) == 0
    assert (tmp_path / "trajectory.tum").read_bytes() == before and (tmp_path / "mine.txt").exists()


def test_all_of_it_is_written_or_nothing(results: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    write = arrays.write_depth

    def full(folder: Path, camera: arrays.Camera, *rest: Any) -> None:
        if camera.name == "frame_00002":
            raise OutputError("cannot write: No space left on device")
        write(folder, camera, *rest)

    monkeypatch.setattr(export.arrays, "write_depth", full)
    assert cli.main(["export", str(results), "--to", "depth", "tum", "-o", str(tmp_path / "out")]) == 1
    assert "No space" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("formats", "names", "told"),
    [
        (["confidence"], (), "record the topic confidence"),
        (["transforms"], (), "rgb/image_rect"),
        (["colmap"], ("confidence",), "rgb/image_rect"),
    ],
)
def test_what_the_results_lack_is_named(
    formats: list[str], names: tuple[str, ...], told: str, tmp_path: Path, capsys: Any
) -> None:
    demo = made.demo_results(tmp_path / "demo", 2, names)
    assert cli.main(["export", str(demo), "--to", *formats, "-o", str(tmp_path / "out")]) == 1
    assert told in capsys.readouterr().err and not (tmp_path / "out" / "export.json").exists()
    assert cli.main(["export", str(demo), "--to", "all", "-o", str(tmp_path / "rest")]) == 0
    assert not (tmp_path / "rest" / "transforms.json").exists() and (tmp_path / "rest" / "depth").is_dir()


def test_the_models_own_unit_is_no_metre(tmp_path: Path, capsys: Any) -> None:
    folder = made.bag_results(tmp_path / "in", 2, unit="")
    assert cli.main(["export", str(folder), "--to", "tum", "ply", "glb", "-o", str(tmp_path / "out")]) == 0
    assert "not known in metres" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert not about["metres"] and "not known in metres" in about["unit"]
    assert b"metres" not in (tmp_path / "out" / "cloud.ply").read_bytes()[:400]


@pytest.mark.parametrize(
    ("median", "largest", "wanted"),
    [
        (3.0, 10.0, 1e-3),
        (3.0, 65.535, 1e-3),
        (3.0, 70.0, 1e-2),
        (0.1, 0.4, 1e-5),
        (0.4, 1.0, 1e-4),
        (50.0, 9000.0, 1.0),
    ],
)
def test_depth_images_hold_the_largest_depth_and_are_fine_enough(median: float, largest: float, wanted: float) -> None:
    found = arrays.unit_per_value(median, largest)
    assert found == pytest.approx(wanted) and largest / found <= 65535.5


@pytest.mark.parametrize(
    "words",
    [["--every", "0"], ["--voxel", "-1"], ["--voxel", "nan"]],
)
def test_options_out_of_range_are_refused(words: list[str], results: Path, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["export", str(results), "--to", "tum", "-o", str(tmp_path), *words]) == 1
    assert words[0] in capsys.readouterr().err


def test_mistyped_formats_and_a_missing_folder(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["export", str(tmp_path), "--to", "obj", "-o", str(tmp_path)])
    assert end.value.code == 2 and "glb" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), "--to", "tum", "-o", str(tmp_path / "out")]) == 1
    assert "come_ros bag" in capsys.readouterr().err
