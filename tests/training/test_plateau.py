"""A run that does not learn says so, once; one that learns does not."""

from types import SimpleNamespace

import pytest
import torch
from tiny_runs import ROOT

from datamodules import Pathfinder
from skyformer.training.callbacks import PlateauNotice
from skyformer.training.callbacks.plateau import PAGE


def evaluate(notice, caplog, accuracy, step, steps=100, ones=50, plateau=""):
    """One validation of 100 examples; what was said."""
    caplog.clear()
    module = SimpleNamespace(hparams={"num_classes": 2}, device="cpu")
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        fast_dev_run=False,
        strategy=SimpleNamespace(reduce=lambda counts, reduce_op: counts),
        callback_metrics={"val/accuracy": torch.tensor(accuracy)},
        global_step=step,
        max_steps=steps,
        datamodule=SimpleNamespace(plateau=plateau),
    )
    notice.on_validation_start(trainer, module)
    labels = torch.tensor([1] * ones + [0] * (100 - ones))
    for part in labels.split(30):
        notice.on_validation_batch_end(trainer, module, None, SimpleNamespace(label=part), 0)
    notice.on_validation_end(trainer, module)
    return caplog.text


@pytest.fixture(autouse=True)
def level(caplog):
    caplog.set_level("INFO")


def test_it_is_said_once_after_a_tenth_of_the_steps(caplog):
    notice = PlateauNotice()
    assert evaluate(notice, caplog, 0.5, step=9) == ""
    said = evaluate(notice, caplog, 0.55, step=10, plateau="It lasts long.")
    assert (
        "still at chance after 10 of 100 steps (55.00%; always guessing the most frequent label gives 50.00%)" in said
    )
    assert f"It lasts long. See {PAGE}." in said
    assert (ROOT / PAGE).is_file()
    assert evaluate(notice, caplog, 0.5, step=20) == ""


def test_chance_is_the_share_of_the_most_frequent_label(caplog):
    """Two standard errors above 80 of 100 are 88."""
    assert "gives 80.00%" in evaluate(PlateauNotice(), caplog, 0.87, step=50, ones=20)
    assert evaluate(PlateauNotice(), caplog, 0.89, step=50, ones=20) == ""


def test_a_run_that_once_left_chance_is_left_alone_also_after_a_resume(caplog):
    notice = PlateauNotice()
    assert evaluate(notice, caplog, 0.7, step=5) == ""
    resumed = PlateauNotice()
    resumed.load_state_dict(notice.state_dict())
    assert evaluate(resumed, caplog, 0.5, step=50) == ""


def test_a_run_that_cannot_learn_says_so(tmp_path, main, tiny_arguments, caplog):
    main(["fit", *tiny_arguments("pathfinder", tmp_path), "--model.optimizer.init_args.lr=1e-9"])
    assert caplog.text.count("Validation accuracy is still at chance after 3 of 9 steps") == 1
    assert "Fix: wait, or start with easy images: --data.level_schedule '{easy: 6000}'" in caplog.text
    assert Pathfinder(level_schedule={"easy": 5}).plateau == "Fix: wait, or make data.level_schedule longer."
    assert Pathfinder(level="easy").plateau == ""


def test_it_waits_for_the_examples_that_are_evaluated(tmp_path, main, tiny_arguments, caplog):
    """Validation images are hard; a network of easy ones need not know them."""
    schedule = '--data.init_args.level_schedule={"easy": 5}'
    main(["fit", *tiny_arguments("pathfinder", tmp_path), "--model.optimizer.init_args.lr=1e-9", schedule])
    assert "Validation accuracy is still at chance after 6 of 9 steps" in caplog.text
    assert "after 3 of 9" not in caplog.text
