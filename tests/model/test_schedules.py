"""Every learning-rate schedule of torch from the command line: its rates, also over a resume, or why it is refused."""

import csv
import inspect
import math
from pathlib import Path

import pytest
import torch
from refusals import refuse
from torch.optim import lr_scheduler as schedules

from skyformer.attention import SoftmaxAttention
from skyformer.model.classifier import SequenceClassifier

STEPS = 9
LR = 1e-4
HALVES = "test_schedules.halve"
# Arguments on the command line, and those that torch's class should have got by then.
WORK = {
    "ConstantLR": ({"factor": 0.5, "total_iters": 4}, {}),
    "CosineAnnealingLR": ({}, {"T_max": STEPS}),
    "CosineAnnealingWarmRestarts": ({"T_0": 2}, {}),
    "CyclicLR": ({"base_lr": 1e-5, "max_lr": 1e-3, "step_size_up": 2}, {}),
    "ExponentialLR": ({"gamma": 0.5}, {}),
    "LambdaLR": ({"lr_lambda": HALVES}, {"lr_lambda": lambda step: halve(step)}),
    "LinearLR": ({}, {"total_iters": STEPS}),
    "MultiStepLR": ({"milestones": [2, 5]}, {}),
    "MultiplicativeLR": ({"lr_lambda": HALVES}, {"lr_lambda": lambda step: halve(step)}),
    "OneCycleLR": ({"max_lr": 1e-2}, {"total_steps": STEPS}),
    "PolynomialLR": ({"power": 2.0}, {"total_iters": STEPS}),
    "StepLR": ({"step_size": 4}, {}),
}
CANNOT = {"ChainedScheduler", "LRScheduler", "SequentialLR"}
BY_METRIC = {"ReduceLROnPlateau"}


def halve(step: int) -> float:
    return 0.5 ** (step % 3)


def schedule(name: str, **arguments) -> list[str]:
    keys = [f"--model.lr_scheduler.init_args.{key}={value}" for key, value in arguments.items()]
    return [f"--model.lr_scheduler={name}", *keys]


@pytest.fixture
def arguments(tiny_arguments):
    """Those of a tiny run without its schedule's."""
    return lambda folder: [each for each in tiny_arguments("listops", folder) if "warmup_steps" not in each]


def rates(folder: Path) -> list[float]:
    """The learning rate of each step."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = {int(row["step"]): row["train/learning_rate"] for row in csv.DictReader(file) if row["train/loss"]}
    assert list(rows) == list(range(len(rows)))
    return [float(rate) for rate in rows.values()]


def reference(name: str, **arguments) -> list[float]:
    """What torch's own class makes of them."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    made = getattr(schedules, name)(optimizer, **arguments)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


def test_every_schedule_of_torch_is_tried():
    found = {
        name
        for name, made in vars(schedules).items()
        if inspect.isclass(made) and issubclass(made, schedules.LRScheduler) and not name.startswith("_")
    }
    assert found == {*WORK, *CANNOT, *BY_METRIC}


RESUMED = ("OneCycleLR", "LambdaLR")  # with a length, with a function


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in RESUMED else pytest.mark.long) for name in WORK]
)
def test_rates_are_those_of_torch_over_a_resume(name, tmp_path, main, arguments):
    given, added = WORK[name]
    command = ["fit", *arguments(tmp_path), *schedule(name, **given)]
    stop = ["--trainer.callbacks=stop_at.StopAt", "--trainer.callbacks.step=4", "--trainer.callbacks.name=SIGTERM"]
    with pytest.raises(SystemExit):
        main([*command, *stop])
    main([*command, "--ckpt_path=last"])
    assert rates(tmp_path) == pytest.approx(reference(name, **{**given, **added}), rel=1e-5)


@pytest.mark.parametrize("name", sorted(CANNOT))
def test_what_cannot_be_made_is_refused(name, tmp_path, main, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments(tmp_path), *schedule(name)])
    said = capsys.readouterr().err
    assert stopped.value.code in (1, 2)
    assert "Traceback" not in said
    assert name in said
    assert "takes schedules that exist already" in said or "must be a class below" in said


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("torch.optim.lr_scheduler.ReduceLROnPlateau", {"mode": "max"}),
        pytest.param(
            "lightning.pytorch.cli.ReduceLROnPlateau",
            {"monitor": "val/accuracy", "mode": "max"},
            marks=pytest.mark.long,
        ),
    ],
)
def test_plateau_schedule_steps_after_evaluations(name, given, tmp_path, main, arguments):
    """The validation accuracy does not change at this rate, so each evaluation but the first lowers the rate."""
    settings = schedule(name, patience=0, factor=0.5, eps=0, **given)
    command = ["fit", *arguments(tmp_path), "--model.optimizer.init_args.lr=1e-9", *settings]
    stop = ["--trainer.callbacks=stop_at.StopAt", "--trainer.callbacks.step=7", "--trainer.callbacks.name=SIGTERM"]
    with pytest.raises(SystemExit):
        main([*command, *stop])
    main([*command, "--ckpt_path=last"])
    assert rates(tmp_path) == pytest.approx([1e-9] * 6 + [5e-10] * 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (schedule("ExponentialLR"), ["gamma"]),
        (schedule("CosineAnnealingLR", T_max=0), ["model.lr_scheduler: T_max=0 must be at least 1"]),
        (schedule("OneCycleLR", max_lr=0.1, total_steps=5), ["OneCycleLR ends after 5 steps, the run after 9"]),
        (schedule("lightning.pytorch.cli.ReduceLROnPlateau", monitor="loss"), ["monitor='loss'", "val/accuracy"]),
        (schedule("StepLR", step_size=2, last_epoch=3), ["model.lr_scheduler", "initial_lr"]),
        ([*schedule("OneCycleLR", max_lr=0.1), "--model.positions_lr_factor=0.5"], ["positions_lr_factor=0.5"]),
        ([*schedule("PolynomialLR"), "--trainer.max_steps=-1"], ["--trainer.max_epochs", "total_iters"]),
    ],
)
def test_arguments_that_make_no_sense(given, words, tmp_path, main, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments(tmp_path), *given])
    said = capsys.readouterr().err
    assert stopped.value.code in (1, 2)
    assert "Traceback" not in said
    assert all(word in said for word in words), said


def test_length_that_was_set_holds(tmp_path, main, arguments):
    main(["fit", *arguments(tmp_path), *schedule("CosineAnnealingLR", T_max=3)])
    assert rates(tmp_path) == pytest.approx(reference("CosineAnnealingLR", T_max=3))


def test_longer_run_with_a_schedule_that_cannot_follow_is_refused(tmp_path, main, capsys, arguments):
    command = ["fit", *arguments(tmp_path), *schedule("CosineAnnealingLR")]
    main(command)
    words = ["CosineAnnealingLR", "T_max=9 in the checkpoint, 12 now", "LinearOneCycle"]
    refuse(main, capsys, [*command, "--ckpt_path=last", "--trainer.max_steps=12"], 1, *words)


def test_model_with_a_derived_length_loads_in_python(tmp_path, main, arguments):
    main(["fit", *arguments(tmp_path), *schedule("CosineAnnealingLR")])
    model = SequenceClassifier.load_from_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert model.make_optimizer_and_scheduler(7)[1].T_max == 7


@pytest.mark.parametrize(
    "factory", [schedules.CosineAnnealingLR, lambda optimizer, T_max: schedules.StepLR(optimizer, T_max)]
)
def test_schedules_from_python(factory):
    model = SequenceClassifier(SoftmaxAttention, torch.optim.SGD, factory, max_length=8, embed_dim=8, hidden_dim=8)
    made = model.make_optimizer_and_scheduler(5)[1]
    assert 5 in (getattr(made, "T_max", None), getattr(made, "step_size", None))
    assert math.isfinite(made.get_last_lr()[0])
