"""`python run.py prepare` makes the data of a configuration without training, and says what it made."""

import re

import pytest
from tiny_runs import ROOT, TINY_DATA

import datamodules
from datamodules.summary import padding_share


def prepare_arguments(task: str, data_dir, folder, *overlays: str) -> list[str]:
    source = data_dir / "sources" / task
    data = {**TINY_DATA[task], "data_dir": folder, **({"source": source} if source.exists() else {})}
    return [
        "prepare",
        *(f"--config={ROOT}/configs/{name}.yaml" for name in (task, *overlays)),
        *(f"--data.{key}={value}" for key, value in data.items()),
    ]


EXPECTED = {
    "text": [r"train +20 ", r"val +10 ", r"test +10 ", r"0 neg +10 +5 +5", r"1 pos +10 +5 +5"],
    "retrieval": [r"train +24 ", r"val +10 ", r"test +7 ", r"0 unrelated +12 +5 +4", r"1 citing +12 +5 +3"],
    "reviewpairs": [r"train +20 ", r"val +8 ", r"test +8 ", r"0 different +10 +4 +4", r"1 same +10 +4 +4"],
    "image": [r"train +40 +1,024 +1,024 +1,024 +1,024", r"val +20 ", r"test +10 ", r"9 truck +4 +2 +1"],
    "listops": [r"train +100 ", r"val +21 ", r"test +13 "],
    "mqar": [r"train +100 +18 ", r"val +62 +3.0", r"test +57 +4.4"],
    "pathfinder": [r"train +44 +1,024", r"val +10 ", r"test +7 "],
    "pathx": [r"train +4 +16,384", r"val +1 ", r"test +1 "],
}


@pytest.mark.parametrize("task", sorted(TINY_DATA))
def test_every_task_is_prepared_and_summed_up(task, tmp_path, data_dir, main, capsys):
    arguments = prepare_arguments(task, data_dir, tmp_path)
    main(arguments)
    said = capsys.readouterr().out
    for pattern in EXPECTED[task]:
        assert re.search(pattern, said), f"{pattern} in\n{said}"
    (folder,) = tmp_path.glob(f"{task}-*")
    assert str(folder) in said.replace("\n", "")
    assert re.search(r"MB, made in [\d.]+ s", said)
    assert "Padding: " in said
    main(arguments)
    said = capsys.readouterr().out
    assert "was there already" in said


def test_overlays_that_training_takes_are_taken(tmp_path, data_dir, main, capsys):
    """The validation set is the test set in the published protocol, and nothing is trained."""
    overlays = ("attention/softmax", "trainer/ddp", "protocol/paper")
    data = main(prepare_arguments("text", data_dir, tmp_path, *overlays))
    assert len(data.splits["train"]) == 30
    assert not re.search(r"val +\d", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argument", "code", "message"),
    [
        ("--data.max_byte=3", 2, "max_byte"),
        ("--data.max_bytes=0", 1, "error: data.max_bytes=0 must be at least 1"),
        ("--data.val_size=30", 1, "error: data.val_size=30 leaves none of 30 examples to train on"),
    ],
)
def test_wrong_arguments_are_named(argument, code, message, tmp_path, data_dir, main, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*prepare_arguments("text", data_dir, tmp_path), argument])
    assert stopped.value.code == code
    assert message in capsys.readouterr().err


def test_share_of_padding(tmp_path, data_dir):
    """Lengths of two batches by hand: padded to 32 each, in place of 64."""
    data = datamodules.Text(data_dir=str(tmp_path), source=str(data_dir / "sources/text"), max_bytes=60, val_size=10)
    data.prepare_data()
    data.setup("fit")
    split = data.splits["val"]
    order = split.lengths.argsort()
    batches = [order[:4].tolist(), order[4:].tolist()]
    widths = [32 if split.lengths[batch].max() <= 32 else 64 for batch in batches]
    room = sum(width * len(batch) for width, batch in zip(widths, batches, strict=True))
    assert padding_share(split, batches) == pytest.approx(1 - split.lengths.sum() / room)
