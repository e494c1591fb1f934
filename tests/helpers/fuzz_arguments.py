"""Every argument and YAML key with values that make no sense.

    PYTHONPATH=.:tests/helpers python tests/helpers/fuzz_arguments.py

A case passes when its command ends well, or is refused in a line that names the key; see `judge`.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fuzz_values
import tiny_runs
import tiny_sources
from fuzz_cases import TRAINING, Case, all_cases
from fuzz_process import Outcome, in_a_process

# These say where files go, so these may go there; still below the sandbox.
PLACES = ("default_root_dir", "data_dir", "save_dir", "output", "logger", "trainer", "init_args", "data")
ACCEPTED, PARSER, OURS, LIMIT = "accepted", "refused by the parser (2)", "refused by us (1)", "stopped at the limit"
KINDS = (ACCEPTED, PARSER, OURS, LIMIT)


class Sandbox:
    """A folder with prepared data and a trained run, and in it one folder for each case."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        for task, write in tiny_sources.WRITERS.items():
            write(self.data / "sources" / task)
        self.place = root / "case" / "a" / "b" / "c"
        self.marker = root / "case" / "marker"
        self.renew()
        self._must_work(in_a_process(self.base("prepare"), self.place, 300))
        changes = ["--trainer.logger=skyformer.training.loggers.TensorBoardLogger", "--trainer.val_check_interval=1"]
        self._must_work(in_a_process([*self.base("fit"), *changes], self.place, 120))
        shutil.copytree(self.place / "run", root / "trained")
        self.prepared = self._sizes(self.data)

    def base(self, command: str, task: str = "listops") -> list[str]:
        """Arguments that work, relative to a case's folder."""
        arguments = tiny_runs.build_arguments(self.data, task, Path("run"))
        if command == "prepare":
            return [command, *(text for text in arguments if text.startswith(("--config", "--data")))]
        if command == "report":
            return [command, f"--runs=[{self.root}/trained]", "--output=run"]
        if command == "benchmark":
            return [command, "--part=layer", "--sizes=[1x64]", "--output=run"]
        short = ["--trainer.max_steps=1", "--model.lr_scheduler.init_args.warmup_steps=0"]
        limits = [
            "--trainer.limit_val_batches=1",
            "--trainer.limit_test_batches=1",
            "--trainer.limit_predict_batches=1",
        ]
        return [command, *arguments, *short, *limits]

    def renew(self, trained: bool = False) -> None:
        """Leave the case's folder empty, but for a stranger's run, and its own where it is trained."""
        shutil.rmtree(self.root / "case", ignore_errors=True)
        other = self.place / "other" / "checkpoints"
        other.mkdir(parents=True)
        (other / "last.ckpt").write_bytes(b"precious")
        if trained:
            shutil.copytree(self.root / "trained", self.place / "run")

    def run(self, case: Case, seconds: float = 20) -> tuple[Outcome, list[str]]:
        """What came of a case, and files that it should not have written."""
        self.renew(trained=case.base[0] in TRAINING[1:])
        arguments = list(case.base)
        if isinstance(case.change, bytes):
            (self.place / "hostile.yaml").write_bytes(case.change.replace(b"<marker>", bytes(self.marker)))
            arguments.append("--config=hostile.yaml")
        elif case.label in fuzz_values.write_places(self.root / "case" / "a"):
            arguments.append(case.change.replace("<places>", str(self.root / "case" / "a")))
        else:
            arguments.append(case.change.replace("<marker>", str(self.marker)))
        found = in_a_process(arguments, self.place, seconds)
        return found, list(self._strays(case))

    def _strays(self, case: Case) -> Iterator[str]:
        if self.marker.exists():
            yield "executed code"
        if (self.place / "other/checkpoints/last.ckpt").read_bytes() != b"precious":
            yield "wrote over a checkpoint"
        now = self._sizes(self.data)
        if any(now.get(name) != size for name, size in self.prepared.items()):
            yield "changed the prepared data"
        for name in now.keys() - self.prepared.keys():
            path = self.data / Path(name).parts[0]
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if case.key.split(".")[-1] not in PLACES:
            known = ("run", "other", "log", "hostile.yaml", "worker.out", "worker.err")
            yield from (f"wrote {path.name}" for path in self.place.iterdir() if path.name not in known)

    def _sizes(self, folder: Path) -> dict[str, tuple[int, int]]:
        files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
        return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    def _must_work(self, found: Outcome) -> None:
        assert found.status == 0, f"{found.said}\n{found.exception}"


def judge(case: Case, found: Outcome, strays: list[str]) -> str:
    """The kind of outcome, or what is wrong with it."""
    if strays:
        return "; ".join(strays)
    if found.exception:
        return f"raised {found.exception.strip().splitlines()[-1]}"
    if "Traceback (most recent call last)" in found.said:
        return "printed a traceback"
    if not case.key and (found.status is None or "not enough memory" in found.said):
        return "a small file ate the machine"
    if found.status is None:
        return LIMIT
    if found.status == 0:
        return ACCEPTED
    if found.status not in (1, 2):
        return f"exit status {found.status}"
    start = f"\n{found.said}".rfind("\nerror: ")
    if start < 0:
        return f"exit status {found.status} without a line that starts with error:"
    said = found.said[start:]
    if "error is unexpected" in said:
        return "an unexpected error"
    if case.key and not _names(case, said):
        return "the message does not name the key"
    return PARSER if found.status == 2 else OURS


def _names(case: Case, said: str) -> bool:
    """Whether a message says what to change: the key, the class whose argument it is, or the value."""
    if ", line " in said and ", column " in said:  # of what is no YAML
        return True
    section = case.key.split(".init_args")[0].removesuffix(".class_path")
    value = str(case.change).partition("=")[2]
    sizes = "batch_size" in said and case.key.endswith("_size")  # that leaves no batch
    return (
        case.key.rpartition(".")[2] in said
        or (f"{section}" in said and "." in section)
        or sizes
        or (len(value) > 2 and value[:100] in said)
    )


def table(verdicts: Iterable[tuple[Case, str]]) -> str:
    """Markdown: what came of the cases, by groups of keys."""
    kinds = KINDS
    groups: dict[str, list[tuple[Case, str]]] = defaultdict(list)
    for case, verdict in verdicts:
        groups[case.group].append((case, verdict))
    lines = [f"| group of keys | keys | values tried | {' | '.join(kinds)} | anything else |", "|---" * 8 + "|"]
    for group, found in groups.items():
        counts = Counter(verdict for _, verdict in found)
        others = [f"{case.key} {case.label}: {verdict}" for case, verdict in found if verdict not in kinds]
        numbers = [len({case.key for case, _ in found}), len(found), *(counts[kind] for kind in kinds)]
        lines.append(f"| {group} | {' | '.join(map(str, numbers))} | {'<br>'.join(others) or 0} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sample", type=int, help="so many cases, drawn at random; default all")
    options.add_argument("--only", default="", help="cases whose group or key holds this text")
    options.add_argument("--seconds", type=float, default=20, help="limit of a case")
    options.add_argument("--command", default="", help="cases of this one")
    options.add_argument("--log", type=Path, help="file for what each case that is wrong said")
    chosen = options.parse_args()
    sys.argv = ["run.py"]  # as Lightning expects where it is given arguments
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        sandbox = Sandbox(Path(folder))
        cases = [case for case in all_cases(sandbox.base) if chosen.only in f"{case.group} {case.key}"]
        cases = [case for case in cases if chosen.command in case.base[0]]
        random.Random(0).shuffle(cases)
        cases = cases[: chosen.sample]
        verdicts = []
        for number, case in enumerate(cases, 1):
            found, strays = sandbox.run(case, chosen.seconds)
            verdicts.append((case, judge(case, found, strays)))
            if chosen.log:
                with chosen.log.open("a") as log:
                    _write(log, number, len(cases), *verdicts[-1], found)
        print(table(verdicts))


def _write(log: Any, number: int, count: int, case: Case, verdict: str, found: Outcome) -> None:
    say = partial(print, file=log)
    say(
        f"## {number}/{count} {verdict} | {' '.join(case.base[:1])} | {case.key} | {case.label} | {case.change[:200]!r}"
    )
    if verdict not in (PARSER, ACCEPTED):
        lines = (found.exception or found.said).splitlines()
        say("\n".join(line[:500] for line in lines[-24:] if line.strip(" ^")))


if __name__ == "__main__":
    main()
