"""Train the small VGGT (`tiny`) on procedural rooms: VGGT's losses, one file from top to bottom.

examples:
  come_ros train --minutes 100 -o out/train              the run that made the bundled model (then --export)
  come_ros train --minutes 100 -o out/train --resume     go on after an interruption
  come_ros train -o out/train --score test               scores of the checkpoint beside the null models
  come_ros train -o out/train --export come_ros/models/vggt_tiny.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import random
import time
from typing import Any

import numpy as np

from ..datasets.windows import load_pictures, loader

BATCH_FRAMES = 24  # frames in a batch, whatever the window length
LEARNING_RATE = 1.5e-3
LONGEST_STEP_S = 20.0  # of a step's time that counts: what is longer was a pause of the machine
WEIGHT_DECAY = 0.02
WARM_UP_STEPS = 100
CAMERA_WEIGHT = 5.0
MATCH_WEIGHT = 0.5  # auxiliary, fades out; see matching_loss
ATTENTION_WEIGHT = 0.5  # auxiliary, fades out; see attention_loss
WATCHED_BLOCKS = (0, 1, 2)  # global blocks it acts on
RAY_WEIGHT = 4.0  # auxiliary, fades out; see make_probe
ROTATION_WEIGHT = 3.0  # of the quaternion in the camera loss: at 10 degrees it differs from the identity by 0.09 only
TRANSLATION_WEIGHT = 0.5  # of the translation, relative to its length: an absolute L1 is smallest at no motion at all
SHORTEST = 0.05  # translation, in scene scales, below which the error counts as if it had this length
FADE = 0.85  # share of the time over which the auxiliary losses fade out
MERGE_RATIOS = (0.25, 0.5, 0.75)  # drawn from in steps with merging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", required=True, help="folder for checkpoint, log and curve")
    parser.add_argument(
        "--minutes", type=float, default=100.0, help="training time; the schedule is a function of it (default 100)"
    )
    parser.add_argument("--variant", default="tiny", help="model size, a name from backbones/vggt.py (default tiny)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = all")
    parser.add_argument("--start", metavar="FILE", help="begin with the model and probe of this checkpoint (last.pt)")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="peak learning rate (default %(default)s)")
    parser.add_argument(
        "--merge", type=float, default=0.0, help="share of steps with groups of patches merged at random (default 0)"
    )
    parser.add_argument(
        "--predictor",
        metavar="FILE",
        help="of Co-Me: chooses the groups in two of three such steps, instead of the lot",
    )
    parser.add_argument("--pictures", metavar="DIR", help="folder of photographs to hang into the rooms")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (bf16 there)")
    parser.add_argument("--batch", type=int, default=BATCH_FRAMES, help="frames in a batch (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that render (default 1)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.add_argument("--score", choices=["validation", "test"], help="only score the checkpoint on this split")
    parser.add_argument("--export", metavar="FILE", help="only write the checkpoint's weights as fp16 safetensors")


def run(args: argparse.Namespace) -> int:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    os.makedirs(args.output, exist_ok=True)
    if args.export:
        export(os.path.join(args.output, "last.pt"), args.export)
    elif args.score:
        model, _ = restore(os.path.join(args.output, "last.pt"))
        scores = score(model, args.score, 64)
        print(json.dumps(scores, indent=2))
        with open(os.path.join(args.output, f"scores_{args.score}.json"), "w", encoding="utf-8") as fh:
            json.dump(scores, fh, indent=2)
    else:
        train(args)
    return 0


# -------------------------------------------------------------------------------------------------------------- targets
def targets(batch: dict[str, Any]) -> dict[str, Any]:
    """Ground truth in the model's terms, scale normalised (VGGT 3.4): about the first camera, mean distance of all points = 1.

    depth (B, S, H, W), points (B, S, H, W, 3), encoding (B, S, 9), all fp32.
    """
    import torch

    depth, pose, k = batch["depth"], batch["camera_from_first"], batch["intrinsics"]
    _, s, h, w = depth.shape
    v, u = (x.to(depth) for x in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    f, c = k[:, None, None, None, 0, 0], k[:, None, None, None, :2, 2]
    x, y = (u - c[..., 0]) * depth / f, (v - c[..., 1]) * depth / f
    camera = torch.stack((x, y, depth), dim=-1)  # (B, S, H, W, 3)
    rt = pose[..., :3, :3].transpose(-1, -2)  # first_from_camera rotation
    points = torch.einsum("bsij,bshwj->bshwi", rt, camera - pose[:, :, None, None, :3, 3])
    scale = points.norm(dim=-1).mean(dim=(1, 2, 3))  # (B,)
    t = pose[..., :3, 3] / scale[:, None, None]
    fov = torch.stack((2 * torch.atan(h / 2 / k[:, 1, 1]), 2 * torch.atan(w / 2 / k[:, 0, 0])), dim=-1)
    encoding = torch.cat((t, quaternion(pose[..., :3, :3]), fov[:, None].expand(-1, s, -1)), dim=-1)
    return {
        "depth": depth / scale[:, None, None, None],
        "points": points / scale[:, None, None, None, None],
        "encoding": encoding,
        "camera": camera / scale[:, None, None, None, None],
        "scale": scale,
    }


def quaternion(rotation: Any) -> Any:
    """(..., 3, 3) -> (..., 4) xyzw with w >= 0."""
    import torch
    from scipy.spatial.transform import Rotation

    q = Rotation.from_matrix(rotation.reshape(-1, 3, 3).double().cpu().numpy()).as_quat(canonical=True)
    return torch.from_numpy(q).float().view(*rotation.shape[:-2], 4).to(rotation.device)


# --------------------------------------------------------------------------------------------------------------- losses
def camera_loss(encodings: Any, want: Any) -> Any:
    """L1 of every refinement step's pose encoding, later steps counting more (VGGT 3.4; weights 0.6^(last - step)).

    Unlike VGGT's, a translation's error is taken relative to its length.
    """
    n = len(encodings)
    weight = want.new_tensor([1.0] * 3 + [ROTATION_WEIGHT] * 4 + [1.0] * 2).repeat(*want.shape[:2], 1) / 9
    length = want[..., :3].norm(dim=-1, keepdim=True).clamp_min(SHORTEST)
    weight[..., :3] *= TRANSLATION_WEIGHT / length
    return sum(
        0.6 ** (n - 1 - i) * ((e - want).abs().clamp_max(10) * weight).sum(-1).mean() for i, e in enumerate(encodings)
    )


def dense_loss(error: Any, confidence: Any, gradient: Any) -> Any:
    """Confidence-weighted error with gradient term (VGGT eq. 3; Kendall & Gal 2017): c e + c |grad e| - 0.2 log c, e clamped."""
    return (confidence * (error.clamp_max(4) + gradient)).mean() - 0.2 * confidence.log().mean()


def spatial_gradient(x: Any) -> Any:
    """|dx| + |dy| of (B, S, H, W), zero at the far border."""
    import torch.nn.functional as F

    return F.pad((x[..., 1:] - x[..., :-1]).abs(), (0, 1)) + F.pad((x[..., 1:, :] - x[..., :-1, :]).abs(), (0, 0, 0, 1))


def patch_centres(x: Any, patch: int) -> Any:
    """(B, S, H, W, ...) -> its values at patch centres, (B, S, h*w, ...)."""
    return x[:, :, patch // 2 :: patch, patch // 2 :: patch].flatten(2, 3)


def correspondence(want: dict[str, Any], batch: dict[str, Any], patch: int) -> tuple[Any, Any]:
    """Which patch of the first frame sees what each patch of the others sees: index (B, S-1, n), and where that is known, bool."""
    b, _, height, width = batch["depth"].shape
    h, w = height // patch, width // patch
    p = patch_centres(want["points"], patch)[:, 1:]  # in the first camera
    k = batch["intrinsics"][:, None, None]
    z = p[..., 2].clamp_min(1e-3)
    u = p[..., 0] / z * k[..., 0, 0] + k[..., 0, 2]
    v = p[..., 1] / z * k[..., 1, 1] + k[..., 1, 2]
    col, row = ((u + 0.5) / patch).floor().long(), ((v + 0.5) / patch).floor().long()
    inside = (p[..., 2] > 0.01) & (col >= 0) & (col < w) & (row >= 0) & (row < h)
    target = row.clamp(0, h - 1) * w + col.clamp(0, w - 1)
    seen = (
        patch_centres(want["depth"], patch)[:, 0].gather(1, target.view(b, -1)).view_as(z)
    )  # what the first camera sees there
    return target, inside & ((z / seen - 1).abs() < 0.15)


def choice_loss(logits: Any, target: Any, valid: Any) -> Any:
    """Cross-entropy of logits (B, m, n) against target (B, m) where valid (B, m)."""
    import torch.nn.functional as F

    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none") * valid.flatten()
    return loss.sum() / valid.sum().clamp_min(1)


def matching_loss(descriptors: Any, target: Any, valid: Any) -> Any:
    """InfoNCE: each patch's descriptor (B, S, n, c) must be most like that of the first frame's patch that sees the same (auxiliary).

    A transformer of this size does not find correspondence from the pose loss alone within 40 thousand windows (measured); told where a
    patch went, it does.
    """
    import torch
    import torch.nn.functional as F

    f = F.normalize(descriptors, dim=-1)
    logits = torch.einsum("bmc,bnc->bmn", f[:, 1:].flatten(1, 2), f[:, 0]) / 0.07
    return choice_loss(logits, target.flatten(1), valid.flatten(1))


def attention_loss(watched: list[tuple[Any, Any]], frames: int, special: int, target: Any, valid: Any) -> Any:
    """The first head of some global blocks must look at the matching patch of the first frame (auxiliary).

    Without it the blocks ignore the matches that the descriptors already hold: 23 thousand frames gave no rotation at all (measured).
    watched: queries and keys (B, heads, S T, d) of each block.
    """
    total = 0.0
    for q, k in watched:
        b, _, n, d = q.shape
        queries = q[:, 0].view(b, frames, n // frames, d)[:, 1:, special:].flatten(1, 2)
        logits = (
            queries @ k[:, 0].transpose(1, 2) / d**0.5
        )  # over all tokens of all frames, as the block itself sees them
        total = total + choice_loss(logits, special + target.flatten(1), valid.flatten(1))
    return total / len(watched)


def make_probe(model: Any) -> Any:
    """Linear maps that only training has, for the two auxiliary losses.

    match: patch tokens to a descriptor; a map of its own, so that the tokens keep what a descriptor must not hold, their position.
    rays: one for each tapped level, patch tokens to the direction, in the first camera, of the point at the patch's centre. A camera's
    rotation is nothing but how these directions moved, and here every patch gets a gradient of its own.
    """
    from torch import nn

    c = model.sizes.dim
    return nn.ModuleDict({"match": nn.Linear(c, 64), "rays": nn.ModuleList(nn.Linear(2 * c, 3) for _ in model.taps)})


def ray_loss(rays: Any, levels: list[Any], want: dict[str, Any], patch: int) -> Any:
    import torch.nn.functional as F

    direction = F.normalize(patch_centres(want["points"], patch), dim=-1)
    return sum((p(x) - direction).abs().mean() for p, x in zip(rays, levels, strict=True)) / len(levels)


def head_losses(model: Any, trunk: Any, want: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Camera, depth and points: the published terms, of what the heads make of `trunk` for images of (H, W) = size."""
    import torch

    from ..backbones.vggt import inverse_log

    encodings = model.camera_head(trunk.levels[model.taps[-1]][:, :, 0])

    # the dense heads treat frames one by one: half of them, at half resolution, teach as much per second as all of them
    s = encodings.shape[2]
    rows = torch.randperm(s, device=encodings.device)[: max(1, s // 2)]
    size = (size[0] // 2, size[1] // 2)
    part = trunk._replace(levels={i: t[:, rows] for i, t in trunk.levels.items()})
    depth_raw = model.run_dense_head(model.depth_head, part, size, lambda: None, chunk=64)
    point_raw = model.run_dense_head(model.point_head, part, size, lambda: None, chunk=64)

    # in logarithms: the scores are relative errors, and the head's exp makes the raw channel the log depth
    log_error = depth_raw[:, :, 0] - want["depth"][:, rows, ::2, ::2].clamp_min(1e-3).log()
    depth = dense_loss(log_error.abs(), 1 + depth_raw[:, :, 1].clamp_max(8).exp(), spatial_gradient(log_error))
    point_error = inverse_log(point_raw[:, :, :3].clamp(-6, 6)).movedim(2, -1) - want["points"][:, rows, ::2, ::2]
    gradient = sum(spatial_gradient(point_error[..., i]) for i in range(3))
    points = dense_loss(point_error.norm(dim=-1), 1 + point_raw[:, :, 3].clamp_max(8).exp(), gradient)
    return {"camera": camera_loss(encodings, want["encoding"]), "depth": depth, "points": points}


def losses(model: Any, probe: Any, batch: dict[str, Any], merging: Any = None) -> dict[str, Any]:
    """Each term of the training loss for one batch, unweighted. merging: the accelerator that is active in this step, or None."""
    from ..accelerators import Accelerator

    watched = []

    class Watch(Accelerator):  # dense attention that lets the attention loss see queries and keys
        def attend(self, q: Any, k: Any, v: Any, plan: Any, layer: Any) -> Any:
            if layer.part == "global" and layer.index in WATCHED_BLOCKS:
                watched.append((q, k))
            return super().attend(q, k, v, plan, layer)

    images = batch["images"].float() / 255
    want = targets(batch)
    target, valid = correspondence(want, batch, model.patch)
    trunk = model.run_trunk(images, merging or Watch())
    s = images.shape[1]
    tokens = [trunk.levels[i][:, :, trunk.special :] for i in model.taps]
    c = tokens[0].shape[-1] // 2
    zero = tokens[0].new_zeros(())
    return {
        **head_losses(model, trunk, want, (images.shape[3], images.shape[4])),
        "match": matching_loss(probe["match"](tokens[0][..., :c]), target, valid)
        if s > 1
        else zero,  # first frame block
        "attention": attention_loss(watched, s, trunk.special, target, valid) if watched and s > 1 else zero,
        "ray": ray_loss(probe["rays"], tokens, want, model.patch),
    }


# ------------------------------------------------------------------------------------------------------------- training
def initialise(model: Any, seed: int) -> None:
    """Starting values that help so small a model on so few windows; the architecture stays VGGT's."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    a = model.aggregator
    for token in (a.camera_token, a.register_token, a.patch_embed.cls_token, a.patch_embed.register_tokens):
        nn.init.normal_(token, std=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith(("ls1.gamma", "ls2.gamma")):
            nn.init.constant_(
                parameter, 0.5
            )  # 0.01 as for a deep stack would keep this shallow one silent for too long
    with torch.no_grad():
        a.patch_embed.patch_embed.proj.weight.copy_(cosine_filters(model.sizes.dim, model.patch))
        a.patch_embed.patch_embed.proj.bias.zero_()
        a.patch_embed.pos_embed[:, 1:] = sine_table(
            model.sizes.dim, round((a.patch_embed.pos_embed.shape[1] - 1) ** 0.5)
        )
        for block in a.global_blocks:  # keys start equal to queries: like attends to like, the beginning of matching
            c = model.sizes.dim
            block.attn.qkv.weight[c : 2 * c] = block.attn.qkv.weight[:c]
        # the first estimate is the identity at a 60 degree field of view; a head that starts anywhere locks into 180 degree flips
        last = model.camera_head.pose_branch.fc2
        last.weight.mul_(0.1)
        last.bias.copy_(torch.tensor([0, 0, 0, 0, 0, 0, 1.0, 0.85, 1.05]) / model.camera_head.iterations)


def cosine_filters(count: int, patch: int) -> Any:
    """(count, 3, patch, patch): the lowest 2D cosine waves, for brightness and two colour differences, as patch filters."""
    import torch

    n = torch.arange(patch) + 0.5
    waves = torch.stack([torch.cos(math.pi * k * n / patch) for k in range(patch)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    order = sorted((i * i + j * j, i, j) for i in range(patch) for j in range(patch))
    colour = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]])
    colour = colour / colour.norm(dim=1, keepdim=True)
    shares = [0] * (count - 2 * (count // 5)) + [1] * (count // 5) + [2] * (count // 5)
    used = [0, 0, 0]
    filters = []
    for channel in shares:
        _, i, j = order[used[channel]]
        used[channel] += 1
        gain = 0.2 * math.sqrt(1 + i * i + j * j)  # natural images have little energy in fine waves: lift them
        filters.append(gain * colour[channel][:, None, None] * (waves[i][:, None] * waves[j][None]))
    return torch.stack(filters)


def sine_table(dim: int, side: int) -> Any:
    """(side * side, dim) sine-cosine position table, amplitude 0.5."""
    import torch

    n = dim // 4
    frequency = 30.0 ** (-torch.arange(n) / n)
    angle = torch.arange(side)[:, None] * frequency * 2 * math.pi / 4
    wave = torch.cat((angle.sin(), angle.cos()), dim=1)  # (side, dim / 2)
    both = (wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1))
    return 0.5 * torch.cat(both, dim=-1).reshape(side * side, 4 * n)


def train(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from ..accelerators.confidence import load_predictor
    from ..backbones.vggt import VARIANTS, VGGT

    torch.set_flush_denormal(
        True
    )  # tiny gradients and their squares become denormal numbers: CPUs are many times slower on those
    model = VGGT(VARIANTS[args.variant])
    initialise(model, args.seed)
    probe = make_probe(model)
    if args.start:
        begin_with(args.start, model, probe)
    device = torch.device(args.device)
    model.to(device), probe.to(device)
    decayed = [
        p
        for n, p in [*model.named_parameters(), *probe.named_parameters()]
        if p.ndim >= 2 and "token" not in n and "pos_embed" not in n
    ]
    ids = {id(p) for p in decayed}
    others = [p for p in [*model.parameters(), *probe.parameters()] if id(p) not in ids]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95), fused=True)
    step, seconds, frames, log = 0, 0.0, 0, []
    path = os.path.join(args.output, "last.pt")
    if args.resume:
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        probe.load_state_dict(state["probe"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds, frames, log = state["step"], state["seconds"], state["frames"], state["log"]

    def save() -> None:
        state = {
            "variant": args.variant,
            "model": model.state_dict(),
            "probe": probe.state_dict(),
            "step": step,
            "log": log,
        }
        state |= {
            "optimiser": optimiser.state_dict(),
            "seconds": seconds,
            "frames": frames,
            "minutes": args.minutes,
            "seed": args.seed,
        }
        torch.save(state, path + ".part")
        os.replace(path + ".part", path)

    pictures = load_pictures(args.pictures) if args.pictures else []
    # after a resume: other windows, not the same again; a model that begins trained needs no curriculum
    practised = 60.0 if args.start else seconds / 60
    batches = loader(args.seed + 7919 * step, model.native_side, practised, args.batch, pictures, args.workers)
    merging = random.Random(args.seed + step)
    predictor = load_predictor(args.predictor, model) if args.predictor else None
    if predictor:
        predictor[0].to(device)
    mean: dict[str, float] = {}
    bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
    last, next_log, next_score = time.monotonic(), seconds + 30, seconds + 600
    while seconds < args.minutes * 60:
        done = seconds / (args.minutes * 60)
        rate = args.rate * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = {name: value.to(device, non_blocking=True) for name, value in next(batches).items()}
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            terms = losses(
                model, probe, batch, merge_some(merging, predictor) if merging.random() < args.merge else None
            )
        fade = max(0.0, 1 - done / FADE)
        total = (
            CAMERA_WEIGHT * terms["camera"]
            + terms["depth"]
            + terms["points"]
            + fade * (MATCH_WEIGHT * terms["match"] + ATTENTION_WEIGHT * terms["attention"] + RAY_WEIGHT * terms["ray"])
        )
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):  # one bad batch must not spoil the weights
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)

        step, frames = step + 1, frames + batch["images"].shape[0] * batch["images"].shape[1]
        for name, value in terms.items():
            value = float(value.detach())
            if value == 0:  # not taught in this step
                continue
            mean[name] = 0.97 * mean.get(name, value) + 0.03 * value
        now = time.monotonic()
        seconds, last = seconds + min(now - last, LONGEST_STEP_S), now
        bar.n = round(100 * seconds / (args.minutes * 60), 1)
        bar.set_postfix_str(f"step {step} " + " ".join(f"{k} {v:.3f}" for k, v in mean.items()), refresh=step % 20 == 0)
        if seconds >= next_log:
            entry: dict[str, Any] = {"step": step, "seconds": seconds, "frames": frames, "rate": rate, **mean}
            if seconds >= next_score:
                entry["validation"] = score(model, "validation", 24)
                next_score += 600
            log.append(entry)
            next_log += 30
            save()
            with open(os.path.join(args.output, "log.json"), "w", encoding="utf-8") as fh:
                json.dump(log, fh)
            draw_curve(log, os.path.join(args.output, "curve.png"))
            last = time.monotonic()  # scoring is not training time
    bar.close()
    log.append(
        {
            "step": step,
            "seconds": seconds,
            "frames": frames,
            "rate": 0.0,
            **mean,
            "validation": score(model, "validation", 64),
        }
    )
    save()
    draw_curve(log, os.path.join(args.output, "curve.png"))
    print(json.dumps(log[-1], indent=2))


def begin_with(path: str, model: Any, probe: Any) -> None:
    """Fill both from a checkpoint of the same variant; its position table may be of another image size."""
    from ..backbones.layers import antialiased_table

    earlier, state = restore(path)
    weights = earlier.state_dict()
    key = "aggregator.patch_embed.pos_embed"
    want = model.state_dict()[key]
    if weights[key].shape != want.shape:
        side = round((want.shape[1] - 1) ** 0.5)
        weights[key] = antialiased_table(weights[key], side, side)
    model.load_state_dict(weights)
    probe.load_state_dict(state["probe"])


class _ByLot:
    """Confidence without a meaning: training must be ready for any choice of groups."""

    def __call__(self, tokens: Any) -> Any:
        import torch

        coarse = torch.rand(*tokens.shape[:2], 3, 4, device=tokens.device)  # groups in patches, as real choices come
        smooth = torch.nn.functional.interpolate(coarse, tokens.shape[2:4], mode="bilinear")
        return smooth + 0.3 * torch.rand(tokens.shape[:4], device=tokens.device)


def merge_some(rng: random.Random, predictor: tuple[Any, int] | None) -> Any:
    """Co-Me with groups of a random size and share for one step; chosen by the predictor (network, the block it reads) or by lot."""
    from ..accelerators.come import CoMe

    group = rng.choice([(2, 2), (3, 3), (3, 3)])
    network, block = predictor if predictor and rng.random() < 2 / 3 else (_ByLot(), rng.choice([0, 1, 2]))
    return CoMe(network, block=block, ratio=rng.choice(MERGE_RATIOS), group=group, kernels="torch")


def restore(path: str) -> tuple[Any, dict[str, Any]]:
    """The model of a training checkpoint, and the checkpoint. Raises CheckpointError if there is none."""
    import torch

    from ..backbones.vggt import VARIANTS, VGGT
    from ..errors import CheckpointError

    if not os.path.isfile(path):
        raise CheckpointError(f"no training checkpoint {path}: name the folder that `come_ros train -o` wrote")
    state = torch.load(path, weights_only=True)
    sizes = VARIANTS[state["variant"]]
    side = round((state["model"]["aggregator.patch_embed.pos_embed"].shape[1] - 1) ** 0.5) * sizes.patch
    if side != sizes.image_side:  # trained at another size
        sizes = dataclasses.replace(sizes, image_side=side, native_side=side)
    model = VGGT(sizes)
    model.load_state_dict(state["model"])
    return model.eval(), state


def export(checkpoint: str, target: str) -> None:
    from ..backbones.checkpoint import save_checkpoint

    model, state = restore(checkpoint)
    about = {k: str(state[k]) for k in ("step", "frames", "seconds", "seed", "minutes")}
    save_checkpoint(target, model, extra={"licence": "Apache-2.0", "made_by": "come_ros train", **about})
    print(f"{target}: {os.path.getsize(target) / 2**20:.2f} MiB")


# -------------------------------------------------------------------------------------------------------------- scoring
def score(model: Any, split: str, count: int) -> dict[str, Any]:
    """Scores on `count` windows of 4 frames of a frozen split, beside three null models that know nothing of the images:
    one depth for all pixels, the training rooms' mean depth map, no rotation. Depth is scaled per window by the median ratio.
    """
    import torch

    from ..accelerators import NoAccelerator
    from ..datasets.synthetic import SPLIT_SEEDS, TEST_RATE_HZ, render_sequence
    from ..evaluation import depth_errors, relative_pose_errors

    width, height = model.native_side, model.native_side * 3 // 4
    average = mean_depth_map(width, height)
    device = next(model.parameters()).device
    rows: dict[str, list[float]] = {}
    model.eval()
    for seed in SPLIT_SEEDS[split][:count]:
        s = render_sequence(seed, frames=4, width=width, height=height, rate_hz=TEST_RATE_HZ)
        with torch.inference_mode():
            images = torch.from_numpy(s.images).to(device).permute(0, 3, 1, 2)[None].float() / 255
            out, _ = model(images, NoAccelerator(), ("camera", "depth"))
        estimates = {
            "": out["depth"][0].cpu().numpy(),
            "constant ": np.ones_like(s.depth),
            "mean map ": np.broadcast_to(average, s.depth.shape),
        }
        for name, depth in estimates.items():
            e = depth_errors(depth, s.depth)
            rows.setdefault(name + "abs_rel", []).append(e.abs_rel)
            rows.setdefault(name + "delta", []).append(e.delta)
        rotation, direction, identity = relative_pose_errors(
            out["world_from_camera"][0].double().cpu().numpy(), s.world_from_camera
        )
        rows.setdefault("rotation_deg", []).extend(rotation)
        rows.setdefault("identity rotation_deg", []).extend(identity)
        rows.setdefault("direction_deg", []).extend(direction)
    model.train()
    pose = ("rotation_deg", "identity rotation_deg", "direction_deg")
    result = {k: round(float(np.nanmedian(v) if k in pose else np.mean(v)), 4) for k, v in rows.items()}
    return {"split": split, "windows": count, **result}


def mean_depth_map(width: int, height: int, count: int = 64) -> np.ndarray:
    """(H, W) geometric mean depth of training rooms, each frame scaled to median 1: what a model without eyes would say."""
    from ..datasets.synthetic import SPLIT_SEEDS, TEST_RATE_HZ, render_sequence

    logs = []
    for seed in SPLIT_SEEDS["train"][-count:]:
        depth = render_sequence(
            seed, frames=2, width=width, height=height, rate_hz=TEST_RATE_HZ, photometric=False
        ).depth
        logs.append(np.log(depth / np.median(depth, axis=(1, 2), keepdims=True)).mean(axis=0))
    return np.exp(np.mean(logs, axis=0))


def draw_curve(log: list[dict[str, Any]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    minutes = [e["seconds"] / 60 for e in log]
    for name in ("camera", "depth", "points", "match", "attention", "ray"):
        axes[0].plot(minutes, [e.get(name, math.nan) for e in log], label=name)
    axes[0].set(title="training loss", xlabel="minutes")
    scored = [(e["seconds"] / 60, e["validation"]) for e in log if "validation" in e]
    for null in ("constant delta", "mean map delta"):
        axes[1].plot([m for m, _ in scored], [v[null] for _, v in scored], "--", label=null)
    axes[1].plot([m for m, _ in scored], [v["delta"] for _, v in scored], "o-", label="delta < 1.25")
    axes[1].set(title="validation depth", xlabel="minutes")
    axes[2].plot(
        [m for m, _ in scored], [v["identity rotation_deg"] for _, v in scored], "--", label="identity rotation"
    )
    axes[2].plot([m for m, _ in scored], [v["rotation_deg"] for _, v in scored], "o-", label="rotation error, deg")
    axes[2].plot(
        [m for m, _ in scored], [v["direction_deg"] for _, v in scored], "o-", label="translation direction, deg"
    )
    axes[2].set(title="validation pose", xlabel="minutes", ylim=(0, None))
    for axis in axes:
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)
