"""The built wheel works outside the checkout, and `configs/…` names a shipped file where the folder has none."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_runs import ROOT

import skyformer
from skyformer.installation import CONFIGS, find_config, program, with_shipped_configs
from skyformer.sweep.grid import read_grid

NAMES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
OWN_ATTENTION = """
from skyformer.attention import Attention

class Mean(Attention):
    def forward(self, query, key, value, mask):
        return value.mean(dim=2, keepdim=True).expand_as(value)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_packages_and_the_configurations(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = [path for package in ("skyformer", "datamodules") for path in (ROOT / package).rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in modules} | {f"skyformer/{name}" for name in NAMES} <= held
    assert {"skyformer/py.typed", "datamodules/py.typed"} <= held
    assert {"skyformer/report/page.html.jinja", "skyformer/report/run.schema.json"} <= held
    assert {Path(name).parts[0] for name in held} == {"skyformer", "datamodules"}


def test_wheel_names_version_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())
    assert {f"Version: {skyformer.__version__}", "License-Expression: Apache-2.0"} <= set(lines)


def test_installed_command_trains_in_another_folder(wheel, tmp_path, tiny_arguments):
    pytest.importorskip("pip", reason="an environment of uv has none")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", f"--target={site}"]
    subprocess.run([*install, str(wheel)], check=True)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "my_attention.py").write_text(OWN_ATTENTION)
    arguments = [argument.replace(f"{ROOT}/", "") for argument in tiny_arguments("listops", folder / "run")]
    arguments += ["--model.attention=my_attention.Mean", "--trainer.max_steps=3"]
    done = subprocess.run(
        [sys.executable, str(site / "bin/skyformer"), "fit", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "my_attention.Mean" in (folder / "run/config.yaml").read_text()
    (record,) = json.loads((folder / "run/record.json").read_text())
    assert record["code"]["commit"] is None, "it ran the installed package, not the checkout"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A working directory whose configs/ has one file, `listops.yaml`."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/listops.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("configs/pathfinder.yaml", str(CONFIGS / "pathfinder.yaml")),
        ("./configs/trainer/quick.yaml", str(CONFIGS / "trainer/quick.yaml")),
        ("configs/listops.yaml", "configs/listops.yaml"),
        ("configs/none.yaml", "configs/none.yaml"),
        ("pathfinder.yaml", "pathfinder.yaml"),
        ("other/configs/pathfinder.yaml", "other/configs/pathfinder.yaml"),
    ],
)
def test_shipped_file_where_the_folder_has_none_of_that_name(elsewhere, named, found):
    assert find_config(named) == found


def test_options_that_name_configurations(elsewhere):
    text = str(CONFIGS / "text.yaml")
    given = ["fit", "--config", "configs/text.yaml", "--config=configs/text.yaml", "-c", "configs/text.yaml"]
    assert with_shipped_configs(given) == ["fit", "--config", text, f"--config={text}", "-c", text]
    assert with_shipped_configs(["sweep", "--grid=configs/text.yaml"]) == ["sweep", f"--grid={text}"]
    output = ["export", "--output", "configs/text.yaml", "--output=configs/text.yaml"]
    assert with_shipped_configs(output) == output


def test_fit_finds_the_shipped_configuration(elsewhere, main, tiny_arguments):
    (elsewhere / "configs/listops.yaml").unlink()
    arguments = [argument.replace(f"{ROOT}/", "") for argument in tiny_arguments("listops", elsewhere / "run")]
    assert "--config=configs/listops.yaml" in arguments
    assert main(["fit", *arguments, "--trainer.max_steps=3"]).trainer.global_step == 3


def test_grid_finds_shipped_files(elsewhere):
    grid = "{tasks: [configs/text.yaml], backends: [configs/attention/softmax.yaml], seeds: [0]}"
    (elsewhere / "grid.yaml").write_text(grid)
    found = read_grid(Path("grid.yaml"))
    assert [found.tasks[0].path, found.backends[0].path] == [CONFIGS / "text.yaml", CONFIGS / "attention/softmax.yaml"]


def test_unknown_shipped_file_says_how_to_list_them(elsewhere, main, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "configs/none.yaml"])
    assert stopped.value.code == 1
    assert "--config configs/none.yaml" in (said := capsys.readouterr().err)
    assert "`python run.py configs` lists" in said


def test_configs_lists_all(elsewhere, main, capsys):
    main(["configs"])
    *listed, where = capsys.readouterr().out.splitlines()
    assert listed == NAMES
    assert str(CONFIGS) in where


def test_command_to_type_again():
    assert program("/work/run.py") == ["python", "/work/run.py"]
    assert program("/usr/bin/skyformer") == program("site/skyformer/__main__.py") == ["skyformer"]
