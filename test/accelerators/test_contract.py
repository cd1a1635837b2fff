"""What every accelerator promises, on a small random model: the contract for everybody, and how backbones call the steps."""

import pytest
import torch

from come_ros.accelerators import (
    COMBINATIONS,
    Accelerator,
    CoMe,
    Fast,
    GoodTokenHunting,
    NoAccelerator,
    Pace,
    Random,
    Regime,
    Subscene,
    Temporal,
    Tokens,
    ToMe,
    make_accelerator,
)
from come_ros.accelerators.combined import combine
from come_ros.accelerators.confidence import ConfidencePredictor
from come_ros.accelerators.good_token_hunting import LayerPlan
from come_ros.accelerators.pace_networks import Restorer, TokenScorer
from come_ros.accelerators.random import RandomConfidence
from come_ros.config import Config
from come_ros.plugins import ACCELERATORS
from come_ros.testing import AcceleratorContract
from come_ros.testing.accelerators import run, small_model, some_images
from come_ros.tokens import SITES, Reach

BLOCKS = ["encoder"] * 2 + ["frame", "global"] * 4

# every registered accelerator must be here, as it is made for the small model below; the ratio can be set
MADE = {
    "none": lambda ratio=0: NoAccelerator(),
    "come": lambda ratio=0.5: CoMe(seeded(lambda: ConfidencePredictor(48, 8)), 0, group=(2, 2), ratio=ratio),
    "tome": lambda ratio=0.5: ToMe(BLOCKS, ratio=ratio),
    "pace": lambda ratio=0.5: Pace(
        seeded(lambda: TokenScorer(48, 8)), seeded(lambda: Restorer(48, 48, 8)), ratio=ratio
    ),
    "temporal": lambda ratio=0.5: Temporal(ratio=ratio),
    "subscene": lambda ratio=0.5: Subscene(ratio=ratio),
    "regime": lambda ratio=0.5: Regime(4, ratio=ratio),
    "fast": lambda ratio=0.5: Fast(ratio=ratio),
    "random": lambda ratio=0.5: Random(RandomConfidence(48), 0, group=(2, 2), ratio=ratio),
    "good_token_hunting": lambda ratio=0.5: GoodTokenHunting(LayerPlan(1, 2), ratio=ratio),
}
# other modes of the same, and all combinations
VARIANTS = {
    **MADE,
    **{
        names: lambda ratio=0.5, names=names: combine([MADE[n](ratio) for n in names.split("+")])
        for names in COMBINATIONS
    },
    "come per_layer": lambda ratio=0.5: CoMe(
        seeded(lambda: ConfidencePredictor(48, 8)), 0, group=(2, 2), ratio=ratio, mode="per_layer"
    ),
    "tome decreasing": lambda ratio=0.5: ToMe(BLOCKS, ratio=ratio, schedule="decreasing"),
    "come per_layer+good_token_hunting": lambda ratio=0.5: combine(
        [VARIANTS["come per_layer"](ratio), MADE["good_token_hunting"](ratio)]
    ),
    "pace copying": lambda ratio=0.5: Pace(seeded(lambda: TokenScorer(48, 8)), None, ratio=ratio, bias=True),
    "tome per_layer": lambda ratio=0.5: ToMe(BLOCKS, ratio=ratio, mode="per_layer"),
}


def seeded(make):
    torch.manual_seed(3)
    return make().eval()


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def images():
    return some_images()


def test_every_built_in_accelerator_is_tested_here():
    assert set(ACCELERATORS.own) == set(MADE) == {"none", *(type(make()).name for make in MADE.values())}
    assert type(make_accelerator(Config(), None, "")) is NoAccelerator


class TestEveryAccelerator(AcceleratorContract):
    @pytest.fixture(params=sorted(set(VARIANTS) - {"none"}))
    def make(self, request):
        return VARIANTS[request.param]


class EverySiteIdentity(Accelerator):
    """Visits every site, changes nothing, and writes down what it saw in its plan."""

    sites = SITES

    def plan_block(self, encoder_depth):
        return encoder_depth - 1

    def plan(self, features: Tokens):
        return (("plan", tuple(features.x.shape)),)

    def compress(self, tokens, plan, site):
        return tokens, (plan or ()) + ((site, tuple(tokens.x.shape)),)

    restore = compress


def test_visiting_every_site_with_the_identity_changes_no_bit(model, images):
    plain, _ = run(model, images, NoAccelerator())
    visited, trunk = run(model, images, EverySiteIdentity())
    for key, value in plain.items():
        assert torch.equal(value, visited[key]), key
    seen = [site for site, _ in trunk.plan]
    assert SITES - {"tap"} <= set(seen)  # the taps' plans are thrown away: the stream goes on as it was
    assert seen.count("backbone_in") == seen.count("encoder_k") == seen.count("encoder_end") == seen.count("plan") == 1
    assert dict(trunk.plan)["backbone_in"] == (2, 3, 5 + 4 * 5, 48)


class DropEveryOtherPatch(Accelerator):
    """The crudest real reduction: half of the patches through the trunk, copied back at the taps."""

    sites = frozenset({"backbone_in", "tap"})

    def compress(self, tokens, plan, site):
        n = tokens.special
        patches = tokens.x.shape[2] - n
        keep = torch.cat((torch.arange(n), n + torch.arange(0, patches, 2)))
        back = torch.cat((torch.arange(n), n + torch.arange(patches) // 2))
        return tokens._replace(x=tokens.x[:, :, keep], positions=tokens.positions[:, :, keep]), back

    def restore(self, tokens, plan, site):
        return tokens._replace(x=tokens.x[:, :, plan]), plan


def test_blocks_really_run_short_and_taps_are_whole_again(model, images):
    lengths = []

    class Watch(DropEveryOtherPatch):
        def attend(self, q, k, v, plan, layer):
            lengths.append((layer.part, q.shape[2]))
            return super().attend(q, k, v, plan, layer)

    out, trunk = run(model, images, Watch())
    grid = 4 * 5
    assert {n for part, n in lengths if part == "encoder"} == {5 + grid}
    assert {n for part, n in lengths if part == "frame"} == {5 + grid // 2}
    assert {n for part, n in lengths if part == "global"} == {3 * (5 + grid // 2)}
    assert all(t.shape[2] == 5 + grid for t in trunk.levels.values())
    assert out["depth"].shape == (2, 3, 56, 70)


def test_check_is_called_between_blocks_and_can_end_the_pass(model, images):
    from come_ros.errors import Cancelled

    calls = 0

    def check():
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Cancelled("enough")

    with torch.inference_mode(), pytest.raises(Cancelled):
        model(images, NoAccelerator(), ("depth",), check)
    assert calls == 5


class FirstFrameKeys(Accelerator):
    """Everybody reads the first frame only, or, in global block 1, only its own frame."""

    def __init__(self):
        self.seen = []

    def reach(self, tokens, plan, layer):
        if layer.part != "global" or layer.index == 1:
            return Reach(False)
        b, _, t, _ = tokens.x.shape
        return Reach(True, torch.arange(t).expand(b, -1))

    def attend(self, q, k, v, plan, layer):
        self.seen.append((layer, q.shape[2], k.shape[2]))
        return super().attend(q, k, v, plan, layer)


def test_keys_of_chosen_tokens_are_those_of_dense_attention_masked(model, images):
    class Masked(FirstFrameKeys):
        def reach(self, tokens, plan, layer):
            return Reach(layer.part == "global" and layer.index != 1)

        def attend(self, q, k, v, plan, layer):
            t = q.shape[2] // (3 if layer.part == "global" else 1)
            return Accelerator.attend(self, q, k[:, :, :t], v[:, :, :t], plan, layer)

    chosen, t = FirstFrameKeys(), 5 + 4 * 5
    out, _ = run(model, images, chosen)
    masked, _ = run(model, images, Masked())
    for key in out:
        torch.testing.assert_close(out[key], masked[key])
    assert {(q, k) for layer, q, k in chosen.seen if layer.part == "global"} == {(3 * t, t)}
    assert sum(layer.part == "frame" for layer, _, _ in chosen.seen) == 5  # four frame blocks and global block 1


def test_the_residual_site_is_told_the_keys_and_the_block(model, images):
    seen = []

    class Look(Accelerator):
        sites = frozenset({"residual", "before_mlp", "tap"})

        def compress(self, tokens, plan, site):
            seen.append((site, tokens.layer.part, None if tokens.keys is None else tuple(tokens.keys.shape)))
            assert tokens.images is images
            return tokens, plan

    run(model, images, Look())
    assert {part for _, part, _ in seen} == {"encoder", "frame", "global"}
    assert {shape for site, _, shape in seen if site == "residual"} == {(2, 3, 25, 16)}
    assert {shape for site, _, shape in seen if site == "before_mlp"} == {None}


@pytest.mark.parametrize(
    ("name", "share"),
    [
        # four global layers of 3 frames of 4x5 patches: one in the frame, one on a grid of 2x3 of 2 frames, two of 2 frames
        ("good_token_hunting", (1 / 3 + 2 / 3 * 6 / 20 + 2 * 2 / 3) / 4),
        ("temporal", 1 - 20 / 60),  # half of the 40 patches of later frames share a key of the first
        # the first frame reads all; each of the two others is a group, and reads itself and the first one
        ("subscene", (3 + 2 * 2) / 9),
        # two of four layers: the whole first frame, and of 4x5 patches 2x3 of the most similar frame and 2x2 of the other
        ("regime", (2 + 2 * (20 + 6 + 4) / 60) / 4),
        ("come", 14 / 20),  # 2 of the 4 whole groups: 6 tokens fewer
        ("none", 1.0),
    ],
)
def test_the_share_of_keys_that_are_read_is_told(model, images, name, share):
    _, trunk = run(model, images, VARIANTS[name]())
    assert trunk.read_ratio == pytest.approx(share)
