"""What known intrinsics, depth and poses do to MapAnything, on the recorded small model: each says something, and nothing that is none.

Random weights cannot show that the result gets better; that only what should matter matters, they can.
"""

import numpy as np
import pytest
import torch
from backbones.test_mapanything_parity import make

from come_ros import geometry
from come_ros.accelerators import NoAccelerator
from come_ros.backbones.model import KnownTensors
from come_ros.backbones.torch_backbone import TorchBackbone
from come_ros.types import Known

S, H, W = 3, 42, 56
OUTPUTS = ("depth", "rays", "world_from_camera", "metric_scale", "depth_conf")


@pytest.fixture(scope="module", params=["v1_1", "v1"])
def model(request, shared_data):
    fixture = torch.load(shared_data / "parity" / "mapanything_seed0.pt", weights_only=True)
    return make(fixture, request.param)


@pytest.fixture(scope="module")
def scene():
    """Images, and all that can be known of them."""
    g = torch.Generator().manual_seed(5)
    rng = np.random.default_rng(5)
    k = torch.tensor([[55.0, 0, 27.5], [0, 56.0, 20.5], [0, 0, 1]]).repeat(1, S, 1, 1)
    depth = 1 + 3 * torch.rand(1, S, H, W, generator=g)
    poses = [
        geometry.transform(geometry.rotation_from_vector(rng.normal(0, 0.3, 3)), rng.normal(0, 1, 3)) for _ in range(S)
    ]
    poses = torch.from_numpy(np.stack(poses)).float()[None]
    images = torch.rand(1, S, 3, H, W, generator=g)
    return images, KnownTensors(k, depth, poses, torch.ones(1, S, dtype=torch.bool))


def only(known, *names, metric=True):
    """`known` with nothing but `names`; what is left out is NaN."""
    left_out = {n: torch.full_like(getattr(known, n), torch.nan) for n in known._fields[:3] if n not in names}
    return known._replace(**left_out, metric=torch.full_like(known.metric, metric))


def run(model, images, known):
    out, _ = model(images, NoAccelerator(), ("camera", "depth"), known=known)
    return {key: out[key] for key in OUTPUTS}


def same(a, b, tolerance=0.0):
    return all(float((a[k] - b[k]).abs().max() / b[k].abs().max()) <= tolerance for k in OUTPUTS)


def test_nothing_known_is_as_images_alone(model, scene):
    images, known = scene
    assert same(run(model, images, only(known)), run(model, images, None))


@pytest.mark.parametrize(
    "names", [("intrinsics",), ("intrinsics", "depth"), ("world_from_camera",), ("intrinsics", "depth", "world_from_camera")]
)  # fmt: skip
def test_each_input_changes_every_output(model, scene, names):
    images, known = scene
    without, given = run(model, images, only(known, *names[:-1])), run(model, images, only(known, *names))
    for key in OUTPUTS:
        assert (without[key] - given[key]).abs().max() > 1e-4 * without[key].abs().max(), key


def test_what_cannot_be_placed_counts_as_not_known(model, scene):
    """Depth without intrinsics, and poses without that of the first view."""
    images, known = scene
    assert same(run(model, images, only(known, "depth")), run(model, images, None))
    poses = known.world_from_camera.clone()
    poses[:, 0] = torch.nan
    first_lost = only(known, "world_from_camera")._replace(world_from_camera=poses)
    assert same(run(model, images, first_lost), run(model, images, None))
    empty = known._replace(depth=torch.zeros_like(known.depth))
    assert same(run(model, images, empty), run(model, images, only(known, "intrinsics", "world_from_camera")))


def test_holes_in_depth_are_the_same_as_zeros_and_change_the_output(model, scene):
    images, known = scene
    holes = torch.rand(known.depth.shape, generator=torch.Generator().manual_seed(6)) < 0.7
    zeros, nans = (known._replace(depth=torch.where(holes, value, known.depth)) for value in (0.0, torch.nan))
    assert same(run(model, images, zeros), run(model, images, nans))
    assert not same(run(model, images, zeros), run(model, images, known), 1e-3)


def test_the_unit_of_depth_and_poses_counts_only_if_they_are_metric(model, scene):
    images, known = scene
    poses = known.world_from_camera.clone()
    poses[..., :3, 3] *= 5
    larger = known._replace(depth=3 * known.depth, world_from_camera=poses)
    names = ("intrinsics", "depth", "world_from_camera")
    assert same(
        run(model, images, only(larger, *names, metric=False)), run(model, images, only(known, *names, metric=False)), 1e-4
    )  # fmt: skip
    assert not same(run(model, images, larger), run(model, images, known), 1e-3)
    assert not same(run(model, images, known), run(model, images, only(known, *names, metric=False)), 1e-3)


def test_only_relative_poses_count(model, scene):
    images, known = scene
    move = torch.from_numpy(geometry.transform(geometry.rotation_from_vector([0.4, -1.0, 0.3]), [7.0, -3, 2])).float()
    moved = known._replace(world_from_camera=move @ known.world_from_camera)
    assert same(run(model, images, moved), run(model, images, known), 1e-4)


def test_views_may_know_different_things(model, scene):
    """What one view knows reaches the others by attention; and the views with nothing are as without."""
    images, known = scene
    k = known.intrinsics.clone()
    k[:, 1:] = torch.nan
    partial = only(known, "intrinsics")._replace(intrinsics=k)
    added = model.encode_known(partial)
    assert added[:, 0].abs().max() > 0 and not added[:, 1:].any()
    out, without = run(model, images, partial), run(model, images, None)
    assert (out["depth"][:, 2] - without["depth"][:, 2]).abs().max() > 0


def test_the_backbone_hands_on_what_is_known(shared_data, scene):
    """TorchBackbone, from arrays: the same as the model by itself, and the mask of what depth means something."""
    fixture = torch.load(shared_data / "parity" / "mapanything_seed0.pt", weights_only=True)
    model = make(fixture, "v1_1")
    backbone = TorchBackbone("mapanything", model, NoAccelerator(), device="cpu")
    assert backbone.metric and backbone.inputs == {"intrinsics", "depth", "poses"}
    assert backbone.description["unit"] == "metre"
    images, known = scene
    pixels = (images[0].movedim(1, -1) * 255).round().to(torch.uint8)
    arrays = Known(*(t[0].double().numpy() for t in known[:3]))
    got = backbone.predict(pixels.numpy(), None, arrays)
    out, _ = model(pixels.movedim(-1, 1)[None] / 255, NoAccelerator(), ("camera", "depth"), known=known)
    np.testing.assert_allclose(got.depth, out["depth"][0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(got.meaningful, out["mask_logits"][0] > 0)
    assert got.meaningful.any() and not got.meaningful.all()
    plain = backbone.predict(pixels.numpy())
    assert np.abs(plain.depth - got.depth).max() > 1e-3
