"""The table of accuracies: means, what is bold, what is said of unlike cells, the paper's figures."""

import json
import os
from datetime import UTC, datetime

import numpy as np
import pytest
from report_runs import MODULES, configuration, write_run

from skyformer.report import published
from skyformer.report.accuracy import accuracy_rows, accuracy_table
from skyformer.report.naming import group_runs
from skyformer.report.read import find_runs
from skyformer.runs import flatten


def groups_in(folder):
    return group_runs(find_runs([folder])[0])


def cells_in(folder):
    """`{(method, task): cell}`."""
    table = accuracy_table(groups_in(folder))
    return {(label, column): cell for label, cells in table.rows
            for column, cell in zip(table.columns[1:], cells, strict=True)}  # fmt: skip


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


def test_settings_of_a_method_are_rows_named_by_what_differs(tmp_path):
    for number in (128, 64):
        write_run(tmp_path / f"l{number}", model__attention__init_args__num_landmarks=number)
    write_run(tmp_path / "elsewhere", task="text", data__init_args__num_workers=3, data__init_args__data_dir="there")
    labels = [(group.task, group.label) for group in groups_in(tmp_path)]
    assert labels == [
        ("text", "Skyformer, num_landmarks=128"),
        ("listops", "Skyformer, num_landmarks=64"),
        ("listops", "Skyformer, num_landmarks=128"),
    ]


def test_shorter_run_is_a_row_of_its_own_beside_the_usual_one(tmp_path):
    for attention in ("softmax", "informer"):
        write_run(tmp_path / attention, attention=attention)
    write_run(tmp_path / "short", attention="softmax", seed=1, steps=40, max_steps=40)
    assert [group.label for group in groups_in(tmp_path)] == ["Softmax", "Softmax, max_steps=40", "Informer"]


def test_setting_that_only_some_have_tells_groups_apart(tmp_path):
    for attention in ("softmax", "informer", "bigbird"):
        write_run(tmp_path / attention / "with", attention=attention)
        write_run(tmp_path / attention / "without", attention=attention, model__lr_scheduler=None)
    rows = [label for label, _ in accuracy_table(groups_in(tmp_path)).rows]
    assert sorted(rows) == sorted(
        f"{name}{more}" for name in ("Softmax", "Informer", "BigBird") for more in ("", ", lr_scheduler=none")
    )


def test_arguments_of_one_class_tell_groups_apart_beside_another_class(tmp_path):
    write_run(tmp_path / "without", model__lr_scheduler=None)
    for steps in (10, 20):
        write_run(tmp_path / str(steps), model__lr_scheduler__init_args__warmup_steps=steps)
    assert len({group.label for group in groups_in(tmp_path)}) == 3


def test_setting_that_is_missing_is_none(tmp_path):
    write_run(tmp_path / "a", trainer__gradient_clip_val=None)
    write_run(tmp_path / "b", seed=1)
    (group,) = groups_in(tmp_path)
    assert len(group.runs) == 2


def test_groups_of_one_name_are_refused_and_not_dropped(tmp_path):
    write_run(tmp_path / "a")
    (group,) = groups_in(tmp_path)
    with pytest.raises(ValueError, match="two groups of runs on listops are called 'Skyformer'"):
        accuracy_table([group, group])


def test_names_are_as_short_as_tells_apart(tmp_path):
    """Three runs that differ in all of rate, dropout and warm-up; the rate alone has a value for each."""
    for number in range(3):
        tuned = {"lr": 0.1 * (number + 1), "warmup": 10 * (number > 0), "dropout": 0.1 * (number > 1)}
        write_run(
            tmp_path / str(number),
            model__optimizer__init_args__lr=tuned["lr"],
            model__lr_scheduler__init_args__warmup_steps=tuned["warmup"],
            model__dropout=tuned["dropout"],
        )
    write_run(tmp_path / "text", task="text")
    groups = groups_in(tmp_path)
    assert [group.label for group in groups if group.task == "listops"] == [
        "Skyformer, lr=0.1, …",
        "Skyformer, lr=0.2, …",
        "Skyformer, lr=0.3, …",
    ]
    assert groups[1].others == {"dropout": 0.0, "warmup_steps": 0}
    assert groups[0].label == "Skyformer", "a task's own rate is no news"
    assert any(note.startswith("A name with …") for note in accuracy_table(groups).notes)


def test_average_only_over_all_tasks(tmp_path):
    for number, task in enumerate(MODULES):
        write_run(tmp_path / task / "s", task=task, accuracy=0.1 * (number + 1))
        if task != "image":
            write_run(tmp_path / task / "b", task=task, attention="bigbird")
    cells = cells_in(tmp_path)
    assert cells["Skyformer", "Average"].value == "30.00"
    assert cells["Skyformer", "Average"].lines == ("paper 59.39, −29.39",)
    assert cells["BigBird", "Average"].value == ""


def test_published_figures_fit_their_averages():
    for backend, average in published.AVERAGE.items():
        figures = [published.accuracy(backend, task) for task in published.TASKS]
        assert np.mean(figures) == pytest.approx(average, abs=0.0051), backend


@pytest.mark.parametrize("task", published.TASKS)
def test_papers_overlay_is_the_papers_setting(task):
    for overlays, backend in ((["protocol/paper"], "skyformer"), (["protocol/paper", "attention/softmax"], "softmax")):
        settings = flatten(configuration(task, *overlays))
        settings["batch"] = settings["data.init_args.batch_size"]
        assert published.departures(backend, task, settings) == {}


def test_smaller_data_is_a_departure_from_the_paper():
    settings = {"data.init_args.min_length": 32, "data.init_args.train_size": 96_000}
    apart = published.departures("softmax", "listops", settings)
    assert apart["data.init_args.min_length"] == (32, 500)
    assert "data.init_args.train_size" not in apart
    assert "data.init_args.max_length" not in apart


def test_departure_from_the_paper_is_marked(tmp_path):
    write_run(tmp_path / "a", attention="softmax")
    write_run(tmp_path / "b", attention="informer", model__attention__init_args__num_queries=64)
    notes = accuracy_table(groups_in(tmp_path)).notes
    cells = cells_in(tmp_path)
    assert cells["Softmax", "ListOps"].lines[-1].endswith(" (a)")
    assert cells["Informer", "ListOps"].lines[-1].endswith(" (a, b)")
    shared = next(note for note in notes if note.startswith("(a)"))
    assert "max_steps 100 (paper: 50,000)" in shared
    assert "brackets none (paper: false)" in shared
    assert "(b) Not as in the paper: num_queries 64 (paper: 128)." in notes


def test_own_attention_and_task(tmp_path):
    config = {"model__attention__class_path": "mine.CosineAttention", "data__class_path": "mine.Chess"}
    write_run(tmp_path / "a", attention="softmax", **config)
    (row,) = accuracy_rows(groups_in(tmp_path))
    assert (row["task"], row["method"], row["paper"], row["accuracy_mean"]) == ("chess", "cosine", "", 50.0)


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


def test_result_from_before_the_last_training_does_not_count(tmp_path):
    path = write_run(tmp_path / "a", record={"started": "2026-01-02T00:00:00+00:00"}) / "result.json"
    for started, count in ((1, 1), (-1, 0)):
        moment = datetime(2026, 1, 2, tzinfo=UTC).timestamp() + started
        os.utime(path, (moment, moment))
        runs, problems = find_runs([tmp_path])
        assert sum(run.accuracy is not None for run in runs) == count
        assert any("older than the run's last start" in problem for problem in problems) is (count == 0)
