"""What `--config` files mean together."""

from pathlib import Path

import pytest
import sweep_runs
import yaml
from tiny_runs import ROOT

from skyformer.sweep.grid import cells_of, read_grid
from skyformer.sweep.plan import plan

THREE = ("trainer/early_stopping", "trainer/ema", "trainer/top_three")
EARLY, EMA, TOP = "EarlyStopping", "EMAWeightAveraging", "TopCheckpoints"


def names_of(config: dict) -> list[str]:
    return [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"] or []]


@pytest.fixture
def combine(main, capsys, tmp_path):
    """The configuration of `fit` with shipped overlays, or with texts of further ones."""

    def parse(*overlays: str, extra: tuple[str, ...] = ()) -> dict:
        paths: list[Path] = []
        for overlay in ("listops", *overlays):
            paths.append(ROOT / f"configs/{overlay}.yaml")
            if ":" in overlay:
                paths[-1] = tmp_path / f"{len(paths)}.yaml"
                paths[-1].write_text(overlay)
        with pytest.raises(SystemExit):
            main(["fit", *(f"--config={path}" for path in paths), *extra, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)

    return parse


def test_callbacks_of_overlays_add_up(combine):
    assert names_of(combine(*THREE)) == [EARLY, EMA, TOP]
    config = combine(*reversed(THREE), extra=("--trainer.callbacks+=RichModelSummary",))
    assert names_of(config) == [TOP, EMA, EARLY, "RichModelSummary"]


def test_overlay_without_callbacks_keeps_the_others(combine):
    assert names_of(combine("trainer/ema", "trainer/bf16")) == [EMA]
    for none in ("null", "[]"):
        assert names_of(combine("trainer/ema", f"trainer: {{callbacks: {none}}}")) == []


@pytest.mark.parametrize("key", ["callbacks", "callbacks+"])
@pytest.mark.parametrize("as_list", [True, False])
def test_later_overlay_replaces_a_callback_of_the_same_kind(key, as_list, combine):
    callback = "{class_path: EarlyStopping, init_args: {monitor: val/accuracy, mode: max, patience: 30}}"
    config = combine(*THREE, f"trainer: {{{key}: {f'[{callback}]' if as_list else callback}}}")
    assert names_of(config) == [EMA, TOP, EARLY]
    assert config["trainer"]["callbacks"][-1]["init_args"]["patience"] == 30


def test_callbacks_that_monitor_different_metrics_are_both_kept(combine):
    other = "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/loss}}]}"
    assert names_of(combine("trainer/early_stopping", other)) == [EARLY, EARLY]


def test_callbacks_of_a_sweep_s_files_add_up(tmp_path):
    grid = sweep_runs.write_grid(tmp_path, configs=list(THREE))
    (config,) = plan(cells_of(read_grid(grid), tmp_path / "runs")).values()
    assert names_of(config) == [EARLY, EMA, TOP]


def test_three_overlays_train(tmp_path, main, tiny_arguments):
    trainer = main(["fit", *tiny_arguments("listops", tmp_path, *THREE)]).trainer
    used = {type(callback).__name__ for callback in trainer.callbacks}
    assert {EARLY, EMA, TOP} <= used
