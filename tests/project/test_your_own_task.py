"""`docs/your-own-task.md` works as it is written, with every attention method."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from refusals import refuse
from tiny_runs import ROOT

from skyformer.attention import BACKENDS

PAGE = (ROOT / "docs/your-own-task.md").read_text()
SMALL = [
    "--model.embed_dim=16",
    "--model.hidden_dim=16",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


def blocks(language: str) -> list[str]:
    """The blocks of code in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The arguments of each command line."""
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert all(line[:2] == ["python", "run.py"] for line in lines)
    return [line[2:] for line in lines]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with the files of the page."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, python, config in zip(("my_reviews", "my_arrays"), blocks("python"), blocks("yaml"), strict=True):
        (tmp_path / f"{name}.py").write_text(python)
        (tmp_path / f"{name}.yaml").write_text(config)
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def write_reviews(folder: Path, *more: tuple[str, str]) -> None:
    """In 200 reviews the words tell the label."""
    rng = np.random.default_rng(0)
    with (folder / "reviews.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for _ in range(200):
            label = rng.choice(["negative", "positive"])
            words = rng.choice(["bad", "worse"] if label == "negative" else ["good", "fun"], size=rng.integers(2, 20))
            rows.writerow([", ".join(words), label])
        rows.writerows(more)


def write_arrays(folder: Path) -> None:
    """Sequences of the ids 1 … 999, all below 500 or all above, padded with 0."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 64), ("val", 8), ("test", 8)):
        label = np.arange(count) % 2
        tokens = rng.integers(1, 500, (count, 256)) + 500 * label[:, None]
        tokens[np.arange(256) >= rng.integers(100, 257, (count, 1))] = 0
        arrays |= {f"{split}_tokens": tokens.astype(np.uint16), f"{split}_label": label}
    np.savez(folder / "sequences.npz", **arrays)


def test_csv_of_text_and_label(folder, main, capsys):
    assert blocks("csv")[0].startswith("text,label\n")
    write_reviews(folder, ("", "positive"))
    (folder / "new_reviews.txt").write_text("good, fun\nworse, bad, bad\n")
    prepare, fit, other, predict = commands(blocks("bash")[0])
    data = main(prepare)
    assert {split: len(arrays) for split, arrays in data.splits.items()} == {"train": 160, "val": 20, "test": 20}
    first = next(csv.DictReader((folder / "reviews.csv").open()))
    batch = data.splits["train"][0]
    assert bytes((batch.tokens[0, batch.mask[0]] - 1).tolist()).decode() == first["text"]
    assert data.class_names[batch.label[0]] == first["label"]
    assert "row 200: no text" in (data.folder / "meta.json").read_text()

    steps = [
        "--trainer.max_steps=40",
        "--trainer.val_check_interval=5",
        "--model.lr_scheduler.init_args.warmup_steps=4",
    ]
    main([*fit, *SMALL, *steps, "--model.optimizer.init_args.lr=0.02"])
    run = folder / "runs/reviews/skyformer/seed0"
    assert json.loads((run / "result.json").read_text())["test/accuracy"] == 1
    assert "runs/reviews/skyformer/seed0" in PAGE
    main(predict)
    predicted = list(csv.DictReader((run / "predictions.csv").open()))
    assert [row["prediction"] for row in predicted] == ["1", "0"]

    cli = main([*other, *SMALL, *steps, "--trainer.max_steps=5"])
    assert type(cli.model.encoder.blocks[0].attention.backend) is BACKENDS["softmax"]
    assert (folder / "runs/reviews/softmax/seed0/checkpoints/last.ckpt").exists()
    assert "runs/reviews/softmax/seed0" in PAGE


def test_csv_with_a_wrong_label_or_no_file(folder, main, capsys):
    prepare = commands(blocks("bash")[0])[0]
    refuse(main, capsys, prepare, 1, "reviews.csv: No such file or directory")
    write_reviews(folder, ("A film.", "Positive"))
    refuse(main, capsys, prepare, 1, "reviews.csv: row 200: no such label (got 'Positive')")


SHOWN = ("skyformer", "bigbird")  # on the page


@pytest.mark.parametrize(
    "attention", [pytest.param(name, marks=() if name in SHOWN else pytest.mark.long) for name in BACKENDS]
)
def test_numpy_array_with_each_attention(attention, folder, main):
    write_arrays(folder)
    plain, other = commands(blocks("bash")[1])
    assert other == [*plain, "--config", "configs/attention/bigbird.yaml"]
    arguments = [*plain, f"--config=configs/attention/{attention}.yaml", *SMALL, "--trainer.max_steps=2"]
    cli = main([*arguments, "--trainer.val_check_interval=2", "--model.lr_scheduler.init_args.warmup_steps=1"])
    assert cli.trainer.global_step == 2
    assert type(cli.model.encoder.blocks[0].attention.backend) is BACKENDS[attention]
    assert cli.model.encoder.tokens.num_embeddings == 1000
    result = json.loads((folder / f"runs/arrays/{attention}/seed0/result.json").read_text())
    assert result["test/examples"] == 8
