"""Time and memory: what they are taken from, and what is said of unlike cells."""

import json

import numpy as np
import pytest
from report_runs import groups_in, write_checkpoint, write_run

from skyformer.report.groups import group_runs
from skyformer.report.runs import find_runs, seconds_at, training_seconds, unit_of
from skyformer.report.tables import cost_of, cost_rows, cost_table


def test_time_comes_from_the_logged_speed(tmp_path):
    """One batch a second; then the second half of a run at half of it; a step that was not logged takes the mean."""
    folder = write_run(tmp_path / "run", steps=40, max_steps=45)
    table = (
        (folder / "metrics.csv").read_text().replace("29,2.0,32.0", "29,2.0,16.0").replace("39,2.0,32.0", "39,2.0,16.0")
    )
    (folder / "metrics.csv").write_text(table)
    write_checkpoint(folder, 45)
    ((run,), _) = find_runs([tmp_path])
    clock = training_seconds(run)
    assert clock.step.tolist() == [10, 20, 30, 40, 45]
    assert clock.value == pytest.approx([10, 20, 40, 60, 60 * 45 / 40])
    assert seconds_at(run, np.array([5, 25])) == pytest.approx([5, 30])
    (group,) = group_runs([run])
    costs = cost_of(group)
    assert costs["hours"] == pytest.approx(67.5 / 3600)
    assert costs["hours_50k"] == pytest.approx(1.5 * 50_000 / 3600)
    assert costs["peak_gb"] == pytest.approx(1.039)
    cell = cost_table([group]).rows[0][1][0]
    assert cell.value == "1.1 min"
    assert cell.lines == ("45 steps (n=1)", "≈ 20.83 h for 50,000", "1.04 GB", "paper 1.29 h, 1.75 GB (a)")


def test_time_goes_on_where_a_run_was_resumed(tmp_path, main, tiny_arguments):
    """Each step counts once, whatever was logged before it stopped."""
    arguments = [*tiny_arguments("listops", tmp_path), "--trainer.logger=skyformer.training.loggers.TensorBoardLogger"]
    stop = ["--trainer.callbacks=stop_at.StopAt", "--trainer.callbacks.step=4", "--trainer.callbacks.name=SIGTERM"]
    with pytest.raises(SystemExit):
        main(["fit", *arguments, *stop])
    main(["fit", *arguments, "--ckpt_path=last"])
    ((run,), _) = find_runs([tmp_path])
    assert len(list(tmp_path.glob("events.*"))) > 1
    assert len(run.records) == 2
    assert training_seconds(run).step.tolist() == list(range(1, 10))
    rates = run.curve("speed/examples_per_second").value
    assert training_seconds(run).value == pytest.approx(np.cumsum(8 / rates))


def test_machine_that_is_not_the_usual_one_is_named(tmp_path):
    for name, record in {"a": {}, "b": {}, "c": {"hardware": {"processor": "A CPU", "gpus": ["A GPU"]}}}.items():
        write_run(tmp_path / name, attention={"a": "softmax", "b": "informer", "c": "bigbird"}[name], record=record)
    table = cost_table(groups_in(tmp_path))
    assert table.notes[0] == "Ran on: A CPU, unless the cell says otherwise."
    assert ["on A GPU" in cells[0].lines for _, cells in table.rows] == [False, False, True]


def test_every_machine_of_a_run_is_named(tmp_path):
    write_run(tmp_path / "usual", attention="softmax")
    write_run(tmp_path / "more", attention="informer")
    folder = write_run(tmp_path / "moved")
    (usual,) = json.loads((folder / "record.json").read_text())
    elsewhere = {**usual, "hardware": {"processor": "A CPU", "gpus": ["A GPU"]}}
    (folder / "record.json").write_text(json.dumps([elsewhere, usual]))
    groups = groups_in(tmp_path)
    assert ["on A GPU, then A CPU" in cells[0].lines for _, cells in cost_table(groups).rows] == [True, False, False]
    assert cost_rows(groups)[0]["device"] == "A GPU, then A CPU"


def test_hours_are_of_the_runs_of_the_most_steps(tmp_path):
    """A step takes a second; of the third seed, ten steps two."""
    for seed, steps in enumerate((100, 40, 100)):
        folder = write_run(tmp_path / str(seed), seed=seed, steps=steps)
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text.replace("99,2.0,32.0", "99,2.0,16.0"))
    (group,) = groups_in(tmp_path)
    costs = cost_of(group)
    assert costs["hours"] == pytest.approx(105 / 3600)
    assert costs["hours_std"] == pytest.approx(np.sqrt(50) / 3600)
    cell = cost_table([group]).rows[0][1][0]
    assert (cell.value, cell.lines[:2]) == ("1.8 ± 0.1 min", ("100 steps (n=2)", "1 shorter left out"))
    (row,) = cost_rows([group])
    assert (row["n"], row["steps"], row["left_out"]) == (2, 100, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__init_args__batch_size": 4}, "batch 4, not 32"),
        ({"trainer__precision": "bf16-mixed"}, "precision bf16-mixed, not none"),
        ({"data__init_args__protocol": {"pad_to_max_length": True}}, "pad_to_max_length true, not none"),
        ({"record": {"num_processes": 2}, "data__init_args__batch_size": 16}, "processes 2, not 1"),
        ({"model__compile": True}, "compile true, not false"),
        ({"model__cuda_graph": True}, "cuda_graph true, not false"),
    ],
)
def test_unlike_time_and_memory_say_so(changes, said, tmp_path):
    """Untested runs, too, have a time."""
    for attention in ("softmax", "informer", "bigbird"):
        own = changes if attention == "bigbird" else {}
        write_run(tmp_path / attention, attention=attention, accuracy=None, **own)
    groups = groups_in(tmp_path)
    cells = [cell for _, (cell,) in cost_table(groups).rows]
    assert [said in cell.lines for cell in cells] == [False, False, True]
    assert [row["remarks"] for row in cost_rows(groups)] == ["", "", said]


@pytest.mark.parametrize("name", ["compile", "cuda_graph", "gradient_checkpointing"])
def test_mean_over_faster_and_slower_seeds_says_so(name, tmp_path):
    for seed, value in enumerate((False, True)):
        write_run(tmp_path / str(seed), seed=seed, **{f"model__{name}": value})
    (row,) = cost_rows(groups_in(tmp_path))
    assert row["remarks"] == f"seeds with {name} false and true"


def test_time_of_another_setting_than_the_papers_is_marked(tmp_path):
    write_run(tmp_path / "a", attention="softmax", model__optimizer__init_args__lr=0.5)
    write_run(tmp_path / "b", attention="informer", data__init_args__batch_size=4)
    groups = groups_in(tmp_path)
    table = cost_table(groups)
    assert [cell.lines[-1] for _, (cell,) in table.rows] == [
        "paper 2.24 h, 5.37 GB (a)",
        "paper 1.19 h, 4.85 GB (a,b)",
    ]
    assert "(b) Not as in the paper: batch 4 (paper: 32)." in table.notes
    assert not any("lr 0.5" in note for note in table.notes), "the rate costs no time"
    assert "pad_to_max_length none (paper: true)" in cost_rows(groups)[0]["not_as_paper"]


@pytest.mark.parametrize(("seconds", "unit"), [(100, (1, "s")), (600, (60, "min")), (20_000, (3600, "h"))])
def test_unit_of_time(seconds, unit):
    assert unit_of(seconds) == unit
