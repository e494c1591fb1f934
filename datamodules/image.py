"""Image: classify CIFAR-10 pictures, in grey, pixel by pixel."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torchvision.datasets import CIFAR10

from datamodules.base import SequenceDataModule
from datamodules.examples import Example, Skipped, make_examples_in_processes
from datamodules.files import PreparedDataError, waiting_lock
from datamodules.generate import check_at_least_one, check_seed
from datamodules.prepared.writing import RawSplits
from datamodules.sources.archives import cut_val, damaged, reading, sizes_of, source_name, source_path
from datamodules.sources.download import fetch
from datamodules.sources.grey import GREY, Grey
from datamodules.sources.new_inputs import read_pictures
from datamodules.sources.pictures import read_picture

SIDE = 32
FILES = (".png", ".jpg", ".jpeg")
Item = tuple[Any, int]


class Image(SequenceDataModule):
    """CIFAR-10 in grey as sequences of 1,024 pixels; ten classes.

    Krizhevsky 2009: 50,000 training and 10,000 test pictures. 5,000 of the former are the validation set, as in Long
    Range Arena (Tay et al., ICLR 2021). Its exact split depends on the shuffling of TensorFlow Datasets.

    Args:
        batch_size, common: see `SequenceDataModule`.
        source: folder with torchvision's `cifar-10-batches-py`, or with `train/<class>/` and `test/<class>/` of PNG
            or JPEG files, classes by name or number; None to fetch the former.
        grey: luma of `tensorflow`, as in Long Range Arena, or of `pil`, which differs by 1 on a quarter of all
            colours.
        drop_black: drop black pixels from the sequence; the published code masks them.
        val_size: pictures of the validation set, a tenth of each class.
        data_seed: seed that selects the validation set; independent of the training seed.
    """

    task = "image"
    vocab_size = 256
    num_classes = 10
    max_length = SIDE**2
    image_side = SIDE
    augmentations = ("flip_horizontal", "shift", "crop")
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    citation = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
    licence = "none stated; its author asks to be cited"

    def __init__(
        self,
        batch_size: int = 256,
        source: str | None = None,
        grey: Literal["tensorflow", "pil"] = "tensorflow",
        drop_black: bool = True,
        val_size: int = 5_000,
        data_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **common)
        if grey not in GREY:
            raise ValueError(f"data.grey={grey!r} is not one of {sorted(GREY)}")
        check_at_least_one(val_size=val_size)
        self.source = source
        self.grey = grey
        self.drop_black = drop_black
        self.val_size = val_size
        self.data_seed = check_seed(data_seed)

    @property
    def settings(self) -> dict[str, Any]:
        draw = {"val_size": self.val_size, "data_seed": self.data_seed}
        return {"source": source_name(self.source), "grey": self.grey, **draw, "version": 1}

    def expected_bytes(self) -> int:
        return 60_000 * (self.max_length + 9)

    def source_sizes(self) -> dict[str, int]:
        if self._folder is None:
            return {}
        return sizes_of(self._folder.glob("t*/[!.]*"), self._folder)

    def raw_splits(self) -> RawSplits:
        train, make_train = self._read("train")
        test, make_test = self._read("test")
        rest, val = cut_val([label for _, label in train], self.val_size, self.data_seed)
        parts = {
            "train": (make_train, [train[place] for place in rest]),
            "val": (make_train, [train[place] for place in val]),
            "test": (make_test, test),
        }
        return {
            split: make_examples_in_processes(*part, f"Reading CIFAR-10, {split:>5}") for split, part in parts.items()
        }

    def new_examples(self, path: Path) -> Iterator[Example]:
        for name, pixels in read_pictures(path, SIDE, "RGB"):
            yield Example((GREY[self.grey](pixels).reshape(-1),), 0, name)

    def _read(self, split: str) -> tuple[list[Item], Callable[[Item], Example | Skipped]]:
        """Return the pictures of a split with their classes, and the function that reads one."""
        grey = GREY[self.grey]
        if self._folder is not None:
            return _list_files(self._folder / split), partial(_read_file, self._folder, grey)
        pictures = self._torchvision(split)
        return list(enumerate(pictures.targets)), partial(_take, pictures.data, split, grey)

    @cached_property
    def _folder(self) -> Path | None:
        """Return the folder of class folders, if there is one."""
        if self.source is None:
            return None
        root = source_path(self.source)
        with reading(root):
            return None if (root / CIFAR10.base_folder).is_dir() else root

    def _torchvision(self, split: str) -> CIFAR10:
        """Return torchvision's data set, downloaded unless named. Its checksums are checked before reading."""
        root = self.data_dir / "downloads" if self.source is None else source_path(self.source)
        try:
            with reading(root):
                return CIFAR10(root, train=split == "train")
        except PreparedDataError:
            raise
        except RuntimeError as error:
            if self.source is not None:
                raise damaged(root / CIFAR10.base_folder, f"incomplete or damaged ({error})") from error
        fetch(CIFAR10.url, root / CIFAR10.filename, "md5", CIFAR10.tgz_md5)
        with waiting_lock(root / f".{CIFAR10.base_folder}.lock"):  # another setting may unpack it too
            return CIFAR10(root, train=split == "train", download=True)


def _list_files(folder: Path) -> list[tuple[Path, int]]:
    """List every picture below `folder` with its class."""
    with reading(folder):
        classes = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    names = [path.name for path in classes]
    if names not in (list(Image.class_names), [str(label) for label in range(Image.num_classes)]):
        raise PreparedDataError(
            f"{folder} has the folders {names}, expected {list(Image.class_names)} or 0 ... 9. Fix: let data.source "
            f"hold {CIFAR10.base_folder}, or train/<class>/ and test/<class>/"
        )
    pictures = []
    for label, kind in enumerate(classes):
        found = [(path, label) for path in sorted(kind.glob("[!.]*")) if path.suffix.lower() in FILES]
        if not found:
            raise damaged(kind, f"no picture ({', '.join(FILES)})")
        pictures += found
    return pictures


def _read_file(root: Path, grey: Grey, item: tuple[Path, int]) -> Example | Skipped:
    path, label = item
    pixels = read_picture(path, SIDE, "RGB")
    if isinstance(pixels, Skipped):
        return pixels
    return Example((grey(pixels).reshape(-1),), label, path.relative_to(root).as_posix())


def _take(pictures: np.ndarray, split: str, grey: Grey, item: tuple[int, int]) -> Example:
    place, label = item
    return Example((grey(pictures[place]).reshape(-1),), label, f"{split}/{place}")
