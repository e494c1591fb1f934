"""Pathfinder and Path-X: classify whether the two marked ends belong to one snake."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import copy
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

from datamodules.base import SequenceDataModule
from datamodules.examples import Example, make_examples_in_processes
from datamodules.files import PreparedDataError
from datamodules.generate import check_seed, check_sizes, generate
from datamodules.pathfinder.drawing import draw_image
from datamodules.pathfinder.release import FOLDER, SplitRule, list_pictures, read_listed, split_pictures
from datamodules.pathfinder.settings import CONTOUR_LENGTH, Level, Resolution, drawing_settings
from datamodules.prepared.writing import RawSplits
from datamodules.sources.archives import find_in_release, sizes_of, source_name, source_path
from datamodules.sources.new_inputs import read_pictures


class Pathfinder(SequenceDataModule):
    """Grey images as sequences of `resolution²` pixels, drawn here or read from the LRA release; two classes.

    The drawing follows the public generator (Kim*, Linsley*, Thakkar, Serre, ICLR 2020) with the settings of Long Range
    Arena (Tay et al., ICLR 2021). There Pathfinder is 32 × 32 and Path-X 128 × 128, both at level `hard`. Counts:
    160,000 / 20,000 / 20,000, in the release and by default here.

    Args:
        batch_size, common: see `SequenceDataModule`.
        source: folder of the LRA release, or of its `pathfinder<resolution>`; None to draw. `train_size`, `val_size`,
            `test_size` and `data_seed` are those of drawing.
        split: how the release is split: `lra` (its first 80 %, the next 10 %, the last 10 %), `s4` (`random_split`
            with seed 42), or `whole`: every set is all images, to test a model that was trained on others.
        resolution: side of the image: 32, 64, 128 or 256.
        level: 6 (`easy`), 9 (`intermediate`) or 14 (`hard`) paddles a target snake.
        level_schedule: levels to train on first, each with its number of optimiser steps, such as `{easy: 6000}`; the
            rest of training, and every evaluation, uses `level`. The training data is then not the benchmark's.
        drop_black: drop black pixels from the sequence. If False, they are tokens like others.
        train_size: number of images to train on.
        val_size: number of images of the validation set.
        test_size: number of images of the test set.
        data_seed: seed of the images; independent of the training seed.
    """

    task = "pathfinder"
    vocab_size = 256
    num_classes = 2
    max_length = 1024
    image_side = 32
    class_names = ("two snakes", "one snake")
    citation = "Linsley et al. 2018; Kim*, Linsley* et al., ICLR 2020; Tay et al., Long Range Arena, ICLR 2021"
    licence = "drawn here; the release's images: Apache 2.0"
    published_val_size = 156 * 128  # batches of the published code
    # The generator starts snakes up and to the left (docs/pathfinder.md), so its only symmetry exchanges rows and
    # columns. Flips keep the label but change the distribution of images.
    augmentations = ("transpose", "flip_horizontal", "flip_vertical")

    def __init__(
        self,
        batch_size: int = 128,
        source: str | None = None,
        split: SplitRule = "lra",
        resolution: Resolution = 32,
        level: Level = "hard",
        level_schedule: dict[str, int] | None = None,
        drop_black: bool = True,
        train_size: int = 160_000,
        val_size: int = 20_000,
        test_size: int = 20_000,
        data_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **common)
        if split not in get_args(SplitRule):
            raise ValueError(f"data.split={split!r} is not one of {list(get_args(SplitRule))}")
        self.source = source
        self.split = split
        self.level: str = level
        self.sizes = check_sizes(train_size, val_size, test_size)
        self.drawing = drawing_settings(resolution, level)
        self.data_seed = check_seed(data_seed)
        self.image_side = resolution
        self.max_length = resolution**2
        self.drop_black = drop_black
        self.stages: list[tuple[Pathfinder, int]] = [
            (self._at_level(easier), steps) for easier, steps in _checked(level_schedule or {}, level)
        ]

    @property
    def plateau(self) -> str:
        if self.level == "easy":
            return ""
        if self.stages:
            return "Fix: wait, or make data.level_schedule longer."
        usual = f"Pathfinder usually stays at chance for about a million images of level {self.level}."
        return f"{usual} Fix: wait, or start with easy images: --data.level_schedule '{{easy: 6000}}'."

    @property
    def stage_name(self) -> str:
        return f"{self.level} images"

    def _at_level(self, level: str) -> "Pathfinder":
        other = copy(self)
        other.level, other.drawing, other.splits = level, drawing_settings(self.image_side, level), {}
        return other

    @property
    def settings(self) -> dict[str, Any]:
        if self.source is not None:
            return {
                "source": source_name(self.source),
                "split": self.split,
                "resolution": self.image_side,
                "level": self.level,
                "version": 1,
            }
        return {"drawing": asdict(self.drawing), "sizes": self.sizes, "data_seed": self.data_seed, "version": 2}

    @cached_property
    def release(self) -> Path:
        """The folder of the release's level."""
        source, side = source_path(self.source or ""), f"pathfinder{self.image_side}"
        try:
            return find_in_release(source, side, f"{FOLDER[self.level]}/metadata") / FOLDER[self.level]
        except PreparedDataError as error:
            found = []
            for level, folder in FOLDER.items():
                with suppress(PreparedDataError):
                    find_in_release(source, side, f"{folder}/metadata")
                    found.append(level)
            if not found:
                raise
            raise PreparedDataError(
                f"data.source={self.source} has no images of level {self.level} (found {', '.join(found)}). Fix: set "
                "data.level and data.level_schedule to levels that are there"
            ) from error

    def source_sizes(self) -> dict[str, int]:
        if self.source is None:
            return {}
        return sizes_of((self.release / "metadata").glob("[!.]*.npy"), self.release)

    def expected_bytes(self) -> int:
        count = sum(self.sizes.values()) if self.source is None else len(list_pictures(self.release))
        return count * (self.max_length + 9) * (3 if self.split == "whole" else 1)

    def prepare_data(self) -> None:
        if self.split == "whole" and self.trainer is not None and self._trains:
            raise PreparedDataError(
                "data.split=whole trains and tests on the same images. Fix: data.split=lra, or use it with test only"
            )
        super().prepare_data()

    def raw_splits(self) -> RawSplits:
        side = self.image_side
        if self.source is None:
            return generate(
                partial(draw_image, self.drawing), self.data_seed, self.sizes, f"Drawing Pathfinder {side}×{side}"
            )
        read = partial(read_listed, self.release, side)
        return {
            split: make_examples_in_processes(read, pictures, f"Reading Pathfinder {side}×{side}, {split:>5}")
            for split, pictures in split_pictures(list_pictures(self.release), self.split).items()
        }

    def new_examples(self, path: Path) -> Iterator[Example]:
        for name, pixels in read_pictures(path, self.image_side, "L"):
            yield Example((pixels.reshape(-1),), 0, name)


def _checked(schedule: dict[str, int], level: str) -> Iterable[tuple[str, int]]:
    others = [name for name in CONTOUR_LENGTH if name != level]
    for easier, steps in schedule.items():
        if easier not in others or steps < 1:
            raise ValueError(
                f"data.level_schedule={schedule} names {easier}: {steps}. Fix: give any of {others} a number of steps "
                "of at least 1; data.level follows by itself"
            )
    return schedule.items()


class PathX(Pathfinder):
    """Pathfinder at 128 × 128: sequences of 16,384 pixels.

    Args:
        batch_size: see `SequenceDataModule`.
        common: see `Pathfinder`.
    """

    task = "pathx"
    max_length = 16_384
    image_side = 128

    def __init__(self, batch_size: int = 32, **common: Any) -> None:
        super().__init__(batch_size=batch_size, resolution=128, **common)
