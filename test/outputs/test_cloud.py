import time

import numpy as np
import pytest

from come_ros import geometry
from come_ros.config import Config
from come_ros.outputs import cloud

K = np.array([[200.0, 0, 111.5], [0, 200, 83.5], [0, 0, 1]])
HEIGHT, WIDTH = 168, 224


def config(**parameters):
    return Config().replace(**{f"cloud.{k}": v for k, v in parameters.items()})


def plane(normal, distance=2.0, height=HEIGHT, width=WIDTH, k=K):
    """z-depth of the plane normal . x = distance; NaN behind the camera."""
    rays = geometry.unproject(np.ones((height, width)), k)
    with np.errstate(divide="ignore"):
        z = distance / (rays @ np.asarray(normal, float))
    return np.where(z > 0, z, np.nan).astype(np.float32)


def random_frame(seed=0, height=HEIGHT, width=WIDTH):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1, 5, (height, width)).astype(np.float32)
    image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    return depth, image, rng.uniform(1, 9, depth.shape).astype(np.float32)


@pytest.mark.parametrize("tilt", [0, 30, 60, 75, 85, 88])
@pytest.mark.parametrize("axis", ["left", "down", "both"])
def test_slanted_planes_have_no_edges(tilt, axis):
    t = np.deg2rad(tilt)
    side = {"left": (1, 0), "down": (0, 1), "both": (0.6, 0.8)}[axis]
    depth = plane([np.sin(t) * side[0], np.sin(t) * side[1], np.cos(t)], distance=0.4)
    assert cloud.depth_edges(depth).mean() < 0.02


def test_a_room_corner_is_no_edge():
    walls = np.fmin(np.fmin(plane([0.8, 0, 0.6]), plane([-0.6, 0, 0.8])), plane([0, 1, 0.1], 1.2))
    assert cloud.depth_edges(walls).mean() < 0.005


@pytest.mark.parametrize("ramp", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_points_between_two_surfaces_are_edges(ramp, transposed):
    depth = np.where(np.arange(WIDTH) < 100, 1.0, 2.0) * np.ones((HEIGHT, 1))
    depth[:, 100 : 100 + ramp] = np.linspace(1, 2, ramp + 2)[1:-1]
    flying = (depth > 1) & (depth < 2)
    if transposed:
        depth, flying = depth.T, flying.T
    edges = cloud.depth_edges(depth.astype(np.float32))
    assert edges[flying].all()
    assert edges.sum() <= (ramp + 4) * max(depth.shape)  # a few pixels wide, nothing else


def test_noise_of_a_smooth_surface_is_no_edge():
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal((HEIGHT, WIDTH)))
    assert cloud.depth_edges((plane([0.3, 0.3, 0.9]) * noise).astype(np.float32)).mean() < 0.001


def test_holes_in_the_depth_are_no_edges_and_no_trouble():
    depth = plane([0, 0, 1])
    depth[50:60, 50:60] = np.nan
    depth[0, 0], depth[5, 5], depth[7, 7] = 0, -1, np.inf
    assert not cloud.depth_edges(depth).any()
    assert not cloud.depth_edges(np.full((20, 20), np.nan, np.float32)).any()
    assert not cloud.depth_edges(np.ones((3, 1), np.float32)).any()


def test_the_mask_leaves_out_what_it_should():
    depth, _, confidence = random_frame()
    depth[:2, :3] = [[np.nan, np.inf, 0], [-1, np.nan, np.nan]]
    everything = cloud.valid_mask(depth, confidence, config(conf_percentile=0.0, edge_filter=False))
    assert not everything[:2, :3].any() and everything.sum() == depth.size - 6
    sure = cloud.valid_mask(depth, confidence, config(conf_percentile=20.0, edge_filter=False))
    assert (
        sure.sum() == pytest.approx(0.8 * everything.sum(), rel=0.001)
        and confidence[sure].min() > confidence[everything & ~sure].max()
    )
    least = float(np.median(confidence))
    sure = cloud.valid_mask(depth, confidence, config(min_confidence=least, edge_filter=False))
    assert np.array_equal(sure, everything & (confidence >= least))
    near = cloud.valid_mask(depth, confidence, config(conf_percentile=0.0, edge_filter=False, max_range=3.0))
    assert np.array_equal(near, everything & (depth <= 3))
    assert (
        cloud.valid_mask(depth, confidence, config(conf_percentile=0.0)).sum() < 0.5 * everything.sum()
    )  # noise is all edges


def test_unless_it_is_asked_for_nothing_is_cut_out_because_the_model_is_unsure_of_it():
    """Of fr3_cabinet's dark cabinet the least confident 20 % of each image cut out half, and with it the obstacle."""
    depth, confidence = plane([0, 0, 1]), random_frame()[2]
    assert cloud.trusted_mask(depth, confidence, config()).all()


def test_equal_confidence_leaves_everything_and_no_depth_nothing():
    depth = plane([0, 0, 1])
    assert cloud.valid_mask(depth, np.ones_like(depth), config()).all()
    assert not cloud.valid_mask(depth * np.float32(np.nan), np.ones_like(depth), config()).any()


def test_the_depth_image_says_invalid_and_too_far():
    depth = np.array([[1.0, 2.0, 9.0, np.nan]], np.float32)
    trusted = np.array([[True, False, True, False]])
    assert np.array_equal(
        cloud.depth_image(depth, trusted, config(max_range=5.0)), [[1, np.nan, np.inf, np.nan]], equal_nan=True
    )
    out = cloud.depth_image(depth, trusted, config())
    assert np.array_equal(out, [[1, np.nan, 9, np.nan]], equal_nan=True) and out.dtype == np.float32
    assert depth[0, 1] == 2  # the submap is not written to


def test_what_is_unsure_is_not_free_however_far_it_is_said_to_be():
    depth = np.full((20, 30), 9.0, np.float32)
    depth[:, 15:] = 12.0  # an edge between two surfaces beyond the range
    confidence = np.ones_like(depth)
    confidence[:5] = 0.5
    c = config(max_range=5.0, conf_percentile=30.0, edge_filter=True)
    trusted = cloud.trusted_mask(depth, confidence, c)
    image = cloud.depth_image(depth, trusted, c)
    assert np.isinf(image[10, 2]) and np.isinf(image[10, -2])
    assert np.isnan(image[:5]).all() and np.isnan(image[10, 14:16]).all()
    assert not cloud.valid_mask(depth, confidence, c).any()


def test_points_agree_with_depth_and_intrinsics():
    depth, image, confidence = random_frame()
    mask = confidence > 3
    out = cloud.points(depth, K, image, confidence, mask, config())
    assert out.dtype == cloud.POINT_DTYPE and out.dtype.itemsize == 20 and out.shape == (mask.sum(),)
    v, u = np.nonzero(mask)
    z = depth[mask].astype(np.float64)
    assert np.allclose(out["x"], (u - K[0, 2]) / K[0, 0] * z, rtol=1e-5, atol=1e-6)
    assert np.allclose(out["y"], (v - K[1, 2]) / K[1, 1] * z, rtol=1e-5, atol=1e-6)
    assert np.array_equal(out["z"], depth[mask]) and np.array_equal(out["conf"], confidence[mask])
    bits = np.ascontiguousarray(out["rgb"]).view(np.uint32)
    assert np.array_equal(np.stack([bits >> 16, bits >> 8 & 255, bits & 255], axis=-1), image[mask])


@pytest.mark.parametrize("stride", [1, 3])
def test_organised_points_keep_their_place(stride):
    depth, image, confidence = random_frame()
    mask = confidence > 3
    out = cloud.points(depth, K, image, confidence, mask, config(organized=True, stride=stride))
    assert out.shape == mask[::stride, ::stride].shape
    flat = cloud.points(depth, K, image, confidence, mask, config(stride=stride))
    valid = mask[::stride, ::stride]
    assert np.array_equal(np.isnan(out["x"]), ~valid) and np.array_equal(np.isnan(out["z"]), ~valid)
    assert out[valid].tobytes() == flat.tobytes()
    full = geometry.unproject(depth, K)[::stride, ::stride]
    assert np.allclose(np.stack([out["x"], out["y"]], -1)[valid], full[..., :2][valid], rtol=1e-4, atol=1e-6)


def test_points_in_the_odometry_frame():
    depth, image, confidence = random_frame()
    pose = geometry.transform(geometry.BODY_FROM_OPTICAL[:3, :3], [1, 2, 3])
    mask = np.ones_like(depth, bool)
    near = cloud.points(depth, K, image, confidence, mask, config())
    there = cloud.points(depth, K, image, confidence, mask, config(), pose)
    assert (
        np.allclose(there["x"], near["z"] + 1)
        and np.allclose(there["y"], 2 - near["x"])
        and np.allclose(there["z"], 3 - near["y"])
    )


def test_no_valid_point_is_an_empty_cloud():
    depth, image, confidence = random_frame()
    assert cloud.points(depth, K, image, confidence, np.zeros_like(depth, bool), config()).shape == (0,)


def test_a_large_frame_is_quick():
    depth, image, confidence = random_frame(height=518, width=518)
    depth = plane([0.3, 0.2, 0.9], height=518, width=518)
    took = []
    for _ in range(5):
        start = time.process_time()
        mask = cloud.valid_mask(depth, confidence, config())
        cloud.points(depth, K, image, confidence, mask, config())
        took.append(time.process_time() - start)
    assert min(took) < 0.1  # some 20 ms; the rest is for a busy machine
