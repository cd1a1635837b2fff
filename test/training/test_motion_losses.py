"""The losses of the model with a stem have their minimum at the truth, and none where the model says nothing."""

from __future__ import annotations

import pytest
import torch

from come_ros.training.motion_losses import depth_loss, flow_loss, flow_targets, likelihood_loss, motion_loss


def encoding(translations):
    """(1, S, 9): no rotation, 1 rad of view."""
    t = torch.tensor(translations, dtype=torch.float32)
    return torch.cat((t, torch.tensor([0, 0, 0, 1.0, 1, 1]).expand(len(t), 6)), dim=1)[None]


WANT = encoding([[0, 0, 0], [0.3, 0, 0], [0, 0.02, 0.05]])


def total(found, want=WANT):
    return sum(float(x) for x in motion_loss(found.expand(4, *found.shape), want).values())


def test_motion_loss_is_least_at_the_truth():
    at_truth = total(WANT)
    assert at_truth == pytest.approx(0, abs=0.02)
    for gain in (0.0, 0.3, 3.0):
        assert total(torch.cat((gain * WANT[..., :3], WANT[..., 3:]), dim=-1)) > at_truth + 0.05
    turned = WANT.clone()
    turned[..., 3] = 0.1
    assert total(turned) > at_truth + 0.05


def test_no_motion_is_no_way_out_and_is_left_fastest():
    """An L1 relative to a small length is least at no motion while directions are unknown; here a half-right direction is better."""
    still = torch.cat((torch.zeros_like(WANT[..., :3]), WANT[..., 3:]), dim=-1)
    half_right = WANT.clone()
    half_right[..., :3] = WANT[..., :3] + 0.5 * WANT[..., :3].norm(dim=-1, keepdim=True) * torch.tensor([0.0, 0, 1])
    assert total(half_right) < total(still)
    still.requires_grad_()
    sum(motion_loss(still[None], WANT).values()).backward()
    assert (
        still.grad[0, 1, :3] * WANT[0, 1, :3]
    ).sum() < 0 and still.grad.isfinite().all()  # downhill is towards the truth


def test_short_translations_count_by_the_length_below_which_they_are_short():
    off = WANT.clone()
    off[..., 0] += 0.01  # of 0.3, of 0.054, and of the first frame, which does not count
    terms = {short: motion_loss(off[None], WANT, short) for short in (0.2, 0.05)}
    assert terms[0.05]["distance"] > 2 * terms[0.2]["distance"] > 0
    assert all(terms[0.05][name] == terms[0.2][name] for name in ("turn", "direction", "length"))


def test_one_frame_has_no_translation():
    terms = motion_loss(WANT[None, :, :1] + 1.0, WANT[:, :1])
    assert terms["direction"] == terms["length"] == terms["distance"] == 0 and terms["turn"] > 0


def test_depth_loss_separates_the_windows_scale():
    truth = torch.rand(2, 3, 16, 20) + 1
    exact, error = depth_loss(truth.log(), truth)
    assert exact.tolist() == pytest.approx([0, 0], abs=1e-5) and error.max() < 1e-5
    scaled, error = depth_loss(truth.log() + 0.4, truth)
    assert scaled.tolist() == pytest.approx([0.2, 0.2], abs=1e-4) and error.max() < 1e-4
    noisy, _ = depth_loss(truth.log() + 0.4 * torch.rand_like(truth), truth)
    assert (noisy > scaled + 0.1).all()


def test_the_most_likely_confidence_is_one_over_the_mean_error():
    error = torch.full((1, 1, 8, 8), 0.05)
    error[..., :4] = 0.15
    x = torch.linspace(0, 6, 2000)
    values = torch.stack([likelihood_loss(torch.full_like(error, float(s)), error)[0] for s in x])
    assert x[values.argmin()].exp().item() == pytest.approx(10, rel=0.02)
    error.requires_grad_()
    assert not likelihood_loss(torch.zeros_like(error), error).requires_grad  # it cannot make depth worse


def test_flow_is_the_offset_in_patches():
    """A wall straight ahead; the second camera stands 0.4 m to the right, so what it sees lies further right in the first image."""
    k = torch.tensor([[[80.0, 0, 31.5], [0, 80, 23.5], [0, 0, 1]]])
    v, u = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    first = torch.stack(((u - 31.5) / 80 * 2, (v - 23.5) / 80 * 2, torch.full_like(u, 2)), dim=-1)
    want = {
        "points": torch.stack((first, first + torch.tensor([0.4, 0, 0])))[None],
        "depth": torch.full((1, 2, 48, 64), 2.0),
    }
    offset, inside = flow_targets(want, k, 16)
    assert offset.shape == (1, 1, 12, 2) and inside.shape == (1, 1, 12)
    assert torch.allclose(offset[0, 0, :, 0], torch.tensor(1.0), atol=1e-4) and offset[..., 1].abs().max() < 1e-4
    assert inside[0, 0].view(3, 4)[:, :3].all()
    level = torch.zeros(1, 2, 12, 5)
    heads = torch.nn.ModuleList([torch.nn.Linear(5, 2)])
    torch.nn.init.zeros_(heads[0].weight)
    with torch.no_grad():
        heads[0].bias.copy_(torch.tensor([1.0, 0.0]))
    assert flow_loss(heads, [level], offset, inside) < 1e-6
    with torch.no_grad():
        heads[0].bias.zero_()
    assert flow_loss(heads, [level], offset, inside) > 0.4
