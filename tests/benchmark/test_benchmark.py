"""`benchmark`: its counts against counts by hand, its fit against a power, its command on tiny sizes."""

import csv
import json
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from skyformer.benchmark import command, machine, worker
from skyformer.benchmark.cases import Case, read_attention, read_size
from skyformer.benchmark.counting import count, count_needed
from skyformer.benchmark.machine import BLOCK
from skyformer.benchmark.peers import PEERS, installed_peers, keops_gaussian
from skyformer.benchmark.picture import draw_scaling, exponent
from skyformer.benchmark.results import print_table
from skyformer.benchmark.subjects import make_subject
from skyformer.exceptions import RunError
from skyformer.ops.gaussian import gaussian_attention
from skyformer.ops.linalg import solve_positive_definite

B, H, N, P = 2, 3, 40, 8
LAYERS = ("--part=layer", "--backends=[kernelized]", "--peers=[sdpa]", "--sizes=[2x64]")


def test_product_operations_and_bytes():
    left, right = torch.randn(5, 7), torch.randn(7, 11)
    assert count(lambda: left @ right) == (2 * 5 * 7 * 11, 4 * (5 * 7 + 7 * 11 + 5 * 11))


def test_gradients_of_a_product_cost_twice_as_much():
    left, right = (torch.randn(size, requires_grad=True) for size in ((5, 7), (7, 11)))
    assert count(lambda: (left @ right).sum().backward())[0] == 3 * 2 * 5 * 7 * 11


def test_flash_attention_is_counted():
    """Forward: scores and output. Backward: the scores again and four gradients."""
    query, key, value = (torch.randn(B, H, N, P, requires_grad=True) for _ in range(3))
    forward = 2 * 2 * B * H * N * N * P
    assert count(lambda: F.scaled_dot_product_attention(query, key, value))[0] == forward
    both = count(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())[0]
    assert both == forward + 5 * 2 * B * H * N * N * P


def test_flash_form_of_kernelized_attention_is_counted():
    query, key, value = (torch.randn(B, H, N, P) for _ in range(3))
    assert count(lambda: gaussian_attention(query, key, value))[0] == 2 * 2 * B * H * N * N * P


def test_solve_is_counted():
    """The factor, its inverse, and two products with that."""
    matrix, right = torch.eye(6).expand(B, H, 6, 6), torch.randn(B, H, 6, 4)
    expected = B * H * (6**3 // 3 + 6 * 6 * 6 + 2 * 2 * 6 * 6 * 4)
    assert count(lambda: solve_positive_definite(matrix, right))[0] == expected


def test_recomputed_products_are_not_needed():
    """A product under checkpoint is done four times; three are needed. Without gradients for the left it is two."""
    left, right = (torch.randn(size, requires_grad=True) for size in ((5, 7), (7, 11)))
    once = 2 * 5 * 7 * 11

    def again():
        checkpoint(lambda: (left @ right).square(), use_reentrant=False).sum().backward()

    assert count(again)[0] == 4 * once
    assert count_needed(lambda: left @ right, again) == (3 * once, 3 * 4 * (5 * 7 + 7 * 11 + 5 * 11))
    fixed = left.detach()
    assert count_needed(lambda: fixed @ right, lambda: (fixed @ right).sum().backward())[0] == 2 * once


def test_exponent_of_a_power():
    rows = [{"length": n, "batch_size": 8192 // n, "seconds": 3e-6 * (8192 // n) * n**1.5} for n in (256, 1024, 4096)]
    assert exponent(rows, "seconds") == pytest.approx(1.5)
    assert exponent(rows[:1], "seconds") != exponent(rows[:1], "seconds"), "one length fits nothing"


@pytest.mark.parametrize("text", ["16", "x", "0x5", "5x0", "-1x5", "axb", "1x2x3"])
def test_size_that_is_none(text):
    with pytest.raises(RunError, match=r"--sizes .*16x1024"):
        read_size(text)


def test_backend_comes_from_its_overlay(tmp_path):
    name, attention = read_attention("softmax", 0.25)
    assert (name, attention["init_args"]) == ("softmax", {"dropout": 0.25})
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {attention: {class_path: my.Attention}}")
    assert read_attention(str(mine), 0.25) == ("mine", {"class_path": "my.Attention", "init_args": {}})
    mine.write_text("model: {attention: {class_path: my.Attention, init_args: {eps: 1e-4}}}")
    assert read_attention(str(mine), 0.25)[1]["init_args"] == {"eps": 1e-4}, "a number, as in fit"
    mine.write_text("model: 1")
    with pytest.raises(RunError, match=r"names no model\.attention\.class_path"):
        read_attention(str(mine), 0.0)
    with pytest.raises(RunError, match="Fix: one of bigbird, informer"):
        read_attention("flash", 0.0)


def test_failed_case_is_a_row(monkeypatch):
    """Whatever is raised, and though the GPU may answer no further call."""

    class OutOfResourcesError(Exception):
        """Triton's is no RuntimeError."""

    monkeypatch.setattr(command, "measure", raising(OutOfResourcesError("shared memory\nand more")))
    monkeypatch.setattr("torch.cuda.empty_cache", raising(RuntimeError("illegal memory access")))
    assert command._run_here(None) == {"failed": "shared memory"}


def raising(error):
    def function(*_):
        raise error

    return function


@pytest.fixture(scope="module")
def measured(tmp_path_factory, main):
    """A layer and a library's at a tiny size, in this process, with the machine's rates at a small size too."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_run", command._run_here)
        patch.setattr(machine, "_SIDE", 256)
        patch.setattr(machine, "_COPY", 1 << 20)
        return folder, main(["benchmark", *LAYERS, f"--output={folder}"])


@pytest.mark.long
def test_each_case_runs_in_a_process_of_its_own(tmp_path, main):
    rows = main(["benchmark", *LAYERS, f"--output={tmp_path}"])
    assert all(row["seconds"] > 0 and row["peak_mb"] > 0 for row in rows)


def test_benchmark_measures_a_backend_beside_its_peer(measured):
    folder, rows = measured
    assert [row["name"] for row in rows] == ["kernelized", "sdpa"]
    ours, peer = rows
    projections = 2 * 2 * 64 * (4 * 64 * 64)
    assert ours["operations"] > 3 * projections - 2 * 2 * 64 * 3 * 64 * 64
    assert peer["operations"] == 3 * (projections + 2 * 2 * 2 * 2 * 64 * 64 * 32), "without recomputed scores"
    for row in rows:
        assert row["seconds"] > row["forward_s"] > 0
        assert row["device_seconds"] is None
        assert row["floor_s"] == max(row["operations"] / row["matmul_per_s"], row["bytes"] / row["copy_per_s"])
        assert row["tokens_per_s"] == pytest.approx(2 * 64 / row["seconds"])
    assert json.loads((folder / "benchmark.json").read_text())["rows"] == rows
    with (folder / "benchmark.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["kernelized", "sdpa"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "pykeops" else name for name in PEERS]
)
def test_every_library_runs_with_our_sizes(name):
    """Its layer takes what ours takes, and its operations are counted. KeOps compiles for minutes."""
    pytest.importorskip(PEERS[name][1], reason=f"{name} is not installed: pip install -e '.[peers]'")
    forward, both = make_subject(Case(name=name, part="layer", batch_size=2, length=1024))
    assert forward().shape == (2, 1024, 64)
    assert count(both)[0] > 3 * 2 * 2 * 1024 * 2 * 64 * 64


@pytest.mark.long
def test_sums_by_keops_are_those_of_kernelized_attention():
    keops = pytest.importorskip("pykeops.torch", reason="pykeops is not installed: pip install -e '.[peers]'")
    query, key, value = (torch.randn(B, H, N, P, dtype=torch.float64) for _ in range(3))
    expected = gaussian_attention(query, key, value)
    torch.testing.assert_close(keops_gaussian(keops, query, key, value), expected)


def test_libraries_that_are_missing_are_no_default(monkeypatch):
    monkeypatch.setattr("skyformer.benchmark.peers.find_spec", lambda name: name in ("torch", "linformer"))
    assert installed_peers(["softmax", "kernelized", "linformer", "skyformer"]) == ["sdpa", "linformer"]


def test_table_fits_80_columns(measured, capsys):
    wide = {
        "name": "transformers-nystromformer",
        "length": 131072,
        "batch_size": 1,
        "precision": "bfloat16",
        "form": "compiled",
    }
    rows = [*measured[1], {**measured[1][0], **wide}, {**wide, "failed": "out of memory"}]
    print_table(rows)
    assert "GPU ms" not in capsys.readouterr().out
    print_table([*rows, {**measured[1][0], **wide, "device_seconds": 0.0123}])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"GPU ms\b", out)
    assert "12.30" in out
    assert "failed" in out
    assert "kernelized" in out


@pytest.mark.parametrize(("device", "part"), [("cpu", "step"), ("cuda", "step"), ("cuda", "layer")])
def test_all_methods_in_all_forms(device, part, tmp_path, main, monkeypatch, capsys):
    """On a GPU with the figures of the released code. It has no figure for Performer, which failed."""
    rates = {
        "forward_s": None,
        "peak_mb": 1.0,
        "operations": 0,
        "floor_s": 0.0,
        "matmul_per_s": 5e14,
        "copy_per_s": 2e12,
    }
    timing = {"seconds": 0.004, "device_seconds": 0.00321 if device == "cuda" else None}
    for name in ("_run", "_run_here"):
        monkeypatch.setattr(f"skyformer.benchmark.command.{name}", lambda case: {**timing, **rates})
    machine = {"device": "NVIDIA H100 80GB HBM3", "matmul_per_s": {"bfloat16": 5e14}, "copy_per_s": 2e12}
    monkeypatch.setattr("skyformer.benchmark.command.gpu_rates", lambda: machine)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    sizes = "--sizes=[128x1024,32x4096,2x64]"
    arguments = [f"--part={part}", "--all", "--peers=[]", f"--device={device}", sizes, f"--output={tmp_path}"]
    rows = main(["benchmark", *arguments])
    forms = ["eager", "compiled", "graphed"][: 3 if (device, part) == ("cuda", "step") else 2]
    assert len({(row["name"], row["form"], row["length"]) for row in rows}) == 9 * 3 * len(forms)
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert {row["device_seconds"] for row in content["rows"]} == {timing["device_seconds"]}
    references = content["references"]
    with (tmp_path / "benchmark.csv").open() as file:
        assert sum(row["form"] == "released" for row in csv.DictReader(file)) == len(references)
    if (device, part) != ("cuda", "step"):
        assert references == []
        return
    assert len(references) == 16
    assert {row["seconds"] for row in references if row["name"] == "softmax"} == {0.0378, 0.126}
    assert content["machine"].items() >= machine.items()
    said = capsys.readouterr().out
    assert "3.21" in said
    assert "NVIDIA H100 80GB HBM3: Matrix product 500,000 Gop/s, copy 2,000 GB/s" in said
    assert "released: the code released with the paper" in said


class HeldGpu:
    """A GPU that needs 3 ms for each run, and whose clock wants launches to have time."""

    def __init__(self):
        self.waits, self.held = 0, []

    def wait(self):
        self.waits += 1

    def seconds_of(self, work, held):
        work()
        self.held.append(held)
        return 0.003


def test_gpu_times_by_the_clock_and_by_events(monkeypatch):
    """Blocks of runs by the clock, with one wait each; single runs by events, held longer than their launches take."""
    gpu, runs = HeldGpu(), []
    monkeypatch.setattr("skyformer.benchmark.machine.GPU", gpu)
    monkeypatch.setattr(worker, "make_subject", lambda case: (lambda: None, lambda: runs.append(1)))
    monkeypatch.setattr(worker, "_peak_above_idle", lambda work, device: 1.0)
    for rate in ("matmul_rate", "copy_rate"):
        monkeypatch.setattr(worker, rate, lambda *_: 1e12)
    case = Case(name="skyformer", part="step", batch_size=2, length=64, device="cuda", form="graphed", repeats=7)
    row = worker.measure(case)
    assert row["device_seconds"] == 0.003
    assert row["forward_s"] is None
    assert len(runs) == 3 + 7 * BLOCK + 7
    assert gpu.waits == 1 + 7
    assert gpu.held == [1.5 * row["seconds"]] * 7


def test_scaling_picture(measured, tmp_path):
    rows = measured[1] + [{**row, "length": 128, "seconds": 4 * row["seconds"]} for row in measured[1]]
    draw_scaling(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert exponent([row for row in rows if row["name"] == "sdpa"], "seconds") == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--repeats=3", "--repeats 3 must be at least 5"),
        ("--backends=[nothing]", "no file"),
        ("--peers=[nothing]", "--peers nothing is not one of sdpa"),
        ("--device=cuda", "--device cuda: torch finds no CUDA device"),
        ("--all", "--all measures all backends (got --backends ['linformer'])"),
    ],
)
def test_benchmark_that_cannot_be_run_is_refused(argument, said, tmp_path, main, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "--part=layer", "--sizes=[1x8]", "--backends=[linformer]", argument, f"--output={tmp_path}"])
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err
