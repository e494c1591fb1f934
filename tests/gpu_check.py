"""What only a GPU can show, in a few minutes: `python tests/gpu_check.py --output report/gpu`.

Tests, the cost of a training step, `fit` on Pathfinder with its speed, and whether a run repeats and resumes to the
last bit. Prints as it goes and writes `gpu_check.json`. `--dry true` runs the same commands with tiny sizes on a CPU.
"""

import csv
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
FORMS = {
    "eager": ["--config=configs/trainer/bf16.yaml"],
    "compiled": ["--config=configs/trainer/bf16.yaml", "--config=configs/trainer/compile.yaml"],
    "graphed": ["--config=configs/trainer/gpu.yaml"],
}
TINY = ["--model.embed_dim=16", "--model.hidden_dim=16", "--data.batch_size=4", "--data.init_args.train_size=44"]
TINY += ["--data.init_args.val_size=10", "--data.init_args.test_size=7", "--trainer.accelerator=cpu"]


class Check:
    """Runs the parts, one after the other, and keeps what they found."""

    def __init__(self, output: Path, data_dir: Path, dry: bool, steps: int) -> None:
        self.output, self.data_dir, self.dry, self.steps = output, data_dir, dry, steps
        self.found: dict[str, Any] = {}
        output.mkdir(parents=True, exist_ok=True)

    def run(self, parts: list[str]) -> bool:
        """Run the named parts; whether all of them ended well."""
        begin, good = time.monotonic(), True
        for part in parts:
            try:
                self.found[part] = getattr(self, part)()
            except subprocess.SubprocessError as error:
                self.found[part], good = {"failed": str(error)[-500:]}, False
            print(f"[{time.monotonic() - begin:.0f} s] {part}: {json.dumps(self.found[part])}", flush=True)
            (self.output / "gpu_check.json").write_text(json.dumps(self.found, indent=1) + "\n")
        return good

    def call(self, name: str, *command: str, limit: float = 150) -> str:
        """Run a command; its output, which also goes to `<name>.log`."""
        path = self.output / f"{name}.log"
        with path.open("w") as log:
            done = subprocess.run([PYTHON, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=limit)
        text = path.read_text(errors="replace")
        if done.returncode:
            raise subprocess.SubprocessError(f"{' '.join(command)[:200]}: {text[-1500:]}")
        return text

    def fit(self, name: str, steps: int, *arguments: str, killed: bool = False) -> tuple[Path, float]:
        """A run on Pathfinder, its folder and seconds; one that is `killed` may fail."""
        folder = self.output / name
        given = ["--config=configs/pathfinder.yaml", *arguments, *(TINY if self.dry else [])]
        given += [f"--data.data_dir={self.data_dir}", f"--trainer.default_root_dir={folder}"]
        given += ["--trainer.logger=skyformer.training.loggers.CSVLogger", f"--trainer.max_steps={steps}"]
        given += ["--model.lr_scheduler.init_args.warmup_steps=2"]
        begin = time.monotonic()
        with suppress(subprocess.SubprocessError) if killed else nullcontext():
            self.call(name, "run.py", "fit", *given)
        return folder, time.monotonic() - begin

    def tests(self) -> dict[str, Any]:
        files = ["tests/ops/test_cuda.py", "tests/model/test_cuda_graph.py", "tests/ops/test_triton_kernels.py"]
        try:
            text = self.call("tests", "-m", "pytest", "-q", "-n6", "-p", "no:warnings", *files)
        except subprocess.SubprocessError as error:
            text = str(error)
        return {"result": text.strip().splitlines()[-1], "failed": re.findall(r"^FAILED (\S+)", text, re.M)}

    def step_table(self) -> dict[str, Any]:
        device, sizes = ("cpu", "1x64") if self.dry else ("cuda", "128x1024,32x4096,128x480")
        forms = "eager" if self.dry else "graphed,eager"
        backends = "skyformer,softmax,kernelized,nystromformer,linformer,informer,performer,reformer,bigbird"
        self.call(
            "benchmark", "run.py", "benchmark", "--part=step", f"--device={device}", f"--sizes=[{sizes}]",
            f"--forms=[{forms}]", f"--backends=[{backends}]", "--precisions=[bfloat16]", "--peers=[]",
            f"--output={self.output / 'benchmark'}", limit=240,
        )  # fmt: skip
        rows = json.loads((self.output / "benchmark/benchmark.json").read_text())["rows"]
        return {
            f"{row['name']} {row['batch_size']}x{row['length']} {row['form']}": row.get("failed")
            or round(1000 * row["seconds"], 2)
            for row in rows
        }

    def speed(self) -> dict[str, Any]:
        """Examples a second of `fit`, everything included, over the last steps between two written curves."""
        found = {}
        for form in ["eager"] if self.dry else FORMS:
            steps = 6 if self.dry else self.steps
            folder, seconds = self.fit(f"fit_{form}", steps, *FORMS[form], f"--trainer.log_every_n_steps={steps // 3}")
            rates = [row["speed/examples_per_second"] for row in _rows(folder) if row["speed/examples_per_second"]]
            rate = float(rates[-1])
            batch = 4 if self.dry else 128
            found[form] = {"ms_a_step": 1000 * batch / rate, "examples_a_second": rate, "seconds_in_all": seconds}
        return found

    def repeats(self) -> dict[str, Any]:
        """Losses that differ between two equal runs, and between a run and one that was killed and resumed."""
        forms = ["eager"] if self.dry else ["eager", "graphed"]
        cases = [(backend, form) for backend in ("skyformer", "softmax", "kernelized") for form in forms]
        with ThreadPoolExecutor(1 if self.dry else 3) as pool:  # nothing is timed
            return dict(zip(map(" ".join, cases), pool.map(lambda case: self._repeat(*case), cases), strict=True))

    def _repeat(self, backend: str, form: str) -> dict[str, int]:
        steps = 6 if self.dry else 200
        given = [f"--config=configs/attention/{backend}.yaml", *FORMS[form], "--model.dropout=0.1"]
        given += [
            "--trainer.log_every_n_steps=1",
            f"--trainer.val_check_interval={steps}",
            "--trainer.limit_val_batches=2",
        ]
        given += [f"--last_checkpoint.every_n_train_steps={steps // 2}", "--trainer.deterministic=true"]
        first, second, third = (f"repeat_{backend}_{form}_{number}" for number in (1, 2, 3))
        losses = [_losses(self.fit(name, steps, *given)[0]) for name in (first, second)]
        kill = ["--trainer.callbacks+=stop_at.StopAt", f"--trainer.callbacks.step={steps * 3 // 4}"]
        self.fit(third, steps, *given, *kill, killed=True)
        losses.append(_losses(self.fit(third, steps, *given, "--ckpt_path=last")[0]))
        differ = [sum(a != b for a, b in zip(losses[0], other, strict=True)) for other in losses[1:]]
        return {"steps": len(losses[0]), "differ": differ[0], "resumed_differ": differ[1]}


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _losses(folder: Path) -> list[str]:
    return [row["train/loss"] for row in _rows(folder) if row["train/loss"]]


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--output", default="report/gpu")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--dry", type=bool, default=False)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--parts", type=list[str], default=["tests", "step_table", "speed", "repeats"])
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), str(ROOT / "tests/helpers"), os.environ.get("PYTHONPATH")])
    )
    check = Check(Path(given.output).resolve(), Path(given.data_dir).resolve(), given.dry, given.steps)
    raise SystemExit(0 if check.run(given.parts) else 1)
