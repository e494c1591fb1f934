"""A run on a task with a label for each token: results, predictions, resume."""

import csv
import json

import pytest
from refusals import refuse
from runs_compared import assert_same_run


def test_result_is_of_labelled_tokens_and_of_each_case(tmp_path, main, tiny_arguments, capsys):
    arguments = tiny_arguments("mqar", tmp_path)
    main(["fit", *arguments, "--test_after_fit=true"])
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["test/examples"], result["test/labelled_tokens"]) == (13, 7 * 3 + 6 * 6)
    assert f"Test accuracy {result['test/accuracy']:.2%} on 57 labelled tokens of 13 examples" in said
    main(["predict", *arguments])
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "position", "label", "prediction", "probability"]
    assert [int(row["id"]) for row in rows] == sorted(int(row["id"]) for row in rows)
    for remainder, (case, count) in enumerate({"16 tokens, 3 pairs": 21, "32 tokens, 6 pairs": 36}.items()):
        right = [row["label"] == row["prediction"] for row in rows if int(row["id"]) % 2 == remainder]
        assert len(right) == count
        assert result["test/accuracy_by_case"][case] == pytest.approx(sum(right) / count, abs=1e-6)
        assert f"  {case}: {sum(right) / count:.2%}" in said


def test_new_inputs_have_no_label(tmp_path, main, tiny_arguments):
    (tmp_path / "new.txt").write_text("2 9 3 10 3 1 2\n")
    arguments = [*tiny_arguments("mqar", tmp_path), "--trainer.max_steps=3"]
    main(["fit", *arguments])
    main(["predict", *arguments, f"--data.predict_source={tmp_path}/new.txt"])
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "id,position,prediction,probability"
    assert [line.split(",")[1] for line in lines[1:]] == ["4", "6"]


def test_resumed_run_is_the_run_never_stopped(tmp_path, main, tiny_arguments):
    """In the middle of an epoch of 12 batches."""
    extra = ["--model.lr_scheduler=null"]
    main(["fit", *tiny_arguments("mqar", tmp_path / "resumed"), *extra, "--trainer.max_steps=5"])
    main(["fit", *tiny_arguments("mqar", tmp_path / "resumed"), *extra, "--ckpt_path=last"])
    main(["fit", *tiny_arguments("mqar", tmp_path / "whole"), *extra])
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")


def test_wrong_pooling_is_named(tmp_path, main, tiny_arguments, capsys):
    wrong = ["fit", *tiny_arguments("mqar", tmp_path), "--model.pooling=mean"]
    refuse(main, capsys, wrong, 1, "model.pooling=mean: the data has a label for each token. Fix: --model.pooling none")
