"""What only a GPU can show, within six minutes: `python tests/gpu_check.py --output report/gpu`.

Tests, the cost of a training step, `fit` on Pathfinder with its speed, and whether a run repeats and resumes to the
last bit. Prints as it goes and writes `gpu_check.json` after each part. A part that fails, or whose share of the time
is over, keeps what it has found so far, and the others continue. `--dry true` runs the same commands with tiny sizes
on a CPU.
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
KINDS = ("first", "second", "resumed")
FORMS = {
    "float32": [],
    "eager": ["--config=configs/trainer/bf16.yaml"],
    "compiled": ["--config=configs/trainer/bf16.yaml", "--config=configs/trainer/compile.yaml"],
    "graphed": ["--config=configs/trainer/gpu.yaml"],
}
TINY = ["--model.embed_dim=16", "--model.hidden_dim=16", "--data.batch_size=4", "--data.init_args.train_size=44"]
TINY += ["--data.init_args.val_size=10", "--data.init_args.test_size=7", "--trainer.accelerator=cpu"]
# Enough for the steps of a check, and drawn in seconds.
SMALL = [f"--data.init_args.{split}_size={size}" for split, size in (("train", 20_000), ("val", 1000), ("test", 1000))]
# Of the time that is left a part has its share; what it does not need, the later ones get.
SHARES = {"tests": 80, "step_table": 110, "speed": 90, "repeats": 80}


class Check:
    """Runs the parts, one after the other, and keeps what they found."""

    def __init__(self, output: Path, data_dir: Path, dry: bool, steps: int, seconds: float) -> None:
        self.output, self.data_dir, self.dry, self.steps = output, data_dir, dry, steps
        self.found: dict[str, Any] = {}
        self.end = time.monotonic() + seconds
        self.part_end = self.end
        output.mkdir(parents=True, exist_ok=True)

    def run(self, parts: list[str]) -> bool:
        """Run the named parts; whether nothing in them failed."""
        begin = time.monotonic()
        for number, part in enumerate(parts):
            now = time.monotonic()
            share = SHARES[part] / sum(SHARES[name] for name in parts[number:])
            self.part_end = now + share * (self.end - now)
            self.found[part] = _kept(getattr(self, part))
            (self.output / "gpu_check.json").write_text(json.dumps(self.found, indent=1) + "\n")
            print(f"[{time.monotonic() - begin:.0f} s] {part}: {json.dumps(_short(self.found[part]))}", flush=True)
        return '"failed"' not in json.dumps(self.found)

    def call(self, name: str, *command: str) -> str:
        """Run a command until the part's time is over; its output, which also goes to `<name>.log`."""
        path = self.output / f"{name}.log"
        with path.open("w") as log:
            process = subprocess.Popen(
                [PYTHON, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                status = process.wait(max(self.part_end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired as error:
                os.killpg(process.pid, signal.SIGKILL)  # pytest's workers, loaders and compilers too
                process.wait()
                raise subprocess.SubprocessError(f"{name}: the time of this part is over; see {path}") from error
        text = path.read_text(errors="replace")
        if status:
            raise subprocess.CalledProcessError(status, " ".join(command)[:200], text[-1500:])
        return text

    def fit(self, name: str, steps: int, *arguments: str) -> tuple[Path, float]:
        """A run on Pathfinder, its folder and seconds."""
        folder = self.output / name
        given = ["--config=configs/pathfinder.yaml", *arguments, *(TINY if self.dry else SMALL)]
        given += [f"--data.data_dir={self.data_dir}", f"--trainer.default_root_dir={folder}"]
        given += ["--trainer.logger=skyformer.training.loggers.CSVLogger", f"--trainer.max_steps={steps}"]
        given += ["--model.lr_scheduler.init_args.warmup_steps=2"]
        begin = time.monotonic()
        self.call(name, "run.py", "fit", *given)
        return folder, time.monotonic() - begin

    def tests(self) -> dict[str, Any]:
        files = ["tests/ops/test_cuda.py", "tests/model/test_cuda_graph.py", "tests/ops/test_triton_kernels.py"]
        workers = 2 if self.dry else 8
        ended = ""
        try:
            self.call("tests", "-m", "pytest", "-vv", f"-n{workers}", "-p", "no:warnings", *files)
        except subprocess.SubprocessError as error:
            ended = str(error)[:200]
        text = (self.output / "tests.log").read_text(errors="replace")
        states = [re.findall(rf" {state} (tests/.+?) *$", text, re.M) for state in ("PASSED", "FAILED", "ERROR")]
        passed, failed = sorted(set(states[0])), sorted({*states[1], *states[2]})
        found = {"passed": len(passed), "last_line": (text.strip().splitlines() or [""])[-1]}
        return {**found, "failed": failed or ended} if failed or ended else found

    def step_table(self) -> dict[str, Any]:
        """Milliseconds a step of each case by the clock and on the GPU alone, of those too that were measured before
        the time was over.
        """
        device, sizes = ("cpu", "1x64") if self.dry else ("cuda", "128x1024,32x4096,128x480")
        forms = "eager" if self.dry else "graphed,eager,compiled"
        backends = "skyformer,softmax,kernelized,nystromformer,linformer,informer,performer,reformer,bigbird"
        output = self.output / "benchmark"
        (output / "benchmark.json").unlink(missing_ok=True)

        def measure() -> dict[str, Any]:
            self.call(
                "benchmark", "run.py", "benchmark", "--part=step", f"--device={device}", f"--sizes=[{sizes}]",
                f"--forms=[{forms}]", f"--backends=[{backends}]", "--precisions=[bfloat16]", "--dropout=0.1",
                f"--output={output}",
            )  # fmt: skip
            return {}

        ended = _kept(measure)
        if not (output / "benchmark.json").exists():
            return ended
        content = json.loads((output / "benchmark.json").read_text())
        found = {
            f"{row['name']} {row['batch_size']}x{row['length']} {row['form']}": _milliseconds(row)
            for row in [*content["rows"], *content["references"]]
        }
        return {"machine": content["machine"], **found, **ended}

    def speed(self) -> dict[str, Any]:
        """Examples a second of `fit`, everything included, over the last steps between two written curves."""
        steps = 6 if self.dry else self.steps

        def of_form(form: str) -> dict[str, Any]:
            folder, seconds = self.fit(f"fit_{form}", steps, *FORMS[form], f"--trainer.log_every_n_steps={steps // 3}")
            rates = [row["speed/examples_per_second"] for row in _rows(folder) if row["speed/examples_per_second"]]
            rate = float(rates[-1])
            batch = 4 if self.dry else 128
            return {"ms_a_step": 1000 * batch / rate, "examples_a_second": rate, "seconds_in_all": seconds}

        forms = ["eager"] if self.dry else ["graphed", "compiled", "eager"]
        return {form: _kept(lambda form=form: of_form(form)) for form in forms}

    def repeats(self) -> dict[str, Any]:
        """The losses of two equal runs and of one that was killed and resumed, compared one by one."""
        forms = ["eager"] if self.dry else ["graphed", "float32"]
        cases = [(backend, form) for form in forms for backend in ("skyformer", "softmax", "kernelized")]
        with ThreadPoolExecutor(1 if self.dry else 8) as pool:  # nothing is timed
            runs = {case: [pool.submit(self._losses, *case, kind) for kind in KINDS] for case in cases}
            return {
                " ".join(case): _kept(lambda runs=runs: _compared(run.result() for run in runs))
                for case, runs in runs.items()
            }

    def _losses(self, backend: str, form: str, kind: str) -> list[str]:
        """Of each step."""
        steps = 6 if self.dry else 200
        given = [f"--config=configs/attention/{backend}.yaml", *FORMS[form], "--model.dropout=0.1"]
        given += ["--trainer.log_every_n_steps=1", f"--trainer.val_check_interval={steps}"]
        given += ["--trainer.limit_val_batches=2", "--trainer.deterministic=true"]
        given += [f"--last_checkpoint.every_n_train_steps={steps // 2}"]
        name = f"repeat_{backend}_{form}_{kind}"
        if kind == "resumed":
            kill = ["--trainer.callbacks+=stop_at.StopAt", f"--trainer.callbacks.step={steps * 3 // 4}"]
            try:
                self.fit(name, steps, *given, *kill)
            except subprocess.CalledProcessError as error:
                if error.returncode != -signal.SIGKILL:
                    raise
            else:
                raise ValueError(f"{name} was not killed")
            given.append("--ckpt_path=last")
        folder, _ = self.fit(name, steps, *given)
        if "has no effect" in (self.output / f"{name}.log").read_text(errors="replace"):
            raise ValueError(f"{name} ran without CUDA graphs")
        losses = {int(row["step"]): row["train/loss"] for row in _rows(folder) if row["train/loss"]}
        if sorted(losses) != list(range(steps)):
            raise ValueError(f"{name} has the losses of {len(losses)} of {steps} steps")
        return [losses[step] for step in sorted(losses)]


def _milliseconds(row: dict[str, Any]) -> dict[str, Any]:
    """Of a row of `benchmark`; the released code's have no time on the GPU alone."""
    if "failed" in row:
        return {"failed": row["failed"]}
    names = {"ms": "seconds", "gpu_ms": "device_seconds"}
    return {name: round(1000 * row[key], 2) for name, key in names.items() if row.get(key)}


def _compared(runs: Iterable[list[str]]) -> dict[str, Any]:
    """The steps whose losses differ from those of the first run, and all losses."""
    losses = dict(zip(KINDS, runs, strict=True))
    first = losses["first"]
    differ = {
        kind: [step for step, (a, b) in enumerate(zip(first, losses[kind], strict=True)) if a != b]
        for kind in KINDS[1:]
    }
    different = {"failed": "losses differ"} if any(differ.values()) else {}
    return {"steps": len(first), "differ": differ, "losses": losses, **different}


def _short(found: Any) -> Any:
    """Without the losses, which only the file has."""
    if not isinstance(found, dict):
        return found
    return {key: _short(value) for key, value in found.items() if key != "losses"}


def _kept(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it found, or why it failed. The other parts still run."""
    try:
        return work()
    except Exception as error:
        said = getattr(error, "output", None) or ""
        return {"failed": f"{type(error).__name__}: {error} {said}"[-1500:].strip()}


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--output", default="report/gpu")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--dry", type=bool, default=False)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--parts", type=list[str], default=list(SHARES))
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), str(ROOT / "tests/helpers"), os.environ.get("PYTHONPATH")])
    )
    output, data_dir = Path(given.output).resolve(), Path(given.data_dir).resolve()
    check = Check(output, data_dir, given.dry, given.steps, 60 * given.minutes)
    raise SystemExit(0 if check.run(given.parts) else 1)
