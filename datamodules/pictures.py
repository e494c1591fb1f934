"""Reads small pictures: PNG and JPEG files of a known size, in grey or in colour."""

from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from datamodules.examples import Skipped
from datamodules.prepared import PreparedDataError


def read_picture(path: Path, side: int, mode: Literal["L", "RGB"]) -> np.ndarray | Skipped:
    """A file's pixels, `(side, side)` or `(side, side, 3)` uint8; what is missing, empty or broken is skipped.

    Raises:
        PreparedDataError: for a picture of another size.
    """
    try:
        data = path.read_bytes()
        if not data:
            return Skipped(f"{path}: empty file")
        with Image.open(BytesIO(data)) as picture:
            if picture.size != (side, side):
                width, height = picture.size
                raise PreparedDataError(f"{path}: a picture of {width}×{height} pixels, expected {side}×{side}")
            return np.asarray(picture.convert(mode))
    except UnidentifiedImageError:
        return Skipped(f"{path}: not a picture")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return Skipped(f"{path}: {reason}")
