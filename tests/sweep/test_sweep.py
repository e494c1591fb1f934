"""`sweep`: what a grid means, and what is refused before anything starts."""

from functools import partial
from pathlib import Path

import pytest
import sweep_runs
from refusals import refuse
from sweep_runs import sweep, tiny_grid
from tiny_runs import ROOT

from skyformer.exceptions import RunError
from skyformer.sweep.grid import cells_of, read_grid
from skyformer.sweep.plan import check_folders, plan


@pytest.fixture
def write_grid(tmp_path):
    return partial(sweep_runs.write_grid, tmp_path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"task": ["listops"]}, ["unknown key task", "tasks, backends, seeds"]),
        ({"seeds": []}, ["seeds must be given"]),
        ({"seeds": [0, 0]}, ["seeds=[0, 0]"]),
        ({"seeds": [True]}, ["seeds=[True]"]),
        ({"seeds": 3}, ["seeds=3"]),
        ({"backends": ["softmux"]}, ["backends: no file", "(got softmux)", "softmax", "path of a YAML file"]),
        ({"backends": "softmax"}, ["backends='softmax' must be a list"]),
        ({"backends": ["softmax", "softmax"]}, ["share a folder (got softmax)"]),
        ({"tasks": ["no/such.yaml"]}, ["tasks: no file", "(got no/such.yaml)"]),
        ({"configs": ["trainer/fast"]}, ["configs: no file", "(got trainer/fast)", "trainer/quick"]),
        ({"arguments": {"seed_everything": 3}}, ["arguments: seed_everything is set by the sweep"]),
        ({"tasks": {"listops": {"ckpt_path": "last"}}}, ["tasks.listops: ckpt_path is set by the sweep"]),
        ({"arguments": ["a"]}, ["arguments=['a'] must be arguments with values"]),
        ({"overrides": ["d64"]}, ["overrides must be names with arguments"]),
        ({"overrides": {"../up": {}}}, ["overrides: a name is also a folder's (got '../up')"]),
        ({"backends": [str(ROOT / "configs/trainer/quick.yaml")]}, ["names no model.attention.class_path"]),
        ({"arguments": {"trainer.max_step": 3}}, ["listops/skyformer/seed0", "trainer.max_step"]),
        ({"arguments": {"data.batch_size": "many"}}, ["listops/skyformer/seed0", "batch_size"]),
        ({"overrides": {"a": {"model.attention.num_landmark": 1}}}, ["listops/skyformer/a/seed0", "num_landmark"]),
        ({"arguments": {"trainer.devices": [0, 2]}}, ["listops/skyformer/seed0: trainer.devices=[0, 2]", "how many"]),
        ({"arguments": {"trainer.devices": "0,2"}}, ["listops/skyformer/seed0: trainer.devices=0,2", "how many"]),
        ({"arguments": {"data.train_size": 2**70}}, ["listops/skyformer/seed0", "more than 64 bits"]),
        (
            {"overrides": {"deep": {"model.num_layers": 4}, "same": {}, "same2": {"model.pooling": "mean"}}},
            ["listops/skyformer/same and listops/skyformer/same2 are the same run"],
        ),
    ],
)
def test_grid_that_is_wrong_is_refused_before_anything_starts(keys, words, write_grid, main, capsys, tmp_path):
    grid = write_grid(**keys)
    refuse(main, capsys, sweep(grid, tmp_path / "runs"), 1, *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("text", "words"), [("a: [", "not YAML"), ("- 1", "must hold keys"), (None, "no file")])
def test_file_that_is_no_grid(text, words, tmp_path, main, capsys):
    if text is not None:
        (tmp_path / "grid.yaml").write_text(text)
    refuse(main, capsys, sweep(tmp_path / "grid.yaml", tmp_path / "runs"), 1, words, f"{tmp_path}/grid.yaml")


def test_every_place_of_the_grid_is_one_run(write_grid, tmp_path):
    grid = write_grid(
        tasks={"listops": {"data.batch_size": 3}, "image": None},
        backends={"softmax": None, "linformer": {"model.num_heads": 4}},
        seeds=[0, 7],
        arguments={"data.batch_size": 2, "trainer.max_steps": 5},
        overrides={"small": {"model.embed_dim": 16}, "note": {"model.optimizer.class_path": "Adam"}},
    )
    cells = cells_of(read_grid(grid), tmp_path)
    assert len({cell.folder for cell in cells}) == len(cells) == 2 * 2 * 2 * 2
    plans = {cell.name: config for cell, config in plan(cells).items()}
    config = plans["listops/linformer/small/seed7"]
    assert config["seed_everything"] == 7
    assert (config["data"]["init_args"]["batch_size"], config["trainer"]["max_steps"]) == (3, 5), "the task's own wins"
    assert (config["model"]["num_heads"], config["model"]["embed_dim"]) == (4, 16)
    assert plans["image/softmax/note/seed0"]["data"]["init_args"]["batch_size"] == 2
    assert plans["image/softmax/note/seed0"]["model"]["optimizer"]["class_path"].endswith("Adam")


def test_later_layers_count_more_however_they_are_spelt(write_grid, tmp_path):
    warmup = "model.lr_scheduler.init_args.warmup_steps"
    scheduler = {"class_path": "skyformer.model.schedule.LinearOneCycle", "init_args": {"warmup_steps": 2}}
    grid = write_grid(
        arguments={"data.init_args.batch_size": 2, warmup: 7},
        tasks={"listops": {"data.batch_size": 3, "model.lr_scheduler": scheduler}},
        overrides={"own": {"data.init_args.batch_size": 4, warmup: 9}, "none": {}},
    )
    for cell, config in plan(cells_of(read_grid(grid), tmp_path)).items():
        batch_size, steps = {"own": (4, 9), "none": (3, 2)}[cell.override]
        assert config["data"]["init_args"]["batch_size"] == batch_size
        assert config["model"]["lr_scheduler"]["init_args"]["warmup_steps"] == steps


def test_backend_that_the_protocol_undoes_is_refused(write_grid, tmp_path):
    """Both files are of Skyformer's class, so that both come before the protocol, which sets the solver."""
    text = (ROOT / "configs/attention/skyformer.yaml").read_text()
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("solver: cholesky", "solver: newton_schulz"))
    keys = {"backends": {"skyformer": {}, str(other): {}}}
    assert len(plan(cells_of(read_grid(write_grid(**keys)), tmp_path))) == 2
    with pytest.raises(RunError, match="listops/other and listops/skyformer are the same run"):
        plan(cells_of(read_grid(write_grid(**keys, configs=["protocol/paper"])), tmp_path))
    keys["backends"][str(other)] = {"model.attention.solver": "cholesky"}
    assert len(plan(cells_of(read_grid(write_grid(**keys, configs=["protocol/paper"])), tmp_path))) == 2


def test_protocol_holds_for_every_backend(write_grid, tmp_path):
    """Skyformer's own overlay would undo what the paper's protocol says of it; another's lacks its arguments."""
    cells = cells_of(read_grid(write_grid(backends=["skyformer", "softmax"], configs=["protocol/paper"])), tmp_path)
    skyformer, softmax = (config["model"] for config in plan(cells).values())
    assert skyformer["attention"]["init_args"]["solver"] == "newton_schulz"
    assert skyformer["attention"]["init_args"]["eval_landmarks"] == "fresh"
    assert softmax["attention"]["class_path"].endswith("SoftmaxAttention")
    assert skyformer["pooling"] == softmax["pooling"] == "padded_mean"


@pytest.mark.parametrize(("name", "runs"), [("nine_backends", 9 * 2), ("paper", 5 * 9 * 3), ("mqar", 9)])
def test_shipped_grids(name, runs, tmp_path):
    path = ROOT / f"configs/sweep/{name}.yaml"
    assert path.read_text().startswith(f"# python run.py sweep --grid configs/sweep/{name}.yaml\n")
    cells = cells_of(read_grid(path), tmp_path)
    assert len(cells) == runs
    configs = plan([cell for cell in cells if cell.task == cells[-1].task]).values()
    if name == "paper":
        assert {config["trainer"]["max_steps"] for config in configs} == {50_000}
        assert all(config["data"]["init_args"]["protocol"]["drop_last_test"] for config in configs)


@pytest.mark.parametrize(
    "given",
    [
        ["--slurm.time=4:00:00"],
        ["--slurm.time", "1-04:00:00"],
        ["--slurm", "{time: 4:00:00}"],
        ['--slurm={"time":"4:00"}'],
    ],
)
def test_time_of_slurm_is_in_minutes(given, write_grid, main, capsys, tmp_path):
    refuse(main, capsys, sweep(write_grid(), tmp_path / "runs", *given), 1, "4:00", "number of minutes")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, main, tiny_arguments) -> Path:
    """The runs of a sweep of which one was trained, by hand."""
    runs = tmp_path_factory.mktemp("trained")
    main(["fit", *tiny_arguments("listops", runs / "listops/skyformer/seed0"), "--trainer.max_steps=3"])
    return runs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.dropout": 0.3}, "model.dropout: 0.1 in"),
        ({"trainer.max_steps": 2}, "trainer.max_steps: 3 in"),
        ({"trainer.limit_val_batches": 1}, "trainer.limit_val_batches: None in"),
        ({"data.batch_size": 7}, "data.init_args.batch_size: 8 in"),
        (
            {"trainer.callbacks": [{"class_path": "slow.Slow", "init_args": {"seconds": 0.1}}]},
            "trainer.callbacks: None in",
        ),
    ],
)
def test_folder_of_another_configuration_is_refused(change, said, trained, data_dir, write_grid, main, capsys):
    grid = write_grid(arguments={**tiny_grid(data_dir), **change})
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    refuse(main, capsys, sweep(grid, trained), 1, f"listops/skyformer/seed0: {said}", "--runs")
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_longer_run_and_other_paths_go_on(trained, data_dir, write_grid, tmp_path):
    arguments = {**tiny_grid(data_dir), "trainer.max_steps": 4, "data.num_workers": 1, "trainer.logger": True}
    (cell,) = cells_of(read_grid(write_grid(arguments=arguments)), trained)
    check_folders(plan([cell]))
