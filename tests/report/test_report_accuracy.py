"""The table of accuracies: means, what is bold, what is said of unlike cells, the paper's figures."""

import hashlib
import json
import os
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from report_runs import MODULES, cells_in, groups_in, write_run

from skyformer.report.comparison import code_notes
from skyformer.report.runs import find_runs
from skyformer.report.tables import accuracy_rows, accuracy_table, cost_table


def write_seeds(folder, attention, accuracies, **changes):
    for seed, accuracy in enumerate(accuracies):
        write_run(folder / attention / str(seed), attention=attention, seed=seed, accuracy=accuracy, **changes)


def test_mean_deviation_and_paper(tmp_path):
    write_seeds(tmp_path, "softmax", [0.36, 0.38, 0.43])
    (row,) = accuracy_rows(groups_in(tmp_path))
    assert row["accuracy_mean"] == pytest.approx(39.0)
    assert row["accuracy_std"] == pytest.approx(np.sqrt((9 + 1 + 16) / 2), abs=1e-4)
    assert (row["n"], row["seeds"], row["steps"], row["paper"]) == (3, "0 1 2", 100, 38.37)
    assert row["difference"] == pytest.approx(39.0 - 38.37)
    cell = cells_in(tmp_path)["Softmax", "ListOps"]
    assert cell.value == "39.00 ± 3.61 (n=3)"
    assert cell.lines[-1] == "paper 38.37, +0.63 (a)"
    assert not cell.is_best, "there is nothing to be better than"


def test_one_seed_has_no_deviation(tmp_path):
    write_seeds(tmp_path, "softmax", [0.36])
    assert cells_in(tmp_path)["Softmax", "ListOps"].value == "36.00 (n=1)"
    assert accuracy_rows(groups_in(tmp_path))[0]["accuracy_std"] == ""


def test_best_is_bold_and_ties_are(tmp_path):
    for attention, accuracies in {"softmax": [0.4, 0.5], "informer": [0.5, 0.4], "bigbird": [0.3, 0.4]}.items():
        write_seeds(tmp_path, attention, accuracies)
    cells = cells_in(tmp_path)
    assert {label for (label, _), cell in cells.items() if cell.is_best} == {"Softmax", "Informer"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 40, "max_steps": 40}, "40 of 100 steps"),
        ({"steps": 200, "max_steps": 200}, "steps 200, not 100"),
        ({"steps": 60}, "2 stopped before step 100"),
        ({"data__init_args__batch_size": 16}, "batch 16, not 32"),
        ({"data__init_args__protocol": {"brackets": False}}, "brackets false, not none"),
        ({"model__pooling": "cls"}, "pooling cls, not mean"),
        ({"record": {"data_hash": "other"}}, "other data"),
        ({"record": {"num_processes": 2}}, "batch 64, not 32"),
    ],
)
def test_unlike_cell_says_so_and_is_not_best(changes, said, tmp_path):
    write_seeds(tmp_path, "softmax", [0.3, 0.4])
    write_seeds(tmp_path, "informer", [0.3, 0.3])
    write_seeds(tmp_path, "bigbird", [0.8, 0.9], **changes)
    cells = cells_in(tmp_path)
    assert said in cells["BigBird", "ListOps"].lines
    assert not cells["BigBird", "ListOps"].is_best
    assert cells["Softmax", "ListOps"].is_best
    assert len(cells["Softmax", "ListOps"].lines) == 1, "its line of the paper"


def test_fewer_seeds(tmp_path):
    write_seeds(tmp_path, "softmax", [0.3, 0.4, 0.5])
    write_seeds(tmp_path, "informer", [0.3, 0.3, 0.3, 0.3])
    write_seeds(tmp_path, "linformer", [0.3, 0.3, 0.3])
    write_seeds(tmp_path, "bigbird", [0.9])
    cells = cells_in(tmp_path)
    assert cells["BigBird", "ListOps"].lines[0] == "1 of 3 seeds"
    assert [label for (label, _), cell in cells.items() if cell.is_best] == ["Softmax"]
    assert len(cells["Informer", "ListOps"].lines) == 1, "more seeds are no fault"


def test_tuned_optimiser_is_said_and_may_be_best(tmp_path):
    write_seeds(tmp_path, "softmax", [0.3])
    write_seeds(tmp_path, "informer", [0.3])
    write_seeds(tmp_path, "bigbird", [0.9], model__optimizer__init_args__lr=0.5)
    cell = cells_in(tmp_path)["BigBird", "ListOps"]
    assert cell.is_best
    assert cell.lines[0] == "lr 0.5, not 0.0001"


def test_what_was_not_tested_is_counted_and_not_averaged(tmp_path):
    write_seeds(tmp_path, "softmax", [0.3, 0.5, None])
    write_run(tmp_path / "cut", attention="softmax", seed=3, accuracy=None, steps=40)
    write_run(tmp_path / "informer", attention="informer", accuracy=None)
    cells = cells_in(tmp_path)
    assert cells["Softmax", "ListOps"].value == "40.00 ± 14.14 (n=2)"
    assert cells["Softmax", "ListOps"].lines[:2] == ("1 unfinished", "1 not tested")
    assert (cells["Informer", "ListOps"].value, cells["Informer", "ListOps"].lines) == ("–", ("1 not tested",))


def test_seed_that_is_there_twice_counts_once(tmp_path):
    write_run(tmp_path / "b", seed=0, accuracy=0.2, record={"started": "2026-02-01"})
    write_run(tmp_path / "a", seed=0, accuracy=0.6, record={"started": "2026-03-01"})
    write_run(tmp_path / "c", seed=1, accuracy=0.4)
    cell = cells_in(tmp_path)["Skyformer", "ListOps"]
    assert cell.value == "50.00 ± 14.14 (n=2)"
    assert cell.lines[0] == "seed 0 more than once, the latest counts"


def test_average_only_over_all_tasks(tmp_path):
    for number, task in enumerate(MODULES):
        write_run(tmp_path / task / "s", task=task, accuracy=0.1 * (number + 1))
        if task != "image":
            write_run(tmp_path / task / "b", task=task, attention="bigbird")
    cells = cells_in(tmp_path)
    assert cells["Skyformer", "Average"].value == "30.00"
    (line,) = cells["Skyformer", "Average"].lines
    assert re.fullmatch(r"paper 59\.39, −29\.39 \(a,b.*\)", line), "with the letters of all its cells"
    assert not cells["Skyformer", "Average"].is_best, "there is nothing to be better than"
    assert cells["BigBird", "Average"].value == ""


def test_average_of_unlike_cells_says_so_and_is_not_best(tmp_path):
    for task in ("text", "listops"):
        for number, attention in enumerate(("softmax", "informer", "bigbird")):
            record = {"data_hash": "other"} if attention == "bigbird" and task == "text" else {}
            write_run(tmp_path / task / attention, task, attention, accuracy=0.5 + 0.1 * number, record=record)
    averages = {label: cell for (label, column), cell in cells_in(tmp_path).items() if column == "Average"}
    assert averages["BigBird"].value == "70.00"
    assert averages["BigBird"].lines == ("from unlike cells",)
    assert averages["Informer"].lines == ()
    assert {label for label, cell in averages.items() if cell.is_best} == {"Informer"}


def test_seeds_of_several_data_sets_are_said_of_every_cell(tmp_path):
    for attention in ("softmax", "informer"):
        for seed, data in enumerate("ab"):
            record = {"data_hash": data}
            write_run(tmp_path / attention / str(seed), attention=attention, seed=seed, record=record)
    groups = groups_in(tmp_path)
    assert all("seeds of several data sets" in cell.lines for _, (cell,) in accuracy_table(groups).rows)
    assert all("seeds of several data sets" in cell.lines for _, (cell,) in cost_table(groups).rows)


def test_seeds_tested_on_unequal_numbers_of_examples_are_said(tmp_path):
    for seed, examples in enumerate((2000, 32)):
        path = write_run(tmp_path / str(seed), seed=seed) / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "test/examples": examples}))
    (row,) = accuracy_rows(groups_in(tmp_path))
    assert row["remarks"] == "seeds with tested examples 32 and 2,000"


def test_commits_are_said_where_they_are_several_or_changed(tmp_path):
    commits = {"a": "1" * 40, "b": "1" * 40}
    for number, (name, commit) in enumerate(commits.items()):
        write_run(tmp_path / name, seed=number, record={"code": {"commit": commit, "dirty": False}})
    assert code_notes(groups_in(tmp_path)) == []
    write_run(tmp_path / "c", seed=2, record={"code": {"commit": "2" * 40, "dirty": True}})
    notes = [
        "Runs are of several commits, with the number of runs: 111111111 (2), 222222222 (1).",
        "1 of 3 runs were made by code with changes that were not committed.",
    ]
    assert code_notes(groups_in(tmp_path)) == notes
    for table in (accuracy_table(groups_in(tmp_path)), cost_table(groups_in(tmp_path))):
        assert set(notes) <= set(table.notes)


def test_result_of_another_checkpoint_does_not_count(tmp_path):
    write_run(tmp_path / "a", accuracy=0.5)
    path = write_run(tmp_path / "b", seed=1, accuracy=0.9) / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "checkpoint": "runs/b/checkpoints/last.ckpt"}))
    _, problems = find_runs([tmp_path])
    assert any("of last.ckpt, not of the best checkpoint" in problem for problem in problems)
    assert cells_in(tmp_path)["Skyformer", "ListOps"].value.startswith("50.00")
    path.write_text(json.dumps({**result, "checkpoint": "runs/b/checkpoints/best.ckpt"}))
    assert cells_in(tmp_path)["Skyformer", "ListOps"].value.startswith("70.00")


def test_copied_result_counts_for_the_weights_that_were_tested(tmp_path):
    """A copy has new times, so the result of earlier weights is younger than the last start."""
    path = write_run(tmp_path / "a", record={"started": "2026-01-02T00:00:00+00:00"}) / "result.json"
    best = tmp_path / "a/checkpoints/best.ckpt"
    best.parent.mkdir()
    digest = hashlib.sha256(b"weights").hexdigest()
    path.write_text(json.dumps({**json.loads(path.read_text()), "checkpoint_sha256": digest}))
    for moment, (weights, count) in enumerate([(b"weights", 1), (b"later weights", 0)]):
        best.write_bytes(weights)
        os.utime(best, (moment, moment))
        runs, problems = find_runs([tmp_path])
        assert sum(run.accuracy is not None for run in runs) == count
        assert any("of other weights than those in best.ckpt" in problem for problem in problems) is (count == 0)


def test_result_from_before_the_last_training_does_not_count(tmp_path):
    path = write_run(tmp_path / "a", record={"started": "2026-01-02T00:00:00+00:00"}) / "result.json"
    for started, count in ((1, 1), (-1, 0)):
        moment = datetime(2026, 1, 2, tzinfo=UTC).timestamp() + started
        os.utime(path, (moment, moment))
        runs, problems = find_runs([tmp_path])
        assert sum(run.accuracy is not None for run in runs) == count
        assert any("older than the run's last start" in problem for problem in problems) is (count == 0)
