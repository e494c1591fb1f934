"""Text: classify whether a film review is positive, byte by byte."""

import re
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.progress import DownloadColumn

from datamodules.base import SequenceDataModule
from datamodules.examples import Example, Skipped, make_examples, progress_bar
from datamodules.files import PreparedDataError, open_regular
from datamodules.generate import check_at_least_one, check_seed
from datamodules.prepared.writing import RawSplits
from datamodules.sources.archives import cut_val, damaged, reading, sizes_of, source_name, source_path
from datamodules.sources.download import fetch
from datamodules.sources.new_inputs import read_lines

URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
CLASSES = ("neg", "pos")
_FILE = re.compile(r"(?:^|/)((?:train|test)/(?:(?:neg|pos)/[^/.][^/]*|urls_(?:neg|pos))\.txt)\Z")
_MAX_URL_BYTES = 1 << 22  # bytes of the file that has each review's film
Read = Callable[[str], bytes]


class Text(SequenceDataModule):
    """IMDb reviews as sequences of bytes; two classes.

    Maas et al., ACL 2011: 25,000 reviews to train on and 25,000 to test, each half positive. 2,500 of the
    first are the validation set. The published numbers chose their checkpoint on the test set (`protocol.val_is_test`).
    Token ids: 0 is padding, else byte + 1; bytes that are not UTF-8 are bytes too. A review has 1,325 bytes on
    average, at most 13,704.

    Args:
        batch_size, common: see `SequenceDataModule`.
        source: the unpacked `aclImdb` or an archive of it (tar, whatever its compression); None to fetch it.
        max_bytes: longer reviews are cut.
        val_size: reviews of the validation set, half of each class.
        data_seed: seed that selects the validation set; independent of the training seed.
    """

    task = "text"
    vocab_size = 257
    num_classes = 2
    max_length = 4096
    first_id = 1
    class_names = CLASSES
    citation = "Maas, Daly, Pham, Huang, Ng, Potts, Learning Word Vectors for Sentiment Analysis, ACL 2011"
    licence = "none stated; its authors ask to be cited"
    published_val_size: ClassVar[int | None] = 200 * 32  # batches of the published code

    def __init__(
        self,
        batch_size: int = 16,
        source: str | None = None,
        max_bytes: int = 4096,
        val_size: int = 2_500,
        data_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **common)
        check_at_least_one(max_bytes=max_bytes, val_size=val_size)
        self.source = source
        self.max_bytes = self.protocol.cut(max_bytes)
        self.val_size = 0 if self.protocol.val_is_test else val_size
        self.data_seed = check_seed(data_seed)
        self.max_length = -(-max_bytes // 64) * 64

    @property
    def settings(self) -> dict[str, Any]:
        cut = {"max_bytes": self.max_bytes, "val_size": self.val_size, "data_seed": self.data_seed}
        return {"source": source_name(self.source), **cut, "version": 1}

    @property
    def val_split(self) -> str:
        return "val" if self.val_size else "test"

    def expected_bytes(self) -> int:
        return 50_000 * min(self.max_bytes, 1_350)

    def source_sizes(self) -> dict[str, int]:
        if self.source is None:
            return {}
        source = source_path(self.source)
        if source.is_file():
            return sizes_of([source], source.parent)
        root = root_of(source)
        return sizes_of((root / split / kind for split in ("train", "test") for kind in CLASSES), root)

    def raw_splits(self) -> RawSplits:
        names, read = self.open_reviews()
        make = partial(_make_example, read)
        train = [name for name in names if name.startswith("train/")]
        parts = {"train": train}
        if self.val_size:
            rest, val = cut_val([_label(name) for name in train], self.val_size, self.data_seed)
            parts = {"train": [train[place] for place in rest], "val": [train[place] for place in val]}
        parts["test"] = [name for name in names if name.startswith("test/")]
        return {split: make_examples(make, part, f"Reading IMDb, {split:>5}") for split, part in parts.items()}

    def new_examples(self, path: Path) -> Iterator[Example]:
        for where, line in read_lines(path):
            yield Example((np.frombuffer(line[: self.max_bytes], dtype=np.uint8),), 0, where.rpartition("/")[2])

    def open_reviews(self) -> tuple[list[str], Read]:
        """Return the reviews' names, such as `train/neg/0_3.txt`, in order, and the function that reads one.

        The function also reads the addresses of the reviews' films, such as `train/urls_neg.txt`.

        Raises:
            PreparedDataError: for a source that is damaged or incomplete.
        """
        if self.source is None:
            source = fetch(URL, self.data_dir / "downloads" / URL.rpartition("/")[2], "sha256", SHA256)
        else:
            source = source_path(self.source)
        names, read = (_open_archive if source.is_file() else _open_folder)(source, self.max_bytes)
        for split in ("train", "test"):
            for kind in CLASSES:
                if not any(name.startswith(f"{split}/{kind}/") for name in names):
                    what = f"{source} has no review {split}/{kind}/*.txt"
                    raise PreparedDataError(f"{what}. Fix: set data.source to the complete aclImdb (got {self.source})")
        return sorted(names, key=_order), read


def root_of(folder: Path) -> Path:
    return folder / "aclImdb" if (folder / "aclImdb").is_dir() else folder


def _open_folder(folder: Path, max_bytes: int) -> tuple[list[str], Read]:
    root = root_of(folder)

    def read(name: str) -> bytes:
        with reading(root / name), open_regular(root / name) as file:
            return file.read(_limit(name, max_bytes))

    names = (path.relative_to(root).as_posix() for path in root.glob("t*/*/*.txt"))
    return [name for name in names if _FILE.search(name)], read


def _limit(name: str, max_bytes: int) -> int:
    return max_bytes if _is_review(name) else _MAX_URL_BYTES


def _is_review(name: str) -> bool:
    return name.count("/") == 2


def _open_archive(path: Path, max_bytes: int) -> tuple[list[str], Read]:
    """Read all reviews into memory (65 MB), because a compressed archive is sequential. Nothing is unpacked to disk.

    Only the first `max_bytes` of each review are read, since an archive can claim or hold any number of bytes.
    """
    files = {}
    try:
        with reading(path), path.open("rb") as file, progress_bar(DownloadColumn()) as progress:
            bar = progress.add_task(f"Reading {path.name}", total=path.stat().st_size)
            with tarfile.open(fileobj=file, mode="r:*") as archive:
                for member in archive:
                    if member.size < 0:  # the next one would be one before, for ever
                        raise tarfile.ReadError(f"a size of {member.size}")
                    found = _FILE.search(member.name)
                    is_wanted = found and (member.isfile() or member.islnk())  # a link to an equal one before it
                    content = archive.extractfile(member) if is_wanted else None
                    if found and content:
                        if found[1] in files:
                            raise damaged(path, f"two files {found[1]}")
                        files[found[1]] = content.read(_limit(found[1], max_bytes))
                        progress.update(bar, completed=file.tell())
                _check_end(archive)
    except PreparedDataError:
        raise
    except Exception as error:  # damage shows in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")  # then it lists each compression
        raise damaged(path, f"damaged, or no tar archive ({reason})") from error

    def read(name: str) -> bytes:
        if name not in files:
            raise damaged(path, f"no {name}")
        return files[name]

    return list(filter(_is_review, files)), read


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise an error for a corrupt header or a truncated archive, which iteration takes for the end."""
    file: Any = archive.fileobj
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"no end, but {'damage' if block else 'nothing'} at byte {archive.offset:,}")
    while file.read(1 << 20):  # to the end, where a compressed file has its checksum
        pass


def _order(name: str) -> tuple[str, str, int, str]:
    """Sort key by split, class and number: the same for a folder and for any archive."""
    split, kind, file = name.split("/")
    return split, kind, number_of(name), file


def number_of(name: str) -> int:
    """Return the number of a review; -1 if it has none."""
    number = name.rpartition("/")[2].split("_")[0]
    return int(number) if number.isdecimal() and len(number) < 19 else -1


def _label(name: str) -> int:
    return CLASSES.index(name.split("/")[1])


def _make_example(read: Read, name: str) -> Example | Skipped:
    content = read(name)
    if not content:
        return Skipped(f"{name}: an empty review")
    return Example((np.frombuffer(content, dtype=np.uint8),), _label(name), name)
