"""What is said of a number that stands beside the paper's: in which settings it is not like it."""

from pathlib import Path

import numpy as np
import pytest
from report_runs import ROOT, cells_in, configuration, groups_in, write_run

from skyformer.report import published
from skyformer.report.comparison import not_as_paper
from skyformer.report.tables import accuracy_table
from skyformer.sweep.grid import cells_of, read_grid
from skyformer.sweep.plan import plan
from skyformer.training.run_folder import backend_name, flatten, task_name


def test_published_figures_fit_their_averages():
    for backend, average in published.AVERAGE.items():
        figures = [published.accuracy(backend, task) for task in published.TASKS]
        assert np.mean(figures) == pytest.approx(average, abs=0.0051), backend


@pytest.mark.parametrize("task", published.TASKS)
def test_papers_overlay_is_the_papers_setting(task):
    for overlays, backend in ((["protocol/paper"], "skyformer"), (["protocol/paper", "attention/softmax"], "softmax")):
        settings = flatten(configuration(task, *overlays))
        settings["batch"] = settings["data.init_args.batch_size"]
        assert published.departures(backend, task, settings | {published.SOURCE: "lra_release"}) == {}


@pytest.mark.long
def test_papers_grid_departs_from_the_paper_in_the_drawn_data_only():
    cells = cells_of(read_grid(ROOT / "configs/sweep/paper.yaml"), Path("runs"))
    plans = {(backend_name(config), task_name(config)): config for config in plan(cells).values()}
    assert len(plans) == 45
    for (backend, task), config in plans.items():
        settings = flatten(config) | {"batch": config["data"]["init_args"]["batch_size"]}
        drawn = {"data": ("drawn here", "LRA's release")} if task in ("listops", "pathfinder") else {}
        assert published.departures(backend, task, settings) == drawn, (backend, task)


def test_drawn_data_is_a_departure_from_the_paper(tmp_path):
    write_run(tmp_path / "drawn", attention="softmax")
    write_run(tmp_path / "read", attention="informer", data__init_args__source="lra_release")
    drawn, read = (not_as_paper(group) for group in groups_in(tmp_path))
    assert drawn["data"] == "data drawn here (paper: LRA's release)"
    assert "data" not in read


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__dropout": 0.3}, "dropout 0.3 (paper: 0.1)"),
        ({"model__optimizer__class_path": "torch.optim.SGD"}, "optimizer SGD (paper: AdamW)"),
        ({"model__optimizer__init_args__eps": 1e-8}, "eps 1e-08 (paper: 1e-06)"),
        ({"model__optimizer__init_args__weight_decay": 0.1}, "weight_decay 0.1 (paper: 0)"),
        ({"model__positions_lr_factor": 0.1}, "positions_lr_factor 0.1 (paper: 1)"),
        ({"model__lr_scheduler": None}, "lr_scheduler none (paper: LinearOneCycle)"),
        ({"data__init_args__level": "easy"}, "level easy (paper: hard)"),
    ],
)
def test_setting_that_is_not_the_papers_is_said(changes, said, tmp_path):
    write_run(tmp_path / "usual", "pathfinder", "softmax")
    write_run(tmp_path / "changed", "pathfinder", "informer", **changes)
    usual, changed = (set(not_as_paper(group).values()) for group in groups_in(tmp_path))
    assert {word for word in changed if "num_queries" not in word} - usual == {said}


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
    assert cells["Informer", "ListOps"].lines[-1].endswith(" (a,b)")
    shared = next(note for note in notes if note.startswith("(a)"))
    assert "max_steps 100 (paper: 50,000)" in shared
    assert "brackets none (paper: false)" in shared
    assert "(b) Not as in the paper: num_queries 64 (paper: 128)." in notes
