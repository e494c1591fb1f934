"""From colours to grey, as two libraries do it."""

from collections.abc import Callable

import numpy as np

Grey = Callable[[np.ndarray], np.ndarray]


def tensorflow_luma(pixels: np.ndarray) -> np.ndarray:
    """`(…, 3)` uint8 → `(…)` uint8: what `tf.image.rgb_to_grayscale`, and so Long Range Arena, gives.

    0.2989 R + 0.587 G + 0.114 B of the values over 255, times 255.5, truncated. The result equals TensorFlow 2.21's for
    all 2²⁴ colours. This needs float32 and this order: exact arithmetic differs for 237 colours.
    """
    red, green, blue = np.moveaxis(pixels.astype(np.float32) * np.float32(1 / 255), -1, 0)
    weighted = np.float32(0.2989) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    return (weighted * np.float32(255.5)).astype(np.uint8)


def pil_luma(pixels: np.ndarray) -> np.ndarray:
    """`(…, 3)` uint8 → `(…)` uint8: what Pillow's mode `L` gives, ITU-R 601-2 rounded to the nearest."""
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)


GREY: dict[str, Grey] = {"tensorflow": tensorflow_luma, "pil": pil_luma}
