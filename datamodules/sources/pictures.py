"""Reads small pictures: PNG and JPEG files of a known size, in grey or in colour."""

from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from datamodules.examples import Skipped
from datamodules.files import PreparedDataError, read_bounded
from datamodules.sources.archives import damaged, reading

FORMATS = ("PNG", "JPEG")  # alone: Pillow runs Ghostscript on what is PostScript inside, whatever its name
LIMIT = 1 << 24  # bytes of a file, far more than so few pixels take
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow cuts off what is deeper


def read_picture(path: Path, side: int, mode: Literal["L", "RGB"]) -> np.ndarray | Skipped:
    """A file's pixels, `(side, side)` or `(side, side, 3)` uint8; what is missing, empty or broken is skipped.

    Raises:
        PreparedDataError: for a picture of another size, or a file that is there and cannot be read.
    """
    try:
        with reading(path):
            data = read_bounded(path, LIMIT)
    except PreparedDataError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise  # a moment's trouble must not leave it out for good
        return Skipped(f"{path}: no such file")
    except ValueError:  # a name with a NUL
        return Skipped(f"{path}: no name of a file")
    if not data:
        return Skipped(f"{path}: empty file")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as picture:
            if picture.size != (side, side):
                width, height = picture.size
                raise damaged(path, f"a picture of {width}×{height} pixels, expected {side}×{side}")
            if picture.mode not in EIGHT_BITS:
                return Skipped(f"{path}: pixels of kind {picture.mode}, expected eight bits")
            return np.asarray(picture.convert(mode))
    except PreparedDataError:
        raise
    except Exception as error:  # damage shows in many ways
        return Skipped(f"{path}: broken, or not a picture ({type(error).__name__})")
