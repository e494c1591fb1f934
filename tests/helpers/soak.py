"""Kill a real run again and again, and compare what it comes to with a run that was never killed.

    PYTHONPATH=tests/helpers python tests/helpers/soak.py --kills 100 --folder /tmp/soak

Each life of the run is a new process of `python run.py fit ... --ckpt_path auto`, killed with SIGKILL after a random
time; so a kill may fall into anything: imports, data, a step, an evaluation, the writing of a checkpoint.
"""

import argparse
import itertools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from runs_compared import assert_same_run
from tiny_runs import ROOT, build_arguments

LIVES = {"imports and data": 0, "training": 0}


def command(folder: Path, steps: int, seed: int) -> list[str]:
    """A small Skyformer on ListOps, with two loader workers and every step logged."""
    arguments = build_arguments(folder.parent / "data", "listops", folder)
    settings = [f"--trainer.max_steps={steps}", "--trainer.val_check_interval=25", f"--seed_everything={seed}",
                "--last_checkpoint.every_n_train_steps=10", "--data.init_args.num_workers=2"]  # fmt: skip
    return [sys.executable, str(ROOT / "run.py"), "fit", *arguments, *settings, "--ckpt_path=auto"]


def kill_again_and_again(folder: Path, steps: int, kills: int, seed: int) -> int:
    """Runs to the end, with so many kills on the way; returns how many processes that took."""
    rng = np.random.default_rng(seed)
    with (folder.parent / "killed.log").open("a") as log:
        for number in itertools.count(1):
            process = subprocess.Popen(command(folder, steps, seed), cwd=ROOT, stdout=log, stderr=log)
            if number > kills:
                assert process.wait() == 0, f"see {log.name}"
                return number
            wait_until_training(process, folder, share=rng.random() < 0.9)
            time.sleep(rng.uniform(0, 1.5))
            ended = process.poll()
            process.kill()
            process.wait()
            assert ended is None, f"ended by itself with {ended} after {number - 1} kills; see {log.name}"
            if number % 10 == 0:
                print(f"{number} kills", flush=True)
    raise AssertionError


def wait_until_training(process: subprocess.Popen, folder: Path, share: bool) -> None:
    """Nine times in ten until this life has begun to train, since imports take longer than a step; else not at all."""
    record, before = folder / "record.json", time.time()
    while share and process.poll() is None and not (record.exists() and record.stat().st_mtime > before):
        time.sleep(0.05)
    LIVES["training" if share else "imports and data"] += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    begin = time.time()
    lives = kill_again_and_again(arguments.folder / "killed", arguments.steps, arguments.kills, seed=0)
    subprocess.run(
        command(arguments.folder / "whole", arguments.steps, seed=0), cwd=ROOT, check=True, capture_output=True
    )
    assert_same_run(arguments.folder / "killed", arguments.folder / "whole")
    seconds = time.time() - begin
    print(f"{arguments.steps:,} steps in {lives} processes, {arguments.kills} killed {LIVES}, {seconds:.0f} s.")
    print("Every row of the log, and everything in the last and the best checkpoint, is that of a run never killed.")


if __name__ == "__main__":
    main()
