"""Pathfinder: do the two marked ends belong to one snake?"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from datamodules.base import SequenceDataModule
from datamodules.generate import STREAMS, check_seed, check_sizes, generate
from datamodules.pathfinder_drawing import draw_image
from datamodules.pathfinder_settings import Level, Resolution, drawing_settings
from datamodules.prepared import Chunk
from datamodules.protocol import Protocol


class Pathfinder(SequenceDataModule):
    """Grey images as sequences of `resolution²` pixels, drawn by this project; two classes.

    The drawing follows the public generator (Kim*, Linsley*, Thakkar, Serre, ICLR 2020) with the settings of Long Range
    Arena (Tay et al., ICLR 2021), whose Pathfinder is 32 × 32 and whose Path-X is 128 × 128, both of level `hard`.
    Nothing is downloaded, so there is no licence to heed. Default counts as in LRA: 160,000 / 20,000 / 20,000.

    Args:
        data_dir, batch_size, eval_batch_size, num_workers, protocol: see `SequenceDataModule`.
        resolution: side of the image: 32, 64, 128 or 256.
        level: 6 (`easy`), 9 (`intermediate`) or 14 (`hard`) paddles a target snake.
        train_size: number of images to train on.
        dev_size: number of images of the dev set.
        test_size: number of images of the test set.
        data_seed: names the stream of images; not the seed of training.
    """

    task = "pathfinder"
    vocab_size = 256
    num_classes = 2
    citation = "Linsley et al. 2018; Kim*, Linsley* et al., ICLR 2020; Tay et al., Long Range Arena, ICLR 2021"
    licence = "generated here"

    def __init__(
        self,
        data_dir: str = "data",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        protocol: Protocol | None = None,
        resolution: Resolution = 32,
        level: Level = "hard",
        train_size: int = 160_000,
        dev_size: int = 20_000,
        test_size: int = 20_000,
        data_seed: int = 0,
    ) -> None:
        super().__init__(data_dir, batch_size, eval_batch_size, num_workers, protocol)
        self.sizes = check_sizes(train_size, dev_size, test_size)
        self.drawing = drawing_settings(resolution, level)
        self.data_seed = check_seed(data_seed)
        self.image_side = resolution
        self.max_length = resolution**2

    @property
    def settings(self) -> dict[str, Any]:
        return {"drawing": asdict(self.drawing), "sizes": self.sizes, "data_seed": self.data_seed, "version": 1}

    def expected_bytes(self) -> int:
        return sum(self.sizes.values()) * (self.max_length + 9)

    def raw_splits(self) -> Mapping[str, Iterable[Chunk]]:
        return {split: self._draw(split, size) for split, size in self.sizes.items()}

    def _draw(self, split: str, size: int) -> Iterable[Chunk]:
        draw = partial(draw_image, self.drawing, (self.data_seed << 2) + STREAMS[split])

        def flat(index: int) -> tuple[Any, int]:
            image, label = draw(index)
            return image.reshape(-1), label

        side = self.image_side
        return generate(flat, range(size), f"Drawing Pathfinder {side}×{side}, {split:>5}")
