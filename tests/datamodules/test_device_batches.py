"""Batches made on a device, here the CPU, are those made from the memory map."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from random_sequences import RNG, SEQUENCES, random_split
from runs_compared import assert_same_run

from datamodules import Pathfinder, base
from datamodules.augmentation import num_views
from datamodules.batches import EvalBatches
from datamodules.collate import JoinedSplits, SplitBatches
from datamodules.image_batches import ImageBatches

CPU = torch.device("cpu")


def assert_equal_batches(host, device, batches: list[list[int]]) -> None:
    for indices in batches:
        expected, actual = host.__getitems__(indices), device.__getitems__(indices)
        for name, value in expected._asdict().items():
            found = getattr(actual, name)
            if value is None:
                assert found is None, name
            else:
                assert (found.dtype, found.shape, found.is_contiguous()) == (value.dtype, value.shape, True), name
                assert torch.equal(found, value), name


@pytest.mark.parametrize("case", SEQUENCES)
def test_sequences(case):
    split, settings = SEQUENCES[case]
    batches = [[39, 0, 7], [3], list(range(40)), RNG.permutation(40).tolist()]
    assert_equal_batches(SplitBatches(split, **settings), SplitBatches(split, **settings, device=CPU), batches)


@pytest.mark.parametrize("augment", [(), ("transpose", "flip_vertical"), ("flip_horizontal", "shift", "crop")])
@pytest.mark.parametrize("drop_black", [False, True])
@pytest.mark.parametrize("black", [0.0, 0.7, 1.0])
def test_images(black, drop_black, augment):
    """The last image has black pixels only, the one before it none, and the third last a single other pixel."""
    split = random_split([81] * 30, black=black)
    split.tokens[-81:], split.tokens[-162:-81], split.tokens[-243:-162] = 0, 255, 0
    split.tokens[-200] = 1
    views = RNG.integers(num_views(augment), size=30)
    items = (RNG.permutation(30) + views * 30).tolist()
    batches = [items, items[:4], [29], [28], [27], [29, 27]]
    host, device = (ImageBatches(split, drop_black, augment, device=device) for device in (None, CPU))
    assert_equal_batches(host, device, batches)


def test_splits_joined():
    easy, hard = random_split([81] * 10, black=0.5), random_split([81] * 20, black=0.9)
    names = ("transpose", "flip_horizontal", "flip_vertical")
    host, device = (
        JoinedSplits([ImageBatches(split, True, names, device=device) for split in (easy, hard)])
        for device in (None, CPU)
    )
    assert_equal_batches(host, device, [[3, 4, 5], [10, 29], [12 + 2 * 30, 13 + 7 * 30]])


def test_array_is_copied_once():
    split = ImageBatches(random_split([81] * 10), True, device=CPU)
    split.__getitems__([1])
    address = split.on_device.tokens.data_ptr()
    split.__getitems__([2])
    assert split.on_device.tokens.data_ptr() == address


RUNS = {"pathfinder": ["--data.level_schedule={easy: 5}", "--data.augment=true"], "retrieval": []}


@pytest.mark.parametrize("task", ["pathfinder", pytest.param("retrieval", marks=pytest.mark.long)])
def test_run_is_the_same(task, tmp_path, main, tiny_arguments, monkeypatch):
    def fit(name: str) -> list[SplitBatches]:
        data = main(["fit", *tiny_arguments(task, tmp_path / name), *RUNS[task]]).datamodule
        return data._training_splits

    assert {split.device for split in fit("host")} == {None}
    monkeypatch.setattr(base.SequenceDataModule, "_device_for", lambda self, arrays: self.trainer and CPU)
    assert {split.device for split in fit("device")} == {CPU}
    assert_same_run(tmp_path / "host", tmp_path / "device")


@pytest.mark.parametrize(
    ("settings", "root", "free", "share", "expected"),
    [
        ({}, "cuda:0", 1 << 34, 1.0, "cuda:0"),
        ({}, "cpu", 1 << 34, 1.0, None),
        ({"num_workers": 1}, "cuda:0", 1 << 34, 1.0, None),
        ({}, "cuda:0", 4 * (10_240 + 88 + 10), 1.0, "cuda:0"),  # pixels, offsets and labels
        ({}, "cuda:0", 4 * (10_240 + 88 + 10) - 1, 1.0, None),
        ({}, "cuda:0", 1 << 34, 4 * (10_240 + 88 + 10) / 2**35, "cuda:0"),  # several runs on one GPU
        ({}, "cuda:0", 1 << 34, 4 * (10_240 + 88 + 9) / 2**35, None),
    ],
)
def test_split_lives_on_a_gpu_that_has_room(settings, root, free, share, expected, monkeypatch):
    data = Pathfinder(**settings)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 35))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(root)))
    split = random_split([1024] * 10)
    device = data._batches(split).device
    assert device == (None if expected is None else torch.device(expected))


def test_large_split_stays_on_the_host(monkeypatch):
    data = Pathfinder()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
    monkeypatch.setattr(base, "MAX_DEVICE_BYTES", 10_000)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)))
    assert data._batches(random_split([1024] * 10)).device is None
    assert data._batches(random_split([1024] * 9)).device == torch.device("cuda", 0)


@pytest.mark.parametrize(("device", "pinned"), [(None, True), (torch.device("cuda", 0), False)])
def test_only_batches_of_the_host_are_pinned(device, pinned):
    """Pinning a tensor of a GPU fails."""
    data = Pathfinder()
    data.trainer = SimpleNamespace(accelerator=CUDAAccelerator())
    splits = [ImageBatches(random_split([81] * 10), True, device=part) for part in (None, device)]
    batches = EvalBatches(splits[0].lengths, 5)
    assert data._loader(splits[1], batches).pin_memory is pinned
    assert data._loader(JoinedSplits(splits), batches).pin_memory is pinned
