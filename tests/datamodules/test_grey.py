"""Grey values against those of TensorFlow and Pillow."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from datamodules.sources.grey import pil_luma, tensorflow_luma

# (red, green, blue): what tf.image.rgb_to_grayscale of TensorFlow 2.21 gives. In exact arithmetic those of the second
# line would be one less: they lie so near to a whole number that float32 rounds up to it.
TENSORFLOW = {
    (0, 0, 0): 0, (255, 255, 255): 255, (255, 0, 0): 76, (0, 255, 0): 149, (0, 0, 255): 29, (1, 2, 3): 1,
    (0, 122, 186): 93, (3, 121, 122): 86, (3, 254, 50): 156, (5, 171, 227): 128, (46, 227, 15): 149,
}  # fmt: skip


@pytest.mark.parametrize("colour", TENSORFLOW)
def test_tensorflow(colour):
    assert tensorflow_luma(np.array(colour, dtype=np.uint8)) == TENSORFLOW[colour]


def test_tensorflow_on_every_colour():
    """The checksum is of TensorFlow's own values, in the order of red, green, blue."""
    digest = hashlib.sha256()
    green, blue = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    for red in range(256):
        digest.update(tensorflow_luma(np.stack([np.full_like(green, red), green, blue], axis=-1)).tobytes())
    assert digest.hexdigest() == "824a76d81dad2c5a2cf1fa0b2c0a5afe7d871ec2970e4fa2809b53ddbecdca93"


def test_pillow_on_every_hundredth_colour():
    numbers = np.arange(0, 1 << 24, 101)[: 256 * 512]
    colours = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=-1).astype(np.uint8).reshape(256, -1, 3)
    assert np.array_equal(pil_luma(colours), np.asarray(Image.fromarray(colours).convert("L")))
    differ = (pil_luma(colours) != tensorflow_luma(colours)).mean()
    assert 0.25 < differ < 0.28, "a quarter of all colours"
