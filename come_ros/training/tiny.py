"""Training of the small model: initial values, losses, optimiser, one step, and the shipped file."""

from __future__ import annotations

import dataclasses
import math
import os
import random
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .loop import load_state

if TYPE_CHECKING:
    from ..accelerators import Accelerator
    from .recipes import Recipe


LEARNING_RATE = 1.5e-3
MINUTES = 100.0  # of training
WEIGHT_DECAY = 0.02
WARM_UP_STEPS = 100
WATCHED_BLOCKS = (0, 1, 2)  # global blocks whose attention is taught; see losses.attention_loss
FADE = 0.85  # share of the time over which the auxiliary losses fade out
MERGE_RATIOS = (0.25, 0.5, 0.75)  # choices in steps with merging
EDGE_WEIGHTS = (0.0, 3.0)  # as well


def make_probe(model: Any) -> Any:
    """Linear maps used in training only, for two of the auxiliary losses.

    match: patch tokens to a descriptor; a separate map, so that the tokens keep their position, which a descriptor must not contain.
    rays: one for each tapped level of the trunk, patch tokens to the direction, in the first camera, of the point at the patch's centre.
    The motion of these directions determines a camera's rotation, and here every patch gets its own gradient.
    """
    from torch import nn

    c = model.sizes.dim
    widths = [c * len(model.joined(tap)) for tap in model.taps if tap >= 0]
    return nn.ModuleDict({"match": nn.Linear(c, 64), "rays": nn.ModuleList(nn.Linear(width, 3) for width in widths)})


def losses(
    model: Any, recipe: Recipe, probe: Any, batch: dict[str, Any], merging: Accelerator | None = None
) -> dict[str, Any]:
    """Each term of the training loss for one batch, unweighted. merging: the accelerator that is active in this step, or None."""
    from ..accelerators import Accelerator
    from .losses import attention_loss, correspondence, matching_loss, ray_loss, targets

    watched = []

    class Watch(Accelerator):  # dense attention that exposes queries and keys to the attention loss
        def attend(self, q: Any, k: Any, v: Any, plan: Any, layer: Any) -> Any:
            if layer.part == "global" and layer.index in WATCHED_BLOCKS:
                watched.append((q[:, :, : q.shape[2] - layer.shared], k))
            return super().attend(q, k, v, plan, layer)

    images = batch["images"].float() / 255
    trunk = recipe.run_trunk(model, images, merging or Watch(), recipe.known(batch))
    want = targets(batch, None if trunk.stream is None else trunk.stream.scale_frames)
    target, valid = correspondence(want, batch, model.patch)
    s = images.shape[1]
    single, levels = recipe.watched_tokens(model, trunk)
    zero = single.new_zeros(())
    mask = None if trunk.stream is None else trunk.stream.mask
    helping = {
        "match": lambda: matching_loss(probe["match"](single), target, valid) if s > 1 else zero,
        "attention": lambda: (
            attention_loss(watched, s, trunk.special, target, valid, mask) if watched and s > 1 else zero
        ),
        "ray": lambda: ray_loss(probe["rays"], levels, want, model.patch),
    }
    terms = recipe.head_losses(model, trunk, want, (images.shape[3], images.shape[4]))
    return terms | {name: helping[name]() for name in recipe.helping}


def initialise(model: Any, recipe: Recipe, seed: int) -> None:
    """Initial values that help such a small model on so few windows; the architecture stays the published one."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith(("ls1.gamma", "ls2.gamma")):
            # 0.01, as for a deep stack, would suppress this shallow one for too long
            nn.init.constant_(parameter, 0.5)
    with torch.no_grad():
        encoder, c = recipe.encoder(model), model.sizes.dim
        for token in (encoder.cls_token, encoder.register_tokens):
            nn.init.normal_(token, std=0.1)
        if hasattr(encoder.patch_embed, "proj"):  # else there is a stem
            encoder.patch_embed.proj.weight.copy_(cosine_filters(c, model.patch))
            encoder.patch_embed.proj.bias.zero_()
        encoder.pos_embed[:, 1:] = sine_table(c, round((encoder.pos_embed.shape[1] - 1) ** 0.5))
        for part, block in model.trunk_blocks():
            if (
                part == "global"
            ):  # keys start equal to queries, so similar tokens attend to each other, which starts matching
                width = block.attn.proj.weight.shape[0]
                block.attn.qkv.weight[width : 2 * width] = block.attn.qkv.weight[:width]
        recipe.initialise(model)


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
        gain = 0.2 * math.sqrt(1 + i * i + j * j)  # natural images have little energy at high frequencies: amplify them
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


def make_optimiser(model: Any, probe: Any) -> Any:
    """AdamW; no weight decay for vectors, tokens and position tables."""
    import torch

    decayed, others = [], []
    for name, parameter in [*model.named_parameters(), *probe.named_parameters()]:
        kept = parameter.ndim < 2 or "token" in name or "pos_embed" in name
        (others if kept else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)


def rate_at(peak: float, step: int, done: float, warm_up: int = 0) -> float:
    """Learning rate: a linear warm-up over the first steps, times a cosine over `done` in 0..1, the share of the training."""
    return (
        peak * min(1.0, (step + 1) / (warm_up or WARM_UP_STEPS)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
    )


def learn(
    model: Any,
    recipe: Recipe,
    probe: Any,
    optimiser: Any,
    batch: dict[str, Any],
    rate: float,
    done: float,
    merging: Accelerator | None = None,
) -> dict[str, float]:
    """One step at that learning rate: `gradients`, then `descend`. Returns each term."""
    terms = gradients(model, recipe, probe, batch, done, merging)
    descend(model, optimiser, rate)
    return terms


def gradients(
    model: Any, recipe: Recipe, probe: Any, batch: dict[str, Any], done: float, merging: Accelerator | None = None
) -> dict[str, float]:
    """Adds the gradients of one batch, and changes nothing else, so that it may be interrupted anywhere. `done` in 0..1: share of the
    training, by which the auxiliary losses fade. Returns each term."""
    import torch

    device = batch["images"].device.type
    with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
        terms = losses(model, recipe, probe, batch, merging)
    fade = max(0.0, 1 - done / FADE)
    helping = torch.stack([weight * terms[name] for name, weight in recipe.helping.items()]).sum()
    (recipe.total(terms) + fade * helping).backward()
    return {name: float(value.detach()) for name, value in terms.items()}


def descend(model: Any, optimiser: Any, rate: float) -> None:
    """Follows the gradients at that learning rate, times the `factor` of a group that has one, and clears them."""
    import torch

    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if torch.isfinite(norm):  # one bad batch must not spoil the weights
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def make_model(backbone: str, variant: str, side: int = 0) -> Any:
    """An untrained model of a backbone's variant; side: of its position table and its images, px, 0 for the variant's own.

    Raises ConfigError if there is no such variant.
    """
    from ..backbones.checkpoint import MODELS, variants

    known = variants(backbone)
    if variant not in known:
        raise ConfigError(f"variant is {variant!r}, but {backbone} has {', '.join(known)}: take one of them")
    sizes = known[variant]
    if side and side != sizes.image_side:
        sizes = dataclasses.replace(sizes, image_side=side, native_side=side)
    return MODELS[backbone](sizes)


def begin_with(path: str, model: Any, probe: Any) -> None:
    """Fills both from a checkpoint of the same variant, or the model alone from a weights file, which may hold more (a causal model
    begins with one that saw windows). The position table may be of another image size. Raises CheckpointError if it does not fit."""
    from ..backbones.checkpoint import load_model
    from ..weights import fill
    from .recipes import recipe_for

    if path.endswith(".safetensors"):
        earlier = load_model("", path)
        fit_table(recipe_for(earlier.name).encoder(earlier), recipe_for(model.name).encoder(model))
        wanted = model.state_dict()
        fill(model, {name: value for name, value in earlier.state_dict().items() if name in wanted}, path)
        return
    earlier, state = restore(path)
    recipe = recipe_for(earlier.name)
    fit_table(recipe.encoder(earlier), recipe.encoder(model))
    model.load_state_dict(earlier.state_dict())
    probe.load_state_dict(state["probe"])


def begin_encoder(path: str, model: Any) -> None:
    """Fills the model's encoder from a weights file, which may be another backbone's of the same size.

    Raises CheckpointError if it does not fit.
    """
    from ..backbones.checkpoint import load_model
    from ..weights import fill
    from .recipes import recipe_for

    earlier = load_model("", path)
    encoder, wanted = recipe_for(earlier.name).encoder(earlier), recipe_for(model.name).encoder(model)
    fit_table(encoder, wanted)
    state = encoder.state_dict()
    state.pop("mask_token", None)  # unused, and not in all
    state |= {name: value for name, value in wanted.state_dict().items() if name == "mask_token"}
    fill(wanted, state, path)


def fit_table(encoder: Any, wanted: Any) -> None:
    """Resample an encoder's position table to the size of another's."""
    import torch

    from ..backbones.layers import antialiased_table

    side = round((wanted.pos_embed.shape[1] - 1) ** 0.5)
    encoder.pos_embed = torch.nn.Parameter(antialiased_table(encoder.pos_embed.detach(), side, side))


class _RandomConfidence:
    """Random confidence: training must prepare the model for any choice of groups."""

    def __call__(self, tokens: Any) -> Any:
        import torch

        coarse = torch.rand(*tokens.shape[:2], 3, 4, device=tokens.device)  # contiguous groups, as in real choices
        smooth = torch.nn.functional.interpolate(coarse, tokens.shape[2:4], mode="bilinear")
        return smooth + 0.3 * torch.rand(tokens.shape[:4], device=tokens.device)


def merge_some(rng: random.Random, predictor: tuple[Any, int] | None) -> Any:
    """Co-Me with groups of a random size and share for one step; chosen by the predictor (network, the block it reads) or at random."""
    from ..accelerators.come import CoMe

    group = rng.choice([(2, 2), (3, 3), (3, 3)])
    network, block = predictor if predictor and rng.random() < 2 / 3 else (_RandomConfidence(), rng.choice([0, 1, 2]))
    how = {"ratio": rng.choice(MERGE_RATIOS), "group": group, "edge_weight": rng.choice(EDGE_WEIGHTS)}
    return CoMe(network, block=block, kernels="torch", **how)


def restore(path: str) -> tuple[Any, dict[str, Any]]:
    """Loads the model of a training checkpoint, and the checkpoint. Raises CheckpointError if there is none."""
    state = load_state(path)
    backbone = state.get("backbone", "vggt")
    patches = next(
        v.shape[1] - 1 for k, v in state["model"].items() if k.endswith("pos_embed")
    )  # possibly of another size
    patch = make_model(backbone, state["variant"]).patch
    model = make_model(backbone, state["variant"], patch * round(patches**0.5))
    model.load_state_dict(state["model"])
    return model.eval(), state


def export(checkpoint: str, target: str) -> None:
    from ..backbones.checkpoint import save_checkpoint

    model, state = restore(checkpoint)
    about = {k: str(state[k]) for k in ("step", "frames", "seconds", "seed", "minutes")}
    save_checkpoint(target, model, extra={"licence": "Apache-2.0", "made_by": "come_ros train", **about})
    print(f"{target}: {os.path.getsize(target) / 2**20:.2f} MiB")
