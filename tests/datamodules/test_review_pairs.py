"""Review pairs: labels follow the films, no document alone shows them, and a report never takes them for Retrieval."""

import tarfile
from collections import Counter

import numpy as np
import pytest
import tiny_sources
from report_runs import cells_in, write_run

from datamodules import ReviewPairs, Text
from datamodules.files import PreparedDataError
from datamodules.review_pairs import make_pairs


def reviews_of(num_films, seed):
    """Names and films of 1 to 9 reviews of each film, of random sentiments."""
    random = np.random.default_rng(seed)
    films = np.repeat(np.arange(num_films), random.integers(1, 10, num_films))
    kinds = random.choice(["neg", "pos"], len(films))
    return {f"train/{kind}/{n}_5.txt": f"tt{film}" for n, (kind, film) in enumerate(zip(kinds, films, strict=True))}


def kind(name):
    return name.split("/")[1]


def test_pairs_show_their_label_by_nothing_but_the_film():
    film_of = reviews_of(num_films=300, seed=0)
    pairs = make_pairs(list(film_of), film_of, np.random.default_rng(1))
    assert all((film_of[first] == film_of[second]) == bool(label) for first, second, label in pairs)
    assert [label for *_, label in pairs] == [1, 0] * (len(pairs) // 2)
    for side in (0, 1):
        assert set(Counter(pair[side] for pair in pairs).values()) == {1}, "each review once"
    lone = {film for film, count in Counter(film_of.values()).items() if count == 1}
    assert len(lone) > 20
    assert len(film_of) - len(lone) - len(pairs) <= 1
    assert all(pair.first != pair.second for pair in pairs)
    kinds = [Counter((kind(p.first), kind(p.second)) for p in pairs if p.label == label) for label in (0, 1)]
    assert all(abs(kinds[0][both] - kinds[1][both]) < 0.05 * len(pairs) for both in kinds[0] | kinds[1])


def test_same_draw_gives_the_same_pairs():
    film_of = reviews_of(num_films=30, seed=2)
    draws = [make_pairs(list(film_of), film_of, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def documents(data, split):
    """(first text, second text, label) of each pair; the writer's films are the reviews' numbers divided by two."""
    arrays = data.splits[split].split
    pieces = np.split(np.asarray(arrays.tokens), arrays.offsets[1:-1])
    texts = [bytes(piece) for piece in pieces]
    return list(zip(texts[::2], texts[1::2], arrays.labels.tolist(), strict=True))


def films(data, split):
    names = [name.split() for name in data.example_names(split)]
    return [tuple(int(name.split("/")[2].split("_")[0]) // 2 for name in pair) for pair in names]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_pairs_from_the_reviews(packed, source, prepare, tmp_path):
    tiny_sources.write_reviewpairs(source)
    place = source
    if packed:
        place = tmp_path / "aclImdb.tar.gz"
        with tarfile.open(place, "w:gz") as tar:
            tar.add(source, "aclImdb")
    data = prepare(ReviewPairs, place, val_size=8)
    assert len(data.splits["val"]) == 8
    for split in ("train", "val", "test"):
        pairs = documents(data, split)
        assert [first == second for first, second in films(data, split)] == [bool(label) for *_, label in pairs]
        for (first, second, _), names in zip(pairs, data.example_names(split), strict=True):
            assert [first, second] == [(source / name).read_bytes() for name in names.split()]
    train, val = ({film for pair in films(data, split) for film in pair} for split in ("train", "val"))
    assert not train & val
    assert data.max_length == 4096


def test_test_films_are_not_trained_on(source, prepare):
    tiny_sources.write_reviewpairs(source)
    train = (source / "train/urls_neg.txt").read_text()
    for name in ("neg", "pos"):
        path = source / f"test/urls_{name}.txt"
        path.write_text(path.read_text().replace("tt100", train.split("/title/")[1].partition("/")[0]))
    with pytest.raises(PreparedDataError, match="'test' has no example"):
        prepare(ReviewPairs, source, val_size=8)


def test_films_that_are_missing(source, prepare):
    tiny_sources.write_text(source)
    with pytest.raises(
        PreparedDataError, match=r"urls_neg.txt cannot be read; .*Fix: leave data.source out to fetch the original"
    ):
        prepare(ReviewPairs, source, val_size=8)
    tiny_sources.write_reviewpairs(source.with_name("other"))
    path = source.with_name("other") / "test/urls_pos.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(PreparedDataError, match=r"test/urls_pos.txt: 4 addresses, none for test/pos/4_9.txt"):
        prepare(ReviewPairs, path.parents[1], val_size=8)
    path.write_text("a\n" * 5)
    with pytest.raises(PreparedDataError, match=r"data.val_size leaves none of 30 reviews .* \(got 30\)"):
        prepare(ReviewPairs, path.parents[1], val_size=30)


def test_films_are_no_reviews(source, prepare):
    """Text reads the same folder as without them."""
    tiny_sources.write_reviewpairs(source)
    data = prepare(Text, source, val_size=10)
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [20, 10, 10]


def test_report_has_them_in_a_column_of_their_own(tmp_path):
    for task, accuracy in (("retrieval", 0.5), ("text", 0.6), ("reviewpairs", 0.9)):
        write_run(tmp_path / "runs" / task, task=task, accuracy=accuracy)
    cells = {column: cell.value for (label, column), cell in cells_in(tmp_path / "runs").items() if "Sky" in label}
    assert "50.0" in cells["Retrieval"]
    assert "90.0" not in cells["Retrieval"]
    assert "90.0" in cells["Review pairs (not AAN)"]
    assert cells["Average"] == "55.00"
