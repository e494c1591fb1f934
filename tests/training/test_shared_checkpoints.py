"""The trained models that the repository holds load, and do on a few hundred examples what they say of themselves."""

import json

import pytest
import torch
import yaml
from tiny_runs import ROOT

from skyformer.model.checkpoint_io import read_checkpoint
from skyformer.training.run_folder import task_name

CHECKPOINTS = sorted((ROOT / "docs/results").glob("*.ckpt"))
DRAWN = ("listops", "pathfinder", "pathx")
EXAMPLES = 600


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_shared_checkpoint_is_small_and_says_what_it_reached(path):
    checkpoint = read_checkpoint(path)
    assert path.stat().st_size < 1_000_000
    assert checkpoint["result"]["test/accuracy"] > checkpoint["result"]["chance"]
    assert all(torch.isfinite(weight).all() for weight in checkpoint["state_dict"].values())
    assert task_name(yaml.safe_load(checkpoint["config"])) == path.stem.split("-")[0]


@pytest.mark.parametrize("path", [p for p in CHECKPOINTS if p.stem.split("-")[0] in DRAWN], ids=lambda path: path.stem)
def test_shared_checkpoint_reaches_it_on_newly_drawn_examples(path, tmp_path, main, monkeypatch):
    """Within four standard errors, on examples that no training saw."""
    monkeypatch.chdir(tmp_path)
    sizes = [f"--data.{name}_size={size}" for name, size in (("train", 64), ("val", 64), ("test", EXAMPLES))]
    main(["test", "--ckpt_path", str(path), *sizes, "--data.data_seed=5", "--trainer.accelerator=cpu"])
    found = json.loads((tmp_path / "runs" / path.stem / "result.json").read_text())
    said = read_checkpoint(path)["result"]["test/accuracy"]
    assert found["test/examples"] == EXAMPLES
    assert abs(found["test/accuracy"] - said) < 4 * (said * (1 - said) / EXAMPLES) ** 0.5
