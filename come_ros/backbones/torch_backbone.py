"""A torch model as a backbone: images to the device, the model with its accelerator, the prediction back to the host."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..accelerators.base import Accelerator
from ..config import Config
from ..config_groups import StreamParameters
from ..errors import Cancelled, ConfigError
from ..files import fingerprint
from ..plugins import ACCELERATORS
from ..types import DeviceMemory, Known, Prediction
from .backbone import Backbone
from .causal import CausalPass, FrameRecord, StreamCache
from .device import DeviceClock, choose_attention_kernel, choose_device, choose_precision, device_errors, to_host
from .graphs import Graphs, cloned
from .layers import BlockParts
from .model import Check, GeometryModel, KnownTensors, Trunk, never
from .places import place_descriptors
from .stream import Encoded, EncoderCache, FrameCache, FrameName, Step

log = logging.getLogger("come_ros")


MOST_FORMS = 12
"""copies with other dynamic parameters of one accelerator that are kept for their graphs (graphs.MOST)"""


class TorchBackbone(Backbone):
    """A GeometryModel on its device. CUDA: trunk in bf16 (fp16 before Ampere), heads in fp32; CPU: fp32 throughout."""

    streams = True

    def __init__(
        self,
        name: str,
        model: GeometryModel,
        accelerator: Accelerator,
        *,
        device: str = "auto",
        precision: str = "auto",
        weights: str = "",
        attention: str = "auto",
        heads_precision: str = "fp32",
        optimize: str = "none",
        stream: StreamParameters | None = None,
    ) -> None:
        """attention, heads_precision, optimize, stream: the parameters of those names. Raises ConfigError if device, precision, kernel or
        graphs are not available."""
        self.name = name
        self.patch_size, self.native_side = model.patch, model.native_side
        self.metric, self.inputs, self.causal = model.metric, model.inputs, model.causal
        self.stream = stream or StreamParameters()
        _check_causal(model, accelerator)
        self._device = choose_device(device)
        self.device = str(self._device)
        self._clock = DeviceClock(self._device)
        self._dtype = choose_precision(precision, self._device)
        self.accelerator = accelerator.to(self._device)
        self._forms: deque[Accelerator] = deque([self.accelerator], maxlen=MOST_FORMS)
        self._dense: list[
            TorchBackbone
        ] = []  # shared by all copies: the one without an accelerator, once it is requested
        self.model = model.to(self._device).eval().requires_grad_(False)
        if self._dtype != torch.float32:
            lower_weights(model, self._dtype)
        kernel, self._kernel_context = choose_attention_kernel(self._device, self._dtype, attention)
        model.heads_dtype = torch.bfloat16 if heads_precision == "bf16" else torch.float32
        if optimize == "graph" and self._device.type != "cuda":
            raise ConfigError(
                f"optimize is graph, but CUDA graphs need a CUDA device, and this is {self.device}: set optimize to none or compile"
            )
        if optimize == "compile":
            model.parts = BlockParts.compiled()
        # compiled parts are still launched one by one, so they are recorded as well
        self._graphs = None if optimize == "none" or self._device.type != "cuda" else Graphs(self._device)
        count = sum(p.numel() for p in model.parameters())
        self.about = {
            "backbone": name,
            "accelerator": accelerator.name,
            "weights": weights,
            "parameters": f"{count / 1e6:.1f} M",
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu",
            "precision": str(self._dtype).removeprefix("torch."),
            "heads_precision": heads_precision,
            "optimize": optimize,
            "attention": kernel,
            "unit": "metre" if model.metric else "its own",
            "takes": ", ".join(["images", *sorted(model.inputs)]),
            "encoder_cache": self._about_cache(),
        }
        log.info("model ready: %s", ", ".join(f"{k} {v}" for k, v in self.description.items()))

    @property
    def places(self) -> str:
        weights = self.description["weights"]
        if self.causal or not os.path.isfile(weights):
            return super().places if self.causal else f"{self.name} without weights"
        return f"{self.name} with weights {fingerprint(weights)}"

    def configured(self, config: Config) -> TorchBackbone:
        wanted_names = {ACCELERATORS.load(name).name for name in config.accelerator.name.split("+")}
        if wanted_names != set(self.accelerator.name.split("+")):
            raise ConfigError(
                f"accelerator.name is {config.accelerator.name}, but the model that was given runs {self.accelerator.name}: give the "
                f"configuration that it was made from"
            )
        if self.causal and config.stream != self.stream:
            out = copy.copy(self)
            out.stream = config.stream
            return out.configured(config)
        if self.accelerator.configured(config) is self.accelerator:
            return self
        # a copy that ran before is reused, together with the graphs recorded from it
        wanted = next((a for a in self._forms if a.configured(config) is a), None)
        if wanted is None:
            wanted = self.accelerator.configured(config)
            self._forms.append(wanted)
        return self._with(wanted)

    def dense(self) -> TorchBackbone:
        if self.accelerator.name == Accelerator.name and not self.accelerator.sites:
            return self
        if not self._dense:
            self._dense.append(self.accelerated(Accelerator()))
        return self._dense[0]

    def accelerated(self, accelerator: Accelerator) -> TorchBackbone:
        """A copy with another accelerator (its networks already on the device), sharing the weights. CUDA graphs belong to the
        copy: keep it to have them replayed."""
        out = self._with(accelerator)
        out._forms = deque([accelerator], maxlen=MOST_FORMS)
        if self._graphs is not None:
            out._graphs = Graphs(self._device)
        return out

    def _with(self, accelerator: Accelerator) -> TorchBackbone:
        """A copy; recordings are shared, each labelled with the accelerator it was made with."""
        out = copy.copy(self)
        out.accelerator = accelerator
        out.about = {**self.about, "accelerator": accelerator.name, "encoder_cache": out._about_cache()}
        return out

    def image_size(self, width: int, height: int, side: int) -> tuple[int, int]:
        return self.model.image_size(width, height, side)

    def predict(
        self,
        images: np.ndarray,
        stop: Callable[[], bool] | None = None,
        known: Known | None = None,
        step: Step | None = None,
    ) -> Prediction:
        def check() -> None:
            if stop is not None and stop():
                raise Cancelled("stopped between two blocks")

        with device_errors():
            if self.causal:
                return self._predict_stream(images, check, step or Step(tuple((i, "") for i in range(len(images)))))
            known_here = None if known is None else self.upload_known(known)
            if step is None:
                out, trunk = self.run(self.upload(images), check, known_here)
                return self.download(images, out, trunk)
            begun = self._clock.read()
            encoded, missing = self._encode_step(images, step, check)
            done = self._clock.read()
            out, trunk = self._finish(encoded, check, known_here, step.dense)
            prediction = self.download(images, out, trunk, step.dense)
            prediction = dataclasses.replace(prediction, **to_host({"places": place_descriptors(encoded.tokens)}))
            if step.cache is None:
                return prediction
            assert isinstance(step.cache, EncoderCache)
            step.cache.took(
                self._clock.between(begun, done), len(missing)
            )  # the device is done: the results are available
            reused = len(images) - len(missing)
            return dataclasses.replace(prediction, reused=reused, saved_ms=reused * step.cache.encoder_ms)

    def _predict_stream(self, images: np.ndarray, check: Check, step: Step) -> Prediction:
        """New frames only, one by one, or a whole window where a stream begins; what the cache knows of the others."""
        cache = self.new_cache() if step.cache is None else step.cache
        if not isinstance(cache, StreamCache):
            raise TypeError(f"the cache is {type(cache).__name__}, but {self.name} needs one of its own: new_cache()")
        with cache.undone_if_it_fails():
            parts, dense = [], []
            for rows in cache.passes(step.names, (images.shape[1], images.shape[2]), self.stream):
                wanted = [j for j, i in enumerate(rows) if step.dense is None or i in step.dense]
                wanted = wanted or list(range(len(rows)))
                part = self._run_pass(images[rows], [step.names[i] for i in rows], cache, check, tuple(wanted))
                dense += [rows[j] for j in wanted]
                parts.append((rows, part))
            return _gathered(images, step.names, cache, parts, tuple(dense))

    def _run_pass(
        self, images: np.ndarray, names: list[FrameName], cache: StreamCache, check: Check, dense: tuple[int, ...]
    ) -> Prediction:
        """Frames that go through the model together; the cache then knows them."""
        passed = CausalPass(cache.state, len(images), self.stream)
        encoded = self._encode(self.upload(images), check)
        encoded = encoded._replace(tokens=encoded.tokens._replace(stream=passed))
        out, trunk = self._finish_now(encoded, None, dense, check)
        prediction = self.download(images, out, trunk, dense)
        poses, intrinsics = prediction.window_from_camera, prediction.intrinsics
        with torch.inference_mode():
            cache.keep(passed, names, [FrameRecord(*each) for each in zip(poses, intrinsics, strict=True)])
        return prediction

    def new_cache(self) -> FrameCache:
        return StreamCache() if self.causal else EncoderCache()

    def free_memory(self) -> None:
        if self._graphs is not None:
            for one in (self, *self._dense):
                one._graphs.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            if "cupy" in sys.modules:
                sys.modules["cupy"].get_default_memory_pool().free_all_blocks()

    def memory(self) -> DeviceMemory | None:
        if self._device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self._device)
        return DeviceMemory((total - free) / 2**20, free / 2**20)

    def upload(self, images: np.ndarray) -> Tensor:
        """(S, H, W, 3) uint8 -> (1, S, 3, H, W) float32 in [0, 1] on the device."""
        host = torch.from_numpy(np.ascontiguousarray(images))
        if self._device.type == "cuda":  # pinned memory: an asynchronous and several times faster copy
            host = host.pin_memory()
        x = host.to(self._device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        return x[None]

    def upload_known(self, known: Known) -> KnownTensors:
        """Uploads what is known of one scene, in fp32."""
        arrays = (known.intrinsics, known.depth, known.world_from_camera)
        metric = torch.full((1, len(known.depth)), known.metric, device=self._device)
        return KnownTensors(*(torch.from_numpy(a)[None].float().to(self._device) for a in arrays), metric)

    def run(
        self, x: Tensor, check: Check = never, known: KnownTensors | None = None
    ) -> tuple[dict[str, Tensor], Trunk]:
        """Runs the model on the device: outputs of the camera and depth heads, and their input. `check` is called before each
        block, between trunk and heads, and within the heads. With CUDA graphs it is called between encoder and trunk only, and the
        next pass overwrites the returned tensors."""
        return self._finish(self._encode(x, check), check, known)

    @property
    def replays(self) -> bool:
        """Whether passes are replayed from CUDA graphs, from the third pass of the same form on."""
        return self._graphs is not None

    def run_trunk(self, x: Tensor) -> Trunk:
        """`run` without its heads, for timing; recorded separately where passes are replayed."""
        encoded = self._encode(x, never)
        with torch.inference_mode():
            if self._graphs is None:
                return self._attend_now(encoded, None)
            trunk: Trunk = self._graphs(("trunk", self.accelerator), self._attend_now, encoded, None)
        return trunk

    def _encode(self, x: Tensor, check: Check) -> Encoded:
        if self._graphs is None:
            return self._encode_now(x, check)
        check()
        with torch.inference_mode():  # copied, since a cache may keep it
            encoded: Encoded = cloned(self._graphs(("encoder", self.accelerator), self._encode_now, x))
        return encoded

    def _encode_now(self, x: Tensor, check: Check = never) -> Encoded:
        with torch.inference_mode(), self._kernel_context(), self._low_precision():
            return self.model.encode(x, self.accelerator, check)

    def _encode_step(self, images: np.ndarray, step: Step, check: Check) -> tuple[Encoded, list[int]]:
        """The encoder's output for the window, and which of its frames had to go through it."""
        cache = None if self._why_no_cache() else step.cache
        if not isinstance(cache, EncoderCache):
            return self._encode(self.upload(images), check), list(range(len(images)))
        missing = cache.missing(step.names, self.accelerator, (images.shape[1], images.shape[2]))
        new = self._encode(self.upload(images[missing]), check) if missing else None
        with torch.inference_mode():
            return cache.window(step.names, new, missing, self.accelerator), missing

    def _finish(
        self, encoded: Encoded, check: Check, known: KnownTensors | None = None, dense: Sequence[int] | None = None
    ) -> tuple[dict[str, Tensor], Trunk]:
        """Runs trunk and heads."""
        if self._graphs is None:
            return self._finish_now(encoded, known, dense, check)
        check()
        name = "trunk and heads", self.accelerator
        with torch.inference_mode():
            out: tuple[dict[str, Tensor], Trunk] = self._graphs(name, self._finish_now, encoded, known, dense)
        return out

    def _finish_now(
        self, encoded: Encoded, known: KnownTensors | None, dense: Sequence[int] | None, check: Check = never
    ) -> tuple[dict[str, Tensor], Trunk]:
        images = encoded.tokens.images
        assert images is not None
        trunk = self._attend_now(encoded, known, check)
        check()
        with torch.inference_mode(), self._kernel_context():
            size = images.shape[-2], images.shape[-1]
            return self.model.decode(trunk, size, ("camera", "depth"), check, dense), trunk

    def _attend_now(self, encoded: Encoded, known: KnownTensors | None, check: Check = never) -> Trunk:
        with torch.inference_mode(), self._kernel_context():
            with self._low_precision():
                trunk = self.model.attend(encoded, self.accelerator, check, known)
            shared = None if trunk.shared is None else trunk.shared.float()
            fine = tuple(t.float() for t in trunk.fine)
            return trunk._replace(levels={i: t.float() for i, t in trunk.levels.items()}, shared=shared, fine=fine)

    def _low_precision(self) -> Any:
        low = self._dtype != torch.float32
        return torch.autocast(self._device.type, self._dtype) if low else nullcontext()

    def _about_cache(self) -> str:
        if self.causal:
            return "off: a stream runs each frame once"
        return self._why_no_cache() or "by frame"

    def _why_no_cache(self) -> str:
        why = self.accelerator.window_bound(len(self.model.encoder_blocks()))
        return f"off: {why}" if why else ""

    def download(
        self, images: np.ndarray, out: dict[str, Tensor], trunk: Trunk, dense: tuple[int, ...] | None = None
    ) -> Prediction:
        """The output of `run` for the (S, H, W, 3) `images`, as arrays; dense: the frames whose depth was requested, None for all."""
        with torch.inference_mode():
            merged = self.accelerator.merged(trunk.plan, len(images), trunk.grid)
            wanted = {name: out[name][0] for name in ("depth", "depth_conf", "world_from_camera", "intrinsics")}
            wanted |= {name: out[name][0] for name in ("meaningful",) if name in out}
            if merged is not None:
                wanted["merged"] = _to_pixels(merged, self.patch_size)
            arrays = to_host(wanted)
        intrinsics = arrays["intrinsics"].astype(np.float64)
        if dense is not None and len(intrinsics) != len(images):  # fitted to pixels, so available for these frames only
            of_all = np.full((len(images), 3, 3), np.nan)
            of_all[list(dense)] = intrinsics
            intrinsics = of_all
        return Prediction(
            images=images,
            depth=arrays["depth"],
            confidence=arrays["depth_conf"],
            window_from_camera=arrays["world_from_camera"].astype(np.float64),
            intrinsics=intrinsics,
            merged=arrays.get("merged"),
            kept_ratio=self.accelerator.kept_ratio(trunk.plan),
            read_ratio=trunk.read_ratio,
            meaningful=arrays.get("meaningful"),
            dense=dense,
        )


def _gathered(
    images: np.ndarray,
    names: Sequence[FrameName],
    cache: StreamCache,
    parts: Sequence[tuple[list[int], Prediction]],
    dense: tuple[int, ...],
) -> Prediction:
    """The Prediction of a window, of which some frames were run (rows of it, and what came out) and the cache knows the rest."""
    records = [cache.record(name) for name in names]
    run = [i for rows, _ in parts for i in rows]
    shape = images.shape[:3]

    def joined(of: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(of) if of else np.zeros((0, *shape[1:]), np.float32)

    merged = None
    if any(p.merged is not None for _, p in parts):
        merged = np.zeros(shape, bool)
        for rows, p in parts:
            merged[rows] = p.merged
    share = [len(rows) for rows, _ in parts] or [1]

    def mean(of: list[float]) -> float:
        return float(np.average(of or [1.0], weights=share))

    return Prediction(
        images=images,
        depth=joined([p.depth for _, p in parts]),
        confidence=joined([p.confidence for _, p in parts]),
        window_from_camera=np.stack([r.pose for r in records]),
        intrinsics=np.stack([r.intrinsics for r in records]),
        merged=merged,
        kept_ratio=mean([p.kept_ratio for _, p in parts]),
        read_ratio=mean([p.read_ratio for _, p in parts]),
        dense=None if len(dense) == len(images) else dense,
        reused=len(images) - len(run),
    )


def _check_causal(model: GeometryModel, accelerator: Accelerator) -> None:
    """Raises ConfigError if the accelerator chooses keys among frames that are not there together."""
    if model.causal and "keys" in accelerator.takes:
        raise ConfigError(
            f"accelerator.name is {accelerator.name}, which chooses whose keys are read across frames, but {model.name} is a stream, whose "
            f"frames come one at a time: set it to none, come, pace or random"
        )


def _to_pixels(mask: Tensor, patch: int) -> Tensor:  # (S, h, w) -> (S, H, W)
    return mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)


def lower_weights(model: GeometryModel, dtype: torch.dtype) -> None:
    """Converts the weights of the linear maps of encoder and trunk to `dtype` once, instead of by autocast in every pass."""
    for block in (*model.encoder_blocks(), *(block for _, block in model.trunk_blocks())):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
