"""A causal backbone in the live node: the stream of images over DDS is the stream of the model, as offline."""

from __future__ import annotations

import time

import numpy as np
import pytest
from ros.live_node import START_NS, STEP_NS, K, Peer, picture, wait_until

from come_ros.config import Config
from come_ros.types import Frame

FRAMES = 8
PARAMETERS = {
    "backbone": "lingbot", "device": "cpu", "threads": 1, "keyframe.mode": "every", "window.size": 4, "window.overlap": 2,
    "stream.window": 2, "cloud.edge_filter": False, "cloud.conf_percentile": 0.0, "max_data_age": 0.0,
}  # fmt: skip


def test_a_stream_of_images_is_one_stream_of_the_model(tmp_path, start_node, peer: Peer) -> None:
    torch = pytest.importorskip("torch")
    from models import tiny

    from come_ros.backbones.checkpoint import save_checkpoint
    from come_ros.pipeline import ReconstructionPipeline

    weights = str(tmp_path / "m.safetensors")
    save_checkpoint(weights, tiny("lingbot"), torch.float32)
    parameters = PARAMETERS | {"weights": weights}
    peer.listen_to_outputs()
    words = [
        f"{name}:={str(value).lower() if isinstance(value, bool) else value}" for name, value in parameters.items()
    ]
    node = start_node(
        *(word for given in words for word in ("-p", given)),
        "-p", "backpressure:=all", "-p", "diagnostics.period:=0.2", "-p", "tf.mode:=off",
    )  # fmt: skip
    node.wait_for("active:")
    wait_until(peer.matched, what="discovery")
    stamps = [START_NS + i * STEP_NS for i in range(FRAMES)]
    for i, stamp in enumerate(stamps):
        peer.send(picture(i), stamp)
        time.sleep(0.05)
    depths = peer.received["/come/depth/image"]
    wait_until(lambda: len(depths) == FRAMES, what="all frames to come out")

    config = Config().replace(**parameters, **{"refine.mode": "none", "odometry.rate": "keyframe"})
    frames = [Frame(picture(i), stamp, "cam_optical_frame", K) for i, stamp in enumerate(stamps)]
    offline = np.concatenate([submap.depth for submap in ReconstructionPipeline(config).run(frames)])
    live = np.stack([np.frombuffer(m.data, np.float32).reshape(m.height, m.width) for m in depths])
    np.testing.assert_allclose(live, offline, rtol=1e-5)

    wait_until(lambda: peer.status("come: inference").get("stream_frames") == "8 of 320", what="diagnostics")
    status = peer.status("come: inference")
    assert status["stream_window"] == "2 of 2" and status["window"] == "4"
    held, most = (float(word) for word in status["stream_mib"].split(" of "))
    assert 0 < held <= most
