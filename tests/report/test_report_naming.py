"""Which runs are seeds of one thing, and what it is called."""

import pytest
from report_runs import groups_in, write_run

from skyformer.report.runs import find_runs
from skyformer.report.tables import accuracy_rows, accuracy_table


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


EMA = "lightning.pytorch.callbacks.EMAWeightAveraging"


def averaging(decay):
    return {"class_path": EMA, "init_args": {"decay": decay}}


def test_arguments_of_callbacks_tell_groups_apart(tmp_path):
    for seed, decay in enumerate((0.999, 0.5, 0.5)):
        write_run(tmp_path / str(seed), seed=seed, trainer__callbacks=[averaging(decay)])
    labels = {group.label: len(group.runs) for group in groups_in(tmp_path)}
    assert labels == {"Skyformer, decay=0.999": 1, "Skyformer, decay=0.5": 2}


def test_each_of_two_equal_callbacks_counts(tmp_path):
    for seed, decays in enumerate(((0.9, 0.5), (0.9, 0.6))):
        write_run(tmp_path / str(seed), seed=seed, trainer__callbacks=[averaging(decay) for decay in decays])
    assert len(groups_in(tmp_path)) == 2


def test_callback_that_others_lack_is_named_without_its_arguments(tmp_path):
    for attention in ("softmax", "informer"):
        write_run(tmp_path / attention, attention=attention)
    write_run(tmp_path / "more", trainer__callbacks=[averaging(0.5)])
    remarks = [row["remarks"] for row in accuracy_rows(groups_in(tmp_path))]
    assert remarks == ["callbacks EMAWeightAveraging, not none", "", ""], "Skyformer's row is the first"


def test_fine_tuned_runs_are_a_row_beside_those_from_scratch(tmp_path):
    """Each seed from a pretraining of its own."""
    for seed in (0, 1):
        write_run(tmp_path / f"scratch{seed}", seed=seed)
        start = f"runs/pretrain/listops/skyformer/seed{seed}/checkpoints/best.ckpt"
        write_run(tmp_path / f"tuned{seed}", seed=seed, model__init_from=start)
    labels = {group.label: len(group.runs) for group in groups_in(tmp_path)}
    start = "runs/pretrain/listops/skyformer/seed*/checkpoints/best.ckpt"
    assert labels == {"Skyformer, init_from=none": 2, f"Skyformer, init_from={start}": 2}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("model__init_from", ["pre1.ckpt", "pre2.ckpt"]),
        ("model__optimizer__init_args__lr", [1.000001e-4, 1.000002e-4]),
        ("trainer__check_val_every_n_epoch", [1, 10]),
        ("data__init_args__cases", [[[8, 2], [16]], [[8], [2, 16]]]),
    ],
)
def test_unequal_values_have_unequal_names(key, values, tmp_path):
    for seed, value in enumerate(values):
        write_run(tmp_path / str(seed), seed=seed, **{key: value})
    assert len({group.label for group in groups_in(tmp_path)}) == 2


def test_pretraining_is_left_out(tmp_path):
    write_run(tmp_path / "pretrained", model__objective="masked_tokens")
    write_run(tmp_path / "tuned")
    runs, problems = find_runs([tmp_path])
    assert [run.folder.name for run in runs] == ["tuned"]
    assert problems == [f"{tmp_path}/pretrained: pretraining, which has no accuracy on the task; left out"]


def test_setting_that_is_missing_is_none(tmp_path):
    write_run(tmp_path / "a", trainer__gradient_clip_val=None, trainer__callbacks=[])
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


def test_own_attention_and_task(tmp_path):
    config = {"model__attention__class_path": "mine.CosineAttention", "data__class_path": "mine.Chess"}
    write_run(tmp_path / "a", attention="softmax", **config)
    (row,) = accuracy_rows(groups_in(tmp_path))
    assert (row["task"], row["method"], row["paper"], row["accuracy_mean"]) == ("chess", "cosine", "", 50.0)
