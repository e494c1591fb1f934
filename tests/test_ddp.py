"""Two processes on the CPU: the same training, and each example evaluated once."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

PLAIN = ("attention/softmax", ["--model.attention.init_args.dropout=0", "--model.dropout=0", "--trainer.max_steps=6"])


@pytest.mark.parametrize("task", ["listops", "retrieval"])
def test_two_processes_train_as_one_with_twice_the_batch(task, tmp_path, main, tiny_arguments):
    overlay, extra = PLAIN
    one = [*tiny_arguments(task, tmp_path / "one", overlay), *extra, "--test_after_fit=true"]
    two = [*tiny_arguments(task, tmp_path / "two", overlay, "trainer/ddp"), *extra, "--test_after_fit=true"]
    main(["fit", *one, "--data.init_args.batch_size=8"])
    command = [sys.executable, str(ROOT / "run.py"), "fit", *two, "--data.init_args.batch_size=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

    last = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("one", "two")]
    for name, weight in last[0]["state_dict"].items():
        torch.testing.assert_close(last[1]["state_dict"][name], weight, rtol=1e-4, atol=1e-5)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[1]["test/accuracy"] == pytest.approx(results[0]["test/accuracy"], abs=1e-6)
    assert results[1]["test/loss"] == pytest.approx(results[0]["test/loss"], rel=1e-4)
    assert results[1]["test/examples"] == {"listops": 13, "retrieval": 7}[task]
