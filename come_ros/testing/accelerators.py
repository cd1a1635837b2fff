"""Contract of accelerators, tested on a small random model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ..accelerators import Accelerator, Tokens
from ..backbones.model import GeometryModel, Trunk
from ..config import Config
from ..config_text import with_accelerator
from ..tokens import SITES
from .models import tiny

Make = Callable[..., Accelerator]
SIZES = [(1, 28, 42), (1, 98, 70), (3, 42, 98), (2, 14, 70)]
"""frames, height and width in px: single frames, grids that groups do not divide, one row of patches"""


@functools.cache
def small_model() -> GeometryModel:
    """A VGGT with random weights: encoder 48 wide, 2 blocks; trunk of 4 frame and 4 global blocks; patches of 14 px."""
    return tiny("vggt")


def some_images() -> Tensor:
    """Two scenes of three frames of 4x5 patches."""
    return torch.rand(2, 3, 3, 56, 70, generator=torch.Generator().manual_seed(1))


def run(model: GeometryModel, images: Tensor, accelerator: Accelerator) -> tuple[dict[str, Tensor], Trunk]:
    """Outputs of all heads, and their input."""
    with torch.inference_mode():
        return model(images, accelerator, ("camera", "depth", "points"))


class AcceleratorContract:
    """Inherit it in a class called Test..., and define the fixture `make`: a function that returns the accelerator for `model`; with
    make(ratio=0) it reduces nothing, with any other ratio, 0 < ratio <= 1, and by default, something."""

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError("define the fixture `make` in your test class: it returns a function make(ratio=0.5)")

    @pytest.fixture
    def model(self) -> GeometryModel:
        return small_model()

    @pytest.fixture
    def images(self) -> Tensor:
        return some_images()

    def test_outputs_keep_their_shapes_and_are_finite(self, model: GeometryModel, images: Tensor, make: Make) -> None:
        accelerator = make()
        assert accelerator.sites <= SITES, "sites must be among come_ros.tokens.SITES"
        out, trunk = run(model, images, accelerator)
        assert out["depth"].shape == out["depth_conf"].shape == (2, 3, 56, 70)
        assert out["points"].shape == (2, 3, 56, 70, 3)
        assert all(v.isfinite().all() for v in out.values())
        assert set(trunk.levels) == set(model.taps)
        assert all(t.shape == (2, 3, 5 + 4 * 5, 96) for t in trunk.levels.values()), "restore the whole grid at `tap`"
        assert 0 < accelerator.kept_ratio(trunk.plan) <= 1 and 0 < trunk.read_ratio <= 1
        mask = accelerator.merged(trunk.plan, 3, trunk.grid)
        assert mask is None or (mask.shape == (6, 4, 5) and mask.dtype == torch.bool)

    def test_other_frames_may_come_in_any_order(self, model: GeometryModel, images: Tensor, make: Make) -> None:
        """All but the first, which is the reference of the window."""
        out, _ = run(model, images, make())
        swapped, _ = run(model, images[:, [0, 2, 1]], make())
        torch.testing.assert_close(out["depth"][:, [0, 2, 1]], swapped["depth"], rtol=1e-4, atol=1e-5)

    def test_nothing_to_reduce_changes_no_bit(self, model: GeometryModel, images: Tensor, make: Make) -> None:
        plain, _ = run(model, images, Accelerator())
        accelerator = make(ratio=0)
        out, trunk = run(model, images, accelerator)
        assert all(torch.equal(plain[key], out[key]) for key in plain)
        assert accelerator.kept_ratio(trunk.plan) == trunk.read_ratio == 1
        assert accelerator.merged(trunk.plan, 3, trunk.grid) is None

    def test_a_reduction_is_one(self, model: GeometryModel, images: Tensor, make: Make) -> None:
        """A reduction must not be the identity by accident."""
        plain, _ = run(model, images, Accelerator())
        out, _ = run(model, images, make())
        assert not torch.equal(plain["depth"], out["depth"])

    def test_special_tokens_stay_in_front_and_unchanged(self, model: GeometryModel, images: Tensor, make: Make) -> None:
        accelerator = make()

        def checked(step: Any, compressing: bool) -> Any:
            def call(tokens: Tokens, plan: Any, site: str) -> tuple[Tokens, Any]:
                after, plan = step(tokens, plan, site)
                n = tokens.special
                assert after.special == n and torch.equal(after.x[:, :, :n], tokens.x[:, :, :n]), site
                if compressing:
                    assert not after.positions[:, :, :n].any(), site
                    assert after.positions.shape[2] == after.x.shape[2], f"{site}: as many positions as tokens"
                return after, plan

            return call

        for name in ("compress", "restore"):
            setattr(accelerator, name, checked(getattr(accelerator, name), name == "compress"))
        run(model, images, accelerator)

    def test_shapes_depend_on_no_value(self, model: GeometryModel, images: Tensor, make: Make) -> None:
        """Required for CUDA graphs. The same window must also give the same bits, whatever was run in between."""
        shapes: list[list[Any]] = []
        accelerator, outs = make(), []
        attend = accelerator.attend

        def watched(q: Tensor, k: Tensor, v: Tensor, plan: Any, layer: Any) -> Tensor:
            shapes[-1].append((layer, q.shape, k.shape))
            return attend(q, k, v, plan, layer)

        accelerator.attend = watched  # type: ignore[method-assign]
        for x in (images, 0.2 * images.flip(1), images):
            shapes.append([])
            outs.append(run(model, x, accelerator)[0])
        assert shapes[0] == shapes[1] == shapes[2]
        assert all(torch.equal(outs[0][key], outs[2][key]) for key in outs[0])

    def test_scenes_never_mix(self, model: GeometryModel, images: Tensor, make: Make) -> None:
        both, _ = run(model, images, make())
        alone, _ = run(model, images[1:], make())
        torch.testing.assert_close(both["depth"][1:], alone["depth"], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize(
        ("dtype", "ratio"),
        [(torch.float32, 0.3), (torch.float32, 1.0), (torch.bfloat16, 1.0), (torch.float16, 0.3)],
        ids=str,
    )
    def test_one_frame_odd_grids_and_half_precision_stay_finite(
        self, model: GeometryModel, make: Make, ratio: float, size: tuple[int, int, int], dtype: torch.dtype
    ) -> None:
        frames, height, width = size
        x = torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(2))
        accelerator = make(ratio=ratio)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out, trunk = run(model, x, accelerator)
        assert out["depth"].shape == (1, frames, height, width) and all(v.isfinite().all() for v in out.values())
        assert 0 < accelerator.kept_ratio(trunk.plan) <= 1 and 0 < trunk.read_ratio <= 1

    def test_patches_that_are_all_alike_stay_finite(self, model: GeometryModel, make: Make) -> None:
        out, _ = run(model, torch.full((1, 2, 3, 56, 70), 0.5), make())
        assert all(v.isfinite().all() for v in out.values())

    def test_what_the_frontier_tries_can_be_configured(self, make: Make) -> None:
        """`come_ros eval --frontier` reads settings from the class, from light to heavy reduction."""
        kind = type(make())
        if (
            kind.name == Accelerator.name
            or "+" in kind.name
            or "<locals>" in kind.__qualname__
            or "." in kind.__qualname__
        ):
            pytest.skip("not a class that can be chosen by module:Class")
        assert "frontier" in vars(kind), f"{kind.__name__} must list its own settings"
        assert len(set(kind.frontier)) == len(kind.frontier) >= 2
        for setting in kind.frontier:
            with_accelerator(Config(), f"{kind.__module__}:{kind.__qualname__}:{setting}")
