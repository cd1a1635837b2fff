import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from come_ros.camera.preprocess import crop_depth, crop_intrinsics, plan_resize, preprocess, uncrop_intrinsics
from come_ros.errors import FrameError

K = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])


@settings(max_examples=200, deadline=None)
@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(56, 1036))
def test_the_plan_keeps_the_aspect_fits_the_grid_and_stays_inside(width, height, side):
    plan = plan_resize(width, height, side, 14)
    assert plan.width % 14 == 0 and plan.height % 14 == 0 and min(plan.width, plan.height) >= 14
    longer = plan.width if width >= height else plan.height
    assert abs(longer - side) <= 7
    assert plan.left >= -1e-9 and plan.left + plan.width / plan.scale <= width + 1e-6
    assert plan.top >= -1e-9 and plan.top + plan.height / plan.scale <= height + 1e-6
    assert abs(plan.left) < 1e-9 or abs(plan.top) < 1e-9  # never cropped on both axes


def test_common_cameras():
    assert [
        (p.width, p.height) for p in (plan_resize(*wh, 224, 14) for wh in ((640, 480), (1920, 1080), (480, 640)))
    ] == [
        (224, 168),
        (224, 126),
        (168, 224),
    ]


@settings(max_examples=50, deadline=None)
@given(st.integers(60, 2000), st.integers(60, 2000), st.floats(0, 1), st.floats(0, 1))
def test_intrinsics_map_pixels_as_the_crop_does_and_back(width, height, u, v):
    plan = plan_resize(width, height, 224, 14)
    ray = np.linalg.inv(K) @ [u * width, v * height, 1]
    mapped = (crop_intrinsics(K, plan) @ ray)[:2]
    assert np.allclose(mapped[0], (u * width + 0.5 - plan.left) * plan.scale - 0.5)
    assert np.allclose(mapped[1], (v * height + 0.5 - plan.top) * plan.scale - 0.5)
    assert np.allclose(uncrop_intrinsics(crop_intrinsics(K, plan), plan), K)
    assert np.allclose(crop_intrinsics(uncrop_intrinsics(np.stack([K, K]), plan), plan), K)


@pytest.mark.parametrize("size", [(640, 480), (650, 480), (480, 653), (100, 77)])
def test_pixels_lie_where_the_plan_says(size):
    width, height = size
    v, u = np.mgrid[:height, :width]
    smooth = np.rint(np.stack([u * 250 / width, v * 250 / height, 0 * u + 9], axis=-1)).astype(np.uint8)
    plan = plan_resize(width, height, 224, 14)
    out = preprocess(smooth, plan)
    assert out.shape == (plan.height, plan.width, 3) and out.dtype == np.uint8
    y, x = np.mgrid[8 : plan.height - 8, 8 : plan.width - 8]
    source_u = (x + 0.5) / plan.scale + plan.left - 0.5
    source_v = (y + 0.5) / plan.scale + plan.top - 0.5
    inner = out[8:-8, 8:-8].astype(float)
    assert np.abs(inner[..., 0] - source_u * 250 / width).max() < 2
    assert np.abs(inner[..., 1] - source_v * 250 / height).max() < 2
    assert abs(np.mean(inner[..., 0] - source_u * 250 / width)) < 0.1


def test_an_image_of_the_right_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 255, (168, 224, 3), dtype=np.uint8)
    assert np.array_equal(preprocess(image, plan_resize(224, 168, 224, 14)), image)


def test_bad_images_are_refused():
    with pytest.raises(FrameError, match="empty"):
        plan_resize(0, 480, 224, 14)
    with pytest.raises(FrameError, match="uint8 RGB"):
        preprocess(np.zeros((20, 20), np.uint8), plan_resize(20, 20, 28, 14))


def test_depth_is_cropped_as_the_image_is():
    """A plane seen askew: what a pixel of the model's image sees must be what is there in the source, to the nearest pixel."""
    plan = plan_resize(640, 480, 224, 14)
    v, u = np.mgrid[:480, :640]
    depth = (1 + 0.01 * u + 0.002 * v).astype(np.float32)
    small = crop_depth(depth, plan)
    assert small.shape == (plan.height, plan.width) and small.dtype == np.float32
    v, u = np.mgrid[: plan.height, : plan.width]
    at_u, at_v = (u + 0.5) / plan.scale + plan.left - 0.5, (v + 0.5) / plan.scale + plan.top - 0.5
    np.testing.assert_allclose(small, 1 + 0.01 * at_u + 0.002 * at_v, atol=0.5 * 0.012 + 1e-5)
    assert set(np.unique(small)) <= set(np.unique(depth))  # nothing between two surfaces


@pytest.mark.parametrize("size", [(640, 480), (100, 90)])  # made smaller, and larger
def test_sparse_depth_survives_and_holes_stay_holes(size):
    width, height = size
    plan = plan_resize(width, height, 224, 14)
    rng = np.random.default_rng(0)
    depth = np.zeros((height, width), np.float32)
    depth[height // 2 :] = np.nan
    rows, columns = rng.integers(20, height - 20, 40), rng.integers(20, width - 20, 40)
    depth[rows, columns] = rng.uniform(1, 9, 40)
    small = crop_depth(depth, plan)
    seen = small[np.isfinite(small)]
    assert set(seen) <= set(depth[rows, columns])
    kept = len(set(seen)) / len(set(depth[rows, columns]))
    assert kept > 0.9, "two points in one pixel leave one"
    if width == 640:
        assert len(seen) <= 40
    assert np.isnan(crop_depth(np.zeros((height, width), np.float32), plan)).all()
    assert np.isnan(crop_depth(np.full((height, width), -1.0, np.float32), plan)).all()


def test_of_two_surfaces_in_a_pixel_the_nearer_one_is_seen():
    plan = plan_resize(640, 480, 112, 14)
    depth = np.zeros((480, 640), np.float32)
    depth[201, 298], depth[204, 301] = 7.0, 3.0  # both next to what is nearest to the pixel's centre, 202, 300
    small = crop_depth(depth, plan)
    assert small[35, 52] == 3.0 and np.isfinite(small).sum() == 1
