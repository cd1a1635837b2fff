"""Every registered backbone with every registered accelerator, made as the configuration makes them: it works, or it says why not."""

import os

import pytest
import torch
from models import WIDTH, tiny

from come_ros.accelerators import NoAccelerator, make_accelerator
from come_ros.accelerators.confidence import ConfidencePredictor, save_predictor
from come_ros.accelerators.pace_networks import make_networks, save_networks
from come_ros.backbones.checkpoint import MODELS
from come_ros.backbones.model import ENCODED
from come_ros.config import Config
from come_ros.errors import ConfigError
from come_ros.plugins import ACCELERATORS

GRID = (4, 5)
PAIRS = [(backbone, accelerator) for backbone in sorted(MODELS) for accelerator in sorted(ACCELERATORS.own)]
MODES = [(b, a, mode) for b, a in PAIRS for mode in (("fused", "per_layer") if a in ("come", "tome") else ("fused",))]
every_pair = pytest.mark.parametrize(
    ("backbone", "name", "mode"),
    [pytest.param(*pair, marks=() if pair[0] == "vggt" else pytest.mark.slow) for pair in MODES],  # 10 s in all
)


@pytest.fixture(scope="module")
def models():
    return {backbone: tiny(backbone) for backbone in MODELS}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    torch.manual_seed(3)
    path = str(tmp_path_factory.mktemp("predictor") / "p.safetensors")
    save_predictor(path, ConfidencePredictor(WIDTH, 8), 0)
    return path


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 3, 56, 70, generator=torch.Generator().manual_seed(1))


def make(model, name, mode, predictor, **parameters):
    """The accelerator, or a skipped test if the pair is refused, in words that name both."""
    given = {"name": name, "mode": mode, "group": "2x2", "predictor": predictor, **parameters}
    if name == "pace":
        torch.manual_seed(4)
        given["pace"] = os.path.join(os.path.dirname(predictor), f"pace_{model.name}.safetensors")
        save_networks(given["pace"], *make_networks(model.shape, 8))
    config = Config().replace(backbone=model.name, **{f"accelerator.{k}": v for k, v in given.items()})
    try:
        return make_accelerator(config, model.shape, "")
    except ConfigError as error:
        assert name in str(error) and model.name in str(error)
        pytest.skip(str(error))


def run(model, images, accelerator, heads=("camera", "depth")):
    with torch.inference_mode():
        return model(images, accelerator, heads)


@every_pair
@pytest.mark.parametrize("frames", [1, 3])
def test_outputs_are_whole_and_finite(models, images, predictor, backbone, name, mode, frames):
    model = models[backbone]
    plain, dense = run(model, images[:, :frames], NoAccelerator())
    out, trunk = run(model, images[:, :frames], make(model, name, mode, predictor))
    assert {k: v.shape for k, v in out.items()} == {k: v.shape for k, v in plain.items()}
    assert all(v.isfinite().all() for v in out.values())
    assert {k: v.shape for k, v in trunk.levels.items()} == {k: v.shape for k, v in dense.levels.items()}
    assert {"depth", "depth_conf", "world_from_camera", "intrinsics"} <= out.keys()
    assert out["depth"].shape == (2, frames, 56, 70) and out["world_from_camera"].shape == (2, frames, 4, 4)
    changed = not torch.equal(plain["depth"], out["depth"])
    assert changed == (name != "none") or frames == 1  # who chooses among frames has no choice with one


@every_pair
def test_nothing_to_reduce_changes_no_bit(models, images, predictor, backbone, name, mode):
    model = models[backbone]
    plain, _ = run(model, images, NoAccelerator())
    accelerator = make(model, name, mode, predictor, ratio=0.0)
    if accelerator.sites and name not in ("come", "tome", "none"):
        pytest.skip("ratio is not what this accelerator is set by")
    out, _ = run(model, images, accelerator)
    assert all(torch.equal(plain[key], out[key]) for key in plain)


@every_pair
def test_special_and_shared_tokens_are_never_touched(models, images, predictor, backbone, name, mode):
    model = models[backbone]
    accelerator = make(model, name, mode, predictor)
    seen = set()

    def checked(step):
        def call(tokens, plan, site):
            after, plan = step(tokens, plan, site)
            n = tokens.special
            seen.add((site, n, tokens.shared is not None))
            assert after.special == n and torch.equal(after.x[:, :, :n], tokens.x[:, :, :n])
            assert after.shared is tokens.shared
            return after, plan

        return call

    accelerator.compress, accelerator.restore = checked(accelerator.compress), checked(accelerator.restore)
    run(model, images, accelerator)
    assert (bool(seen) and bool(accelerator.sites)) or not accelerator.sites
    if "tap" in accelerator.sites:
        assert {shared for site, _, shared in seen if site == "tap"} == {backbone == "mapanything"}


@every_pair
def test_scenes_never_mix(models, images, predictor, backbone, name, mode):
    model = models[backbone]
    both, _ = run(model, images, make(model, name, mode, predictor))
    alone, _ = run(model, images[1:], make(model, name, mode, predictor))
    torch.testing.assert_close(both["depth"][1:], alone["depth"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", sorted(MODELS))
@pytest.mark.parametrize("mode", ["fused", "per_layer"])
def test_come_runs_short_where_it_should(models, images, predictor, backbone, mode):
    """All blocks after the predictor's, over merged patches; special and shared tokens in full; encoder output and taps whole."""
    model, lengths = models[backbone], {}
    accelerator = make(model, "come", mode, predictor, ratio=1.0)
    attend = accelerator.attend

    def watched(q, k, v, plan, layer):
        lengths.setdefault((layer.part, layer.index == 0), set()).add((q.shape[2], layer.shared))
        return attend(q, k, v, plan, layer)

    accelerator.attend = watched
    _, trunk = run(model, images, accelerator)
    special = {
        "vggt": (5, 5, 0), "lingbot": (5, 6, 0), "mapanything": (1, 1, 1), "pi3": (5, 5, 0), "da3": (1, 1, 0)
    }[backbone]  # fmt: skip
    in_encoder, in_trunk, shared = special
    short = GRID[0] // 2 * (GRID[1] // 2) + GRID[0]  # four merged groups, and a column that fills none
    assert lengths["encoder", True] == {(in_encoder + 20, 0)} and lengths["encoder", False] == {(in_encoder + short, 0)}
    frame = lengths["frame", True] | lengths["frame", False]
    across = lengths["global", True] | lengths["global", False]
    assert frame == {(in_trunk + short, 0)}
    assert across == {(3 * (in_trunk + short) + shared, shared)}
    assert {t.shape[2] for t in trunk.levels.values()} == {in_trunk + 20}
    assert (ENCODED in trunk.levels) == (backbone == "mapanything")
    assert accelerator.kept_ratio(trunk.plan) == pytest.approx(short / 20)


@pytest.mark.parametrize("backbone", sorted(MODELS))
def test_come_comes_nearer_to_dense_as_less_is_merged(models, predictor, backbone):
    model = models[backbone]
    x = torch.rand(1, 2, 3, 112, 112, generator=torch.Generator().manual_seed(4))
    dense, _ = run(model, x, NoAccelerator())

    def off(ratio):
        out, _ = run(model, x, make(model, "come", "fused", predictor, ratio=ratio))
        return float((out["depth"] / dense["depth"]).log().abs().mean())

    errors = [off(ratio) for ratio in (1.0, 0.5, 0.1, 0.02, 0.0)]
    assert errors[0] > errors[2] > errors[4] == 0 and errors[3] <= errors[2]
