"""`predict --data.predict_source`: inputs of the user's own, without the task's data."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from datamodules import ListOps, Pathfinder, Retrieval, Text
from datamodules.pathfinder.drawing import draw_image
from datamodules.pathfinder.settings import drawing_settings
from datamodules.sources.new_inputs import as_split

EXPRESSIONS = ("[MAX 2 9 [MIN 4 7 ] 0 ]", "( ( [SM 1 ) 2 ) ]")
SOURCES = {
    "listops": ("\n".join(EXPRESSIONS), ["new:1", "new:2"]),
    "text": ("A fine film.\nAn awful\tone, much longer than sixty bytes: its end is cut off in training too.\n", None),
    "retrieval": ("one paper\tanother one\nthird\tfourth\n", None),
    "reviewpairs": ("one review\tanother one\nthird\tfourth\n", None),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, main, tiny_arguments):
    """Runs a task's tiny training once; gives its folder."""
    folders = {}

    def train(task):
        if task not in folders:
            folders[task] = tmp_path_factory.mktemp(task)
            main(["fit", *tiny_arguments(task, folders[task])])
        return folders[task]

    return train


def predict(main, folder, source, *extra) -> list[dict[str, str]]:
    """Without the prepared data: their folder is another one, and stays empty."""
    empty = folder / "no_data"
    command = ["predict", f"--config={folder}/config.yaml", f"--data.data_dir={empty}", *extra]
    main([*command, f"--data.predict_source={source}"])
    assert not empty.exists() or not any(empty.iterdir())
    return list(csv.DictReader((folder / "predictions.csv").open()))


@pytest.mark.parametrize("task", SOURCES)
def test_lines_are_predicted_in_their_order(task, trained, tmp_path, main):
    text, names = SOURCES[task]
    (tmp_path / "new").write_text(text)
    rows = predict(main, trained(task), tmp_path / "new", "--data.batch_size=1")
    assert [row["id"] for row in rows] == (names or ["new:1", "new:2"])
    assert "label" not in rows[0]
    for row in rows:
        probabilities = [float(value) for name, value in row.items() if name.startswith("p") and name[1:].isdigit()]
        assert int(row["prediction"]) == np.argmax(probabilities)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_byte_order_mark_is_no_part_of_the_first_line(trained, tmp_path, main):
    (tmp_path / "new").write_bytes(b"A fine film.\r\nAn awful one.\r\n")
    expected = predict(main, trained("text"), tmp_path / "new")
    (tmp_path / "new").write_bytes(b"\xef\xbb\xbfA fine film.\r\nAn awful one.\r\n")
    assert predict(main, trained("text"), tmp_path / "new") == expected


def test_pictures_get_the_predictions_that_they_get_in_the_test_set(trained, tmp_path, main, data_dir):
    folder = trained("pathfinder")
    main(["predict", f"--config={folder}/config.yaml"])
    expected = list(csv.DictReader((folder / "predictions.csv").open()))
    hard = drawing_settings(32, "hard")
    stream = 2  # that of the test set, with data_seed 0
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "read me.txt").write_text("left out")
    (pictures / "._0.png").write_text("left out too")
    for index in range(7):
        Picture.fromarray(draw_image(hard, stream, index)[0]).save(pictures / f"{index}.png")
    found = predict(main, folder, pictures)
    assert [row["id"] for row in found] == [f"{index}.png" for index in range(7)]
    for row, same in zip(found, expected, strict=True):
        assert float(row["p0"]) == pytest.approx(float(same["p0"]), abs=1e-5)
    assert predict(main, folder, pictures / "3.png") == [found[3]]


@pytest.mark.long
def test_colours_become_grey_as_in_training(trained, tmp_path, main):
    Picture.fromarray(np.full((32, 32, 3), (200, 10, 90), dtype=np.uint8)).save(tmp_path / "one.png")
    assert len(predict(main, trained("image"), tmp_path / "one.png")) == 1


def test_tokens_are_those_of_training(tmp_path):
    (tmp_path / "new").write_bytes(b"ab\tc\nd\te\n")
    (text, _), (pair, _) = (list(task(max_bytes=3).new_examples(tmp_path / "new")) for task in (Text, Retrieval))
    assert [bytes(document) for document in text.documents] == [b"ab\t"]
    assert [bytes(document) for document in pair.documents] == [b"ab", b"c"]
    (tmp_path / "new").write_text("\n".join(EXPRESSIONS))
    first, second = ListOps().new_examples(tmp_path / "new")
    assert len(first.documents[0]) == 9
    assert len(second.documents[0]) == 4, "the release's parentheses are left out"


@pytest.mark.parametrize(
    ("task", "content", "said"),
    [
        ("listops", "[MAX 2 ]\n\n3", "an empty line (got {path}:2)"),
        (
            "listops",
            "[MAX 2 ]\n[MAX 2",
            "'[MAX 2' is not a valid expression, the operator at 0 has no arguments or is not closed",
        ),
        ("listops", "[MAX 2 ] ]", "'[MAX 2 ] ]' is not a valid expression, 1 tokens follow the end of the expression"),
        ("listops", "[MAX 2 ]\n[MOX 1 ]", "'[MOX 1 ]' is not a valid expression (got {path}:2)"),
        ("listops", "1 " * 70, "70 tokens, data.max_length is 64 (got {path}:1)"),
        ("text", "", "nothing to predict (got {path})"),
        ("text", "A fine film.".encode("utf-16"), "UTF-16 text, but models read UTF-8 (got {path})"),
        ("text", None, "No such file or directory (got {path})"),
        ("retrieval", "one text", "expected two texts with a tab between them (got {path}:1)"),
        ("pathfinder", "no picture", "broken, or not a picture"),
        ("pathfinder", None, "no such file (got {path})"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(task, content, said, trained, tmp_path, main, capsys):
    path = tmp_path / "new"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as stopped:
        predict(main, trained(task), path)
    assert stopped.value.code == 1
    assert f"data.predict_source: {said.format(path=path)}" in capsys.readouterr().err


def test_picture_of_another_size_is_refused(trained, tmp_path, main, capsys):
    Picture.fromarray(np.zeros((20, 32), dtype=np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(SystemExit):
        predict(main, trained("pathfinder"), tmp_path)
    assert "32×20 pixels, expected 32×32" in capsys.readouterr().err


def test_all_black_picture_has_one_token(tmp_path):
    Picture.fromarray(np.zeros((32, 32), dtype=np.uint8)).save(tmp_path / "black.png")
    data = Pathfinder()
    (example,) = data.new_examples(tmp_path / "black.png")
    assert not example.documents[0].any()
    split, names = as_split(tmp_path, [example])
    batch = data._batches(split)[0]
    assert names == ["black.png"]
    assert torch.equal(batch.mask.sum(dim=1), torch.tensor([1]))
