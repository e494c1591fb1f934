"""`predict` writes who was predicted what, in the order of the test set."""

import csv

import pyarrow.parquet
import pytest

from skyformer.training.callbacks import predictions as predictions_module


@pytest.fixture(scope="module")
def trained(main, tiny_arguments, tmp_path_factory):
    """A finished run on Text, whose examples have names."""
    folder = tmp_path_factory.mktemp("predict")
    main(["fit", *tiny_arguments("text", folder), "--trainer.max_steps=3"])
    return folder


EXPECTED = [f"test/{kind}/{number}_{rating}.txt" for kind, rating in (("neg", 2), ("pos", 9)) for number in range(5)]


def test_csv_and_parquet_hold_the_same(trained, main):
    config = f"--config={trained}/config.yaml"
    main(["predict", config])
    rows = list(csv.DictReader((trained / "predictions.csv").open()))
    assert [row["id"] for row in rows] == EXPECTED
    assert [row["label"] for row in rows] == ["0"] * 5 + ["1"] * 5
    assert list(rows[0]) == ["id", "label", "prediction", "p0", "p1"]
    assert all(float(row[f"p{row['prediction']}"]) >= 0.5 for row in rows)
    main(["predict", config, "--predictions.format=parquet"])
    table = pyarrow.parquet.read_table(trained / "predictions.parquet").to_pydict()
    assert table["id"] == EXPECTED
    assert [f"{value:.6f}" for value in table["p1"]] == [row["p1"] for row in rows]
    assert [str(value) for value in table["prediction"]] == [row["prediction"] for row in rows]


def test_missing_pyarrow_is_said_before_anything_runs(trained, main, monkeypatch, capsys):
    monkeypatch.setattr(predictions_module, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main(["predict", f"--config={trained}/config.yaml", "--predictions.format=parquet"])
    assert stopped.value.code == 1
    assert "pip install -e '.[parquet]'" in capsys.readouterr().err
