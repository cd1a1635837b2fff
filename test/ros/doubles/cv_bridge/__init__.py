"""A stand-in for ROS's cv_bridge, with its calls and its traits: what it does not check, it does wrong without a word."""

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

_TYPES = {"8U": "u1", "16U": "u2", "32F": "f4"}
_COLOURS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "mono": 1}
_CODES = {
    ("bgr", "rgb"): "BGR2RGB",
    ("rgba", "rgb"): "RGBA2RGB",
    ("bgra", "rgb"): "BGRA2RGB",
    ("mono", "rgb"): "GRAY2RGB",
    ("yuv422", "rgb"): "YUV2RGB_UYVY",
    ("yuv422_yuy2", "rgb"): "YUV2RGB_YUY2",
    **{
        (f"bayer_{p}", "rgb"): f"Bayer{c}2RGB"
        for p, c in (("rggb", "BG"), ("bggr", "RG"), ("gbrg", "GR"), ("grbg", "GB"))
    },
}


class CvBridgeError(TypeError):
    pass


def _split(encoding: str) -> tuple[str, str, int]:
    """Colours, numpy's type, channels."""
    if encoding in ("yuv422", "yuv422_yuy2"):
        return encoding, "u1", 2
    for bits, kind in (("8", "u1"), ("16", "u2")):
        name = encoding.removesuffix(bits)
        if name in _COLOURS:
            return name, kind, _COLOURS[name]
        if name.startswith("bayer_") and name != encoding:
            return name, kind, 1
    depth, _, channels = encoding.partition("C")
    if depth in _TYPES and channels.isdigit():
        return "", _TYPES[depth], int(channels)
    raise CvBridgeError(f"Unrecognized image encoding [{encoding}]")


class CvBridge:
    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        colours, kind, channels = _split(img_msg.encoding)
        dtype = np.dtype(kind)
        columns = int(img_msg.step / dtype.itemsize / channels)  # rounds: rows of parts of pixels come out sheared
        shape = (img_msg.height, columns) if channels == 1 else (img_msg.height, columns, channels)
        pixels = np.ascontiguousarray(np.ndarray(shape, dtype, img_msg.data)[:, : img_msg.width])
        if img_msg.is_bigendian:
            pixels = pixels.byteswap().newbyteorder()  # which NumPy 2 does not have
        if desired_encoding == "passthrough" or desired_encoding == img_msg.encoding:
            return pixels
        wanted, to, _ = _split(desired_encoding)
        if (colours, wanted) in _CODES:
            pixels = cv2.cvtColor(pixels, getattr(cv2, "COLOR_" + _CODES[colours, wanted]))
        elif colours != wanted:
            raise CvBridgeError(f"[{img_msg.encoding}] is not a color format. but [{desired_encoding}] is.")
        if kind == "u2" and to == "u1":
            pixels = np.rint(pixels * (255.0 / 65535.0)).astype(np.uint8)
        return pixels

    def compressed_imgmsg_to_cv2(
        self, cmprs_img_msg: CompressedImage, desired_encoding: str = "passthrough"
    ) -> np.ndarray:
        return cv2.imdecode(
            np.frombuffer(cmprs_img_msg.data, np.uint8), cv2.IMREAD_UNCHANGED
        )  # cut off: filled with grey

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough", header: object = None) -> Image:
        message = Image(height=cvim.shape[0], width=cvim.shape[1], encoding=encoding, step=cvim.strides[0])
        message.data.frombytes(cvim.tobytes())
        if header is not None:
            message.header = header
        return message
