"""A training step of the released Skyformer code, to compare with."""

from collections.abc import Sequence
from typing import Any

from skyformer.benchmark.cases import read_size

SOURCE = (
    "the code released with the paper (Chen et al. 2021), run on one H100 80 GB with torch 2.11 on 25 November 2026: "
    "wall clock, float16 outside attention, float32 inside, dropout 0.1"
)
# Milliseconds at 128 x 1,024 and at 32 x 4,096 tokens. Performer failed.
_MILLISECONDS = {
    "skyformer": (33.1, 27.5),
    "softmax": (37.8, 126.0),
    "kernelized": (32.3, 101.0),
    "nystromformer": (21.2, 18.0),
    "linformer": (18.7, 13.2),
    "informer": (32.3, 40.5),
    "reformer": (23.8, 24.7),
    "bigbird": (38.2, 40.3),
}
_SIZES = ((128, 1024), (32, 4096))


def released_rows(backends: Sequence[str], sizes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the measurements of these backends, named as overlays of configs/attention, at these sizes."""
    return [
        {
            "name": name,
            "part": "step",
            "batch_size": batch_size,
            "length": length,
            "precision": "mixed",
            "form": "released",
            "seconds": _MILLISECONDS[name][_SIZES.index((batch_size, length))] / 1000,
            "source": SOURCE,
        }
        for batch_size, length in map(read_size, sizes)
        for name in backends
        if name in _MILLISECONDS and (batch_size, length) in _SIZES
    ]
