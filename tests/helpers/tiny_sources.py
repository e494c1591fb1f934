"""Raw data of the tasks that are not generated, in the layout that their users have, a few examples each."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WORDS = ("the", "film", "was", "a", "joy", "to", "watch", "and", "I", "would", "see", "it", "again")


def write_text(folder: Path) -> None:
    """`aclImdb`: 30 reviews to train on and 10 to test, of 1 to 30 words."""
    words = random.Random(0)
    for split, count in (("train", 15), ("test", 5)):
        for kind, rating in (("neg", 2), ("pos", 9)):
            place = folder / split / kind
            place.mkdir(parents=True)
            for number in range(count):
                review = " ".join(words.choices([kind, *WORDS], k=words.randint(1, 30)))
                (place / f"{number}_{rating}.txt").write_text(review)


def write_reviewpairs(folder: Path) -> None:
    """The same with the addresses of the films: four reviews each, and two of the last one of a split."""
    write_text(folder)
    for split, count, first in (("train", 15, 0), ("test", 5, 100)):
        lines = [f"http://www.imdb.com/title/tt{first + number // 2}/usercomments\n" for number in range(count)]
        for kind in ("neg", "pos"):
            (folder / split / f"urls_{kind}.txt").write_text("".join(lines))


def write_retrieval(folder: Path) -> None:
    """`new_aan_pairs.*.tsv`: 24, 10 and 7 pairs."""
    words = random.Random(0)
    folder.mkdir(parents=True)
    for name, count in (("train", 24), ("eval", 10), ("test", 7)):
        rows = []
        for number in range(count):
            first, second = (" ".join(words.choices(WORDS, k=words.randint(1, 30))) for _ in range(2))
            rows.append(f"{number % 2}.0\tP{number}\tQ{number}\t{first}\t{second}\n")
        (folder / f"new_aan_pairs.{name}.tsv").write_text("".join(rows))


def write_image(folder: Path) -> None:
    """Class folders: 6 pictures of each of the ten classes to train on and 1 to test."""
    colours = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 1)):
        for kind in CLASSES:
            place = folder / split / kind
            place.mkdir(parents=True)
            for number in range(count):
                pixels = colours.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                pixels[::2] = 0
                Image.fromarray(pixels).save(place / f"{number:04}.png")


WRITERS = {
    "image": write_image,
    "retrieval": write_retrieval,
    "reviewpairs": write_reviewpairs,
    "text": write_text,
}
