"""`tests/gpu_check.py`: what a part finds is kept, whatever becomes of the others."""

import importlib.util
import json
import subprocess
import time

import pytest
from tiny_runs import ROOT

spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tests/gpu_check.py")
assert spec is not None
assert spec.loader is not None
gpu_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_check)


@pytest.fixture
def check(tmp_path):
    return gpu_check.Check(tmp_path, tmp_path, True, 6, 60.0)


def test_part_that_fails_does_not_stop_the_others(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "tests", lambda: {"result": json.loads((tmp_path / "gone").read_text())})
    monkeypatch.setattr(
        check, "step_table", lambda: {"output": check.call("one", "-c", "raise SystemExit('a reason')")}
    )
    monkeypatch.setattr(check, "speed", lambda: {"seen": json.loads((tmp_path / "gpu_check.json").read_text())})
    assert not check.run(["tests", "step_table", "speed"])
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["tests"]["failed"].startswith("FileNotFoundError")
    assert found["step_table"]["failed"].endswith("a reason")
    assert found["speed"]["seen"] == {name: found[name] for name in ("tests", "step_table")}


def test_part_ends_with_its_time(check, monkeypatch):
    """With the processes that its command has started."""
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    monkeypatch.setattr(check, "speed", lambda: {"output": check.call("long", "-c", child)})
    check.end = time.monotonic() + 0.5
    assert not check.run(["speed"])
    assert "the time of this part is over" in check.found["speed"]["failed"]


def test_tests_that_ended_are_counted_when_the_time_is_over(check, tmp_path, monkeypatch):
    def over(name, *command):
        lines = ["PASSED tests/a.py::one[a b]", "FAILED tests/a.py::two", "PASSED tests/b.py::three"]
        (tmp_path / "tests.log").write_text("".join(f"[gw0] [ 10%] {line} \n" for line in lines))
        raise subprocess.SubprocessError("tests: the time of this part is over")

    monkeypatch.setattr(check, "call", over)
    assert check.tests() == {
        "passed": 2,
        "last_line": "[gw0] [ 10%] PASSED tests/b.py::three",
        "failed": ["tests/a.py::two"],
    }


def test_losses_are_compared_one_by_one():
    same = ["1.0", "0.5", "0.25"]
    assert "failed" not in gpu_check._compared([same, same, same])
    found = gpu_check._compared([same, same, ["1.0", "0.5000001", "0.25"]])
    assert found["differ"] == {"second": [], "resumed": [1]}
    assert found["losses"]["resumed"][1] == "0.5000001"
    assert found["failed"] == "losses differ"


def test_losses_stay_out_of_what_is_printed():
    assert gpu_check._short({"skyformer": {"steps": 3, "losses": {"first": []}}}) == {"skyformer": {"steps": 3}}
