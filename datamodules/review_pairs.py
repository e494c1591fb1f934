"""Review pairs: classify whether two film reviews are about the same film, byte by byte."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from datamodules.examples import Example, Skipped, make_examples
from datamodules.files import PreparedDataError
from datamodules.prepared.writing import RawSplits
from datamodules.sources.archives import damaged, sizes_of, source_path
from datamodules.sources.new_inputs import read_pairs
from datamodules.text import CLASSES, Read, Text, number_of, root_of

FILMS = {(split, kind): f"{split}/urls_{kind}.txt" for split in ("train", "test") for kind in CLASSES}
Item = TypeVar("Item")


class Pair(NamedTuple):
    """Names of two reviews, and whether they are about the same film."""

    first: str
    second: str
    label: int


class ReviewPairs(Text):
    """Pairs of IMDb reviews as two sequences of bytes; two classes. A stand-in for Retrieval, not a task of LRA.

    The texts and their films: Maas et al., ACL 2011. Half of the pairs are about one film. Each review of a film with
    several is the first document of at most one pair and the second of at most one. Both classes have the same
    sentiments in the same places, so no document alone shows the label, and neither does equal sentiment. Training,
    validation and test have different films. Token ids are those of Text.

    Args:
        batch_size, common: see `SequenceDataModule`.
        source: as in `Text`; it must have the addresses of the films, `urls_{neg,pos}.txt`.
        max_bytes: longer reviews are cut.
        val_size: pairs of the validation set, if its films have as many.
        data_seed: seed that draws the films of the validation set, and the pairs.
    """

    task = "reviewpairs"
    max_length = 4096
    num_documents = 2
    class_names = ("different", "same")
    published_val_size = None

    def __init__(self, batch_size: int = 16, source: str | None = None, max_bytes: int = 4000, **common: Any) -> None:
        super().__init__(batch_size=batch_size, source=source, max_bytes=max_bytes, **common)
        self.max_length = -(-max_bytes // 128) * 128  # as Retrieval

    def expected_bytes(self) -> int:
        return 2 * super().expected_bytes()

    def source_sizes(self) -> dict[str, int]:
        sizes = super().source_sizes()
        if self.source is not None and (source := source_path(self.source)).is_dir():
            root = root_of(source)
            sizes |= sizes_of((root / name for name in FILMS.values()), root)
        return sizes

    def raw_splits(self) -> RawSplits:
        names, read = self.open_reviews()
        film_of = self._read_films(names, read)
        train = [name for name in names if name.startswith("train/")]
        test = [name for name in names if name.startswith("test/")]
        films = {film_of[name] for name in train}
        random = np.random.default_rng(self.data_seed)
        val = self._draw_films(train, film_of, random) if self.val_size else set()
        parts = {"train": make_pairs([name for name in train if film_of[name] not in val], film_of, random)}
        if val:
            parts["val"] = make_pairs([name for name in train if film_of[name] in val], film_of, random)
            del parts["val"][self.val_size :]
        parts["test"] = make_pairs([name for name in test if film_of[name] not in films], film_of, random)
        make = partial(_make_example, read)
        return {split: make_examples(make, part, f"Reading IMDb, {split:>5}") for split, part in parts.items()}

    def new_examples(self, path: Path) -> Iterator[Example]:
        return read_pairs(path, self.max_bytes)

    def _read_films(self, names: Sequence[str], read: Read) -> dict[str, str]:
        """Return the film of each review: line n, counted from 0, is the address of review n.

        Raises:
            PreparedDataError: if a review has no address.
        """
        films = {}
        for place, name in FILMS.items():
            try:
                films[place] = read(name).splitlines()
            except PreparedDataError as error:
                raise PreparedDataError(
                    f"{name} cannot be read; some copies of aclImdb lack it (got data.source={self.source}). Fix: "
                    "leave data.source out to fetch the original"
                ) from error
        found = {}
        for name in names:
            split, kind, _ = name.split("/")
            addresses, number = films[split, kind], number_of(name)
            if not 0 <= number < len(addresses):
                raise damaged(FILMS[split, kind], f"{len(addresses):,} addresses, none for {name}")
            found[name] = addresses[number].decode(errors="backslashreplace")
        return found

    def _draw_films(self, names: Sequence[str], film_of: Mapping[str, str], random: np.random.Generator) -> set[str]:
        """Return random films whose reviews make at least `val_size` pairs.

        Raises:
            PreparedDataError: when nothing would be left to train on.
        """
        counts = {film: count for film, count in Counter(film_of[name] for name in names).items() if count > 1}
        chosen: set[str] = set()
        missing = self.val_size
        for film in _shuffled(sorted(counts), random):
            if missing <= 0:
                return chosen
            chosen.add(film)
            missing -= counts[film]
        raise PreparedDataError(
            f"data.val_size leaves none of {sum(counts.values()):,} reviews to train on (got {self.val_size}). "
            "Fix: a smaller data.val_size"
        )


def make_pairs(names: Iterable[str], film_of: Mapping[str, str], random: np.random.Generator) -> list[Pair]:
    """Pair reviews, alternately of the same film and of different ones.

    Args:
        names: names of the reviews; the only review of a film is left out.
        film_of: the film of each.
        random: generator of the random numbers.
    """
    reviews = defaultdict(list)
    for name in names:
        reviews[film_of[name]].append(name)
    same: list[tuple[str, str]] = []
    for film in _shuffled(sorted(reviews), random):
        order = _shuffled(reviews[film], random)
        if len(order) > 1:
            same += zip(order, order[1:] + order[:1], strict=True)
    is_kept = random.permutation(len(same)) % 2 == 0
    matching = [Pair(*pair, 1) for pair, kept in zip(same, is_kept, strict=True) if kept]
    different = _exchange([pair for pair, kept in zip(same, is_kept, strict=True) if not kept], film_of)
    both = zip(_shuffled(matching, random), _shuffled(list(different), random), strict=False)
    return [pair for two in both for pair in two]


def _shuffled(items: Sequence[Item], random: np.random.Generator) -> list[Item]:
    return [items[place] for place in random.permutation(len(items))]


def _exchange(pairs: Iterable[tuple[str, str]], film_of: Mapping[str, str]) -> Iterator[Pair]:
    """Give each first review the second one of another film's pair with the same two sentiments.

    Pairs of a film follow each other, so a shift by the longest such run leaves no film with itself. In a group too
    small for this, a pair can have no partner and is left out.
    """
    groups = defaultdict(list)
    for first, second in pairs:
        groups[first.split("/")[1], second.split("/")[1]].append((first, second))
    for group in groups.values():
        shift = max(Counter(film_of[first] for first, _ in group).values())
        for (first, _), (_, second) in zip(group, group[shift:] + group[:shift], strict=True):
            if film_of[first] != film_of[second]:
                yield Pair(first, second, 0)


def _make_example(read: Read, pair: Pair) -> Example | Skipped:
    documents = tuple(np.frombuffer(read(name), dtype=np.uint8) for name in (pair.first, pair.second))
    name = f"{pair.first} {pair.second}"
    return Example(documents, pair.label, name) if all(map(len, documents)) else Skipped(f"{name}: an empty review")
