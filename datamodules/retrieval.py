"""Retrieval: classify whether one of two papers cites the other, byte by byte."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import SequenceDataModule
from datamodules.examples import Example, Skipped, packed
from datamodules.files import PreparedDataError
from datamodules.generate import check_at_least_one
from datamodules.prepared.writing import RawSplits
from datamodules.sources.archives import find_in_release, read_label, read_rows, sizes_of, source_name, source_path
from datamodules.sources.new_inputs import read_pairs

FILES = {split: f"new_aan_pairs.{name}.tsv" for split, name in (("train", "train"), ("val", "eval"), ("test", "test"))}
FOLDER = "tsv_data"  # of the release
NUM_PAIRS = 182_613


class Retrieval(SequenceDataModule):
    """Pairs of papers of the ACL Anthology Network as two sequences of bytes; two classes.

    Papers: Radev et al. 2013. The pairs are only in the release of Long Range Arena (Tay et al., ICLR 2021). Counts:
    147,086 / 18,090 / 17,437. A row has label, two identifiers and two texts, tab-separated without quoting. Token ids:
    0 padding, byte + 1 else; bytes that are not UTF-8 are bytes too.

    Args:
        batch_size, common: see `SequenceDataModule`.
        source: folder of the LRA release, or of its `new_aan_pairs.{train,eval,test}.tsv`; None for `lra_release` in
            `data_dir`.
        max_bytes: longer documents are cut.
    """

    task = "retrieval"
    vocab_size = 257
    num_classes = 2
    max_length = 4096
    num_documents = 2
    first_id = 1
    class_names = ("unrelated", "citing")
    citation = "Radev et al., The ACL Anthology Network Corpus, 2013; Tay et al., Long Range Arena, ICLR 2021"
    licence = "texts of the ACL Anthology: CC BY-NC-SA 3.0 up to 2015, CC BY 4.0 since"
    published_val_size = 300 * 16  # batches of the published code

    def __init__(self, batch_size: int = 16, source: str | None = None, max_bytes: int = 4000, **common: Any) -> None:
        super().__init__(batch_size=batch_size, **common)
        check_at_least_one(max_bytes=max_bytes)
        self.source = source
        self.max_bytes = self.protocol.cut(max_bytes)
        # 4,000 gives the customary 4,096 positions.
        self.max_length = -(-max_bytes // 128) * 128

    @property
    def settings(self) -> dict[str, Any]:
        return {"source": source_name(self.source), "max_bytes": self.max_bytes, "version": 1}

    @cached_property
    def release(self) -> Path:
        """Return the folder of the release's files."""
        source = self.data_dir / "lra_release" if self.source is None else source_path(self.source)
        try:
            return find_in_release(source, FOLDER, FILES["train"])
        except PreparedDataError as error:
            raise PreparedDataError(f"{error} The command `extract` takes only these from the archive.") from error

    def source_sizes(self) -> dict[str, int]:
        return sizes_of((self.release / name for name in FILES.values()), self.release)

    def expected_bytes(self) -> int:
        return min(sum(self.source_sizes().values()), NUM_PAIRS * 2 * self.max_bytes)

    def raw_splits(self) -> RawSplits:
        folder = self.release
        return {split: packed(self._read(folder / name, split)) for split, name in FILES.items()}

    def new_examples(self, path: Path) -> Iterator[Example]:
        return read_pairs(path, self.max_bytes)

    def _read(self, path: Path, split: str) -> Iterator[Example | Skipped]:
        for where, (label, *ids, first, second) in read_rows(path, 5, f"Reading Retrieval, {split:>5}"):
            documents = tuple(np.frombuffer(text[: self.max_bytes], dtype=np.uint8) for text in (first, second))
            name = " ".join(identifier.decode(errors="backslashreplace") for identifier in ids)
            if all(len(document) for document in documents):
                yield Example(documents, read_label(where, label, self.num_classes), name)
            else:
                yield Skipped(f"{where}: an empty document ({name})")
