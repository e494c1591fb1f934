"""Easier levels first: which images a step sees, exact resume across the switch, and what says so."""

import json
import signal

import numpy as np
import pytest
import torch
import yaml
from interrupted_runs import STOP, assert_same_training, run_process
from lightning import Callback
from tiny_runs import ROOT

from datamodules import Pathfinder
from datamodules.batches import ScheduledBatches, TrainBatches
from datamodules.collate import JoinedSplits
from datamodules.pathfinder.drawing import draw_image
from datamodules.pathfinder.settings import drawing_settings
from skyformer.report.comparison import not_as_paper
from skyformer.report.groups import group_runs
from skyformer.report.runs import find_runs

SIZES = {"train_size": 44, "val_size": 10, "test_size": 7}
EASY = '--data.init_args.level_schedule={"easy": 5}'


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three steps of easy images, two of intermediate ones, then hard ones."""
    schedule = {"easy": 3, "intermediate": 2}
    folder = str(tmp_path_factory.mktemp("data"))
    data = Pathfinder(data_dir=folder, batch_size=4, level_schedule=schedule, drop_black=False, **SIZES)
    data.prepare_data()
    data.setup("fit")
    return data


def level_of(tokens: torch.Tensor, places: torch.Tensor) -> str:
    """The level whose drawing gives all these images."""
    for level in ("easy", "intermediate", "hard"):
        drawn = [draw_image(drawing_settings(32, level), 0, place % 44)[0].ravel() for place in places.tolist()]
        if np.array_equal(drawn, tokens.numpy()):
            return level
    raise AssertionError("not drawn images")


def test_each_step_sees_its_level(data):
    loader = data.train_dataloader()
    levels = [level_of(batch.tokens, batch.example) for batch in loader]
    assert levels == ["easy"] * 3 + ["intermediate"] * 2 + ["hard"] * 6
    assert len(loader) == 11
    for split in (data.val_dataloader(), data.test_dataloader()):
        for batch in split:
            seed = 1 if split.dataset is data.splits["val"] else 2
            drawn = [draw_image(drawing_settings(32, "hard"), seed, place)[0].ravel() for place in batch.example]
            assert np.array_equal(drawn, batch.tokens.numpy()), "evaluation is of the hard level"


def test_examples_are_named_by_their_place_in_all_levels(data):
    batches = list(data.train_dataloader())
    assert len(data.example_names("train")) == 3 * 44
    assert [batch.example.min() // 44 for batch in batches] == [0] * 3 + [1] * 2 + [2] * 6


def test_stages_have_epochs_of_their_own_and_resume_anywhere():
    """Two splits of 20 and 12 examples in batches of 4; 7 batches of the first, so its second epoch is cut short."""
    first, second = (TrainBatches(np.full(count, 9), 4, seed=3) for count in (20, 12))
    expected = [*first.order(0), *first.order(1)[:2], *(second.order(0) + 20), *(second.order(1) + 20)]

    def run(start: int, epochs: int) -> list[list[int]]:
        taken = [start]
        batches = ScheduledBatches([first, second], [7], lambda: taken[0], lambda size: divmod(taken[0], size))
        found = []
        for _ in range(epochs):
            found += list(batches)
            taken[0] = start + len(found)
        return found

    expected = [batch.tolist() for batch in expected]
    assert run(0, 4) == expected[:12]
    for start in range(1, 12):
        assert run(start, 4)[: 12 - start] == expected[start:12]


def test_joined_splits_are_those_they_join(data):
    easy, hard = data.stages[0][0].splits["train"], data.splits["train"]
    joined = JoinedSplits([easy, hard])
    assert len(joined) == 88
    batch = joined.__getitems__([44 + 7, 44 + 9, 44 + 9 + 3 * 88])
    alone = hard.__getitems__([7, 9, 9 + 3 * 44])
    assert torch.equal(batch.tokens, alone.tokens)
    assert batch.example.tolist() == [51, 53, 53]


@pytest.mark.parametrize("overlay", [pytest.param("trainer/csv", marks=pytest.mark.long), "trainer/accumulate"])
def test_run_killed_before_the_switch_resumes_to_the_last_bit(overlay, tmp_path, main, tiny_arguments, caplog):
    """SIGKILL in step 5, the checkpoint at step 4; from step 5 on the images are hard."""
    extra = [EASY, "--last_checkpoint.every_n_train_steps=4", "--data.init_args.augment=true"]
    if overlay == "trainer/accumulate":
        extra.append("--trainer.val_check_interval=12")  # whole steps of four batches
    killed = [*tiny_arguments("pathfinder", tmp_path / "killed", overlay), *extra]
    assert run_process([*killed, STOP, "--trainer.callbacks.step=5"]) == -signal.SIGKILL
    main(["fit", *killed, "--ckpt_path=last"])
    assert "step       5   training continues with hard images" in caplog.text
    main(["fit", *tiny_arguments("pathfinder", tmp_path / "whole", overlay), *extra])
    assert_same_training(tmp_path / "killed", tmp_path / "whole", from_step=4)
    stages = (tmp_path / "whole/metrics.csv").read_text().splitlines()
    column = stages[0].split(",").index("train/stage")
    assert [row.split(",")[column] for row in stages[1:] if row.split(",")[column]] == ["0.0"] * 5 + ["1.0"] * 4


def test_record_and_report_say_so(tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("pathfinder", tmp_path, "trainer/csv"), EASY, "--test_after_fit=true"])
    (record,) = json.loads((tmp_path / "record.json").read_text())
    assert record["curriculum"] == "easy images first (5 steps)"
    assert len(record["data_hash"].split("+")) == 2
    runs, _ = find_runs([tmp_path])
    (group,) = group_runs(runs)
    assert "easy images first, 5 steps (paper: none)" in not_as_paper(group).values()


def test_evaluation_needs_the_hard_images_only(tmp_path, main, tiny_arguments, recwarn):
    arguments = [*tiny_arguments("pathfinder", tmp_path / "run"), EASY]
    main(["fit", *arguments])
    recwarn.clear()
    main(["test", *arguments, f"--data.init_args.data_dir={tmp_path}/new"])
    assert len(list((tmp_path / "new").glob("pathfinder-*/meta.json"))) == 1
    assert not [warning for warning in recwarn if "data differs" in str(warning.message)]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ('level_schedule={"esay": 5}', "names esay: 5. Fix: give any of ['easy', 'intermediate']"),
        ('level_schedule={"hard": 5}', "names hard: 5. Fix: give any of ['easy', 'intermediate']"),
        ('level_schedule={"easy": 0}', "names easy: 0. Fix: give any of ['easy', 'intermediate'] a number of steps"),
        ('level_schedule={"easy": 9}', "data.level_schedule lasts 9 steps, the run 9 (trainer.max_steps). Fix: "),
        ("split=whole", "data.split=whole trains and tests on the same images. Fix: data.split=lra"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(argument, said, tmp_path, main, tiny_arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *tiny_arguments("pathfinder", tmp_path / "run"), f"--data.init_args.{argument}"])
    assert stopped.value.code in (1, 2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints").exists()


def test_level_that_the_release_lacks_is_named(tmp_path, main, tiny_arguments, capsys):
    (tmp_path / "raw/curv_contour_length_14/metadata").mkdir(parents=True)
    arguments = tiny_arguments("pathfinder", tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["fit", *arguments, EASY, f"--data.init_args.source={tmp_path}/raw"])
    assert "has no images of level easy (found hard). Fix: set data.level" in capsys.readouterr().err


def test_recipe_for_two_cores_has_easy_images_first():
    recipe = yaml.safe_load((ROOT / "configs/results/pathfinder.yaml").read_text())
    assert recipe["data"]["init_args"]["level_schedule"] == {"easy": 8000}


def test_main_configuration_trains_on_hard_images_only():
    """Its accuracy is compared with the paper's."""
    config = yaml.safe_load((ROOT / "configs/pathfinder.yaml").read_text())
    assert config["data"]["init_args"]["level_schedule"] is None
    assert (config["data"]["init_args"]["augment"], config["model"]["query_key_gain"]) == (True, 2.0)


@pytest.mark.parametrize(
    ("accumulate", "limit"),
    [(4, 6), *(pytest.param(*case, marks=pytest.mark.long) for case in ((1, 5), (4, 1.0), (3, 1.0)))],
)
def test_switch_is_at_the_optimiser_step(accumulate, limit, tmp_path, main, tiny_arguments):
    """An epoch's last step may accumulate fewer batches; each step's images are of its stage."""
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append((trainer.global_step, int(batch.example.min()) // 44))

    arguments = [*tiny_arguments("pathfinder", tmp_path), EASY, "--data.init_args.num_workers=1"]
    settings = {"accumulate_grad_batches": accumulate, "limit_train_batches": limit, "val_check_interval": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skyformer.training.callbacks.Throughput", Look)
        main(["fit", *arguments, *(f"--trainer.{name}={value}" for name, value in settings.items())])
    assert len(seen) >= 9
    assert [stage for _, stage in seen] == [int(step >= 5) for step, _ in seen]
