"""A tested run is one line of JSON: reports of the line are those of its folder, and a wrong line is refused."""

import json
import re
import sys
from datetime import date
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from report_runs import ROOT, write_run

from skyformer.exceptions import RunError
from skyformer.report.groups import group_runs
from skyformer.report.leaderboard import leaderboard
from skyformer.report.lines import SCHEMA, lines_of, read_lines, to_jsonl
from skyformer.report.runs import find_runs
from skyformer.report.tables import accuracy_rows, cost_rows

DIGEST = "0" * 64


def write_lines(folder: Path) -> Path:
    """The lines of all runs below a folder, in a file in it."""
    path = folder / "lines.jsonl"
    path.write_text(to_jsonl(lines_of(find_runs([folder])[0]).values()), encoding="utf-8")
    return path


def test_line_replaces_the_folder(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"sky{seed}", seed=seed, accuracy=0.3 + seed / 100)
        write_run(tmp_path / f"soft{seed}", attention="softmax", seed=seed)
    write_run(tmp_path / "short", attention="linformer", steps=60)
    found, listed = find_runs([tmp_path])[0], read_lines(write_lines(tmp_path))
    groups, same = group_runs(found), group_runs(listed)
    assert accuracy_rows(groups) == accuracy_rows(same)
    assert "60 of 100 steps" in accuracy_rows(same)[-1]["remarks"]
    assert cost_rows(groups) == cost_rows(same)
    assert leaderboard(groups, lines_of(found)) == leaderboard(same, lines_of(listed))


def test_command_reads_folders_and_files(tmp_path, main):
    write_run(tmp_path / "listed/a", accuracy=0.6)
    write_run(tmp_path / "other/b", attention="softmax", record={"data_hash": "e"})
    path = write_lines(tmp_path / "listed")
    main(["report", f"--runs=[{tmp_path}/other,{path}]", f"--output={tmp_path}/out"])
    text = (tmp_path / "out/accuracy.md").read_text()
    assert "60.00" in text
    assert "other data" in text
    assert "**" not in text.split("\n\n")[1], "neither of two unlike runs is the best"
    assert len(read_lines(tmp_path / "out/runs.jsonl")) == 2
    assert "## ListOps" in (tmp_path / "out/leaderboard.md").read_text()


def test_lines_alone_have_no_pictures(tmp_path, main):
    write_run(tmp_path / "runs/a")
    main(["report", f"--runs=[{write_lines(tmp_path / 'runs')}]", f"--output={tmp_path}/out"])
    assert not list((tmp_path / "out").glob("*.png"))
    assert "50.00" in (tmp_path / "out/report.html").read_text()


def test_line_holds_the_facts_and_no_place_of_the_machine(tmp_path):
    hardware = {"processor": "A CPU", "gpus": [], "host": "myhost"}
    record = {"hardware": hardware, "command": ["/home/me/run.py", "fit", "--data.source", "/home/me/imdb"]}
    folder = write_run(
        tmp_path / "run", "text", record=record, data__init_args__source="/home/me/imdb",
        data__init_args__data_dir="/home/me/data", trainer__default_root_dir="/home/me/runs",
        trainer__logger={"init_args": {"save_dir": "/home/me/logs"}},
    )  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "checkpoint_sha256": DIGEST}))
    path = write_lines(tmp_path)
    assert "/home" not in path.read_text()
    assert "myhost" not in path.read_text()
    line = json.loads(path.read_text())
    Draft202012Validator(SCHEMA).validate(line)
    assert (line["task"], line["seed"], line["data_hash"], line["steps"]) == ("text", 0, "d", 100)
    assert (line["test_accuracy"], line["test_examples"], line["validation_accuracy"]) == (0.5, 200, 0.5)
    assert line["hours"] == pytest.approx(100 / 3600, abs=1e-6), "a second a step"
    assert line["memory_gb"] == pytest.approx(1.099)
    assert line["checkpoint_sha256"] == DIGEST
    assert line["method"]["class_path"] == "skyformer.attention.SkyformerAttention"
    assert line["config"]["data"]["init_args"]["source"] == "imdb", "that it was not drawn"
    assert line["starts"][0]["command"] == ["run.py", "fit"]


def test_equal_runs_in_other_folders_have_one_hash_and_two_names(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, trainer__default_root_dir=f"/runs/{name}")
    first, second = (json.loads(line) for line in write_lines(tmp_path).read_text().splitlines())
    assert first["config_hash"] == second["config_hash"]
    assert second["name"] == f"{first['name']}-2"
    assert len(read_lines(tmp_path / "lines.jsonl")) == 2


def test_starts_of_two_pretrainings_stay_apart_without_the_folders_of_the_machine(tmp_path):
    for folder in ("/home/me/short", "/home/me/long"):
        start = f"{folder}/text/skyformer/seed0/checkpoints/best.ckpt"
        write_run(tmp_path / folder[-4:], model__init_from=start)
    path = write_lines(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["config_hash"] != lines[1]["config_hash"]
    kept = {line["config"]["model"]["init_from"].partition("/")[2] for line in lines}
    assert kept == {"text/skyformer/seed0/checkpoints/best.ckpt"}
    assert len(group_runs(read_lines(path))) == 2


def test_start_in_a_short_path_keeps_its_name_alone(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, model__init_from=f"/home/{name}/best.ckpt")
    starts = [run.config["model"]["init_from"] for run in read_lines(write_lines(tmp_path))]
    assert len(set(starts)) == 2
    assert all(re.fullmatch(r"[0-9a-f]{8}/best\.ckpt", start) for start in starts)


def test_settings_that_json_lacks_become_text(tmp_path):
    odd = {"data__init_args__source": ["/home/me/a", "b"], "trainer__gradient_clip_val": float("inf")}
    write_run(tmp_path / "run", model__class_weights={1: date(2026, 1, 1)}, **odd)
    (run,) = read_lines(write_lines(tmp_path))
    assert run.config["data"]["init_args"]["source"] == ["a", "b"]
    assert run.config["trainer"]["gradient_clip_val"] == "inf"
    assert run.config["model"]["class_weights"] == {"1": "2026-01-01"}


def test_run_without_test_or_record_has_no_line(tmp_path):
    write_run(tmp_path / "untested", accuracy=None)
    (write_run(tmp_path / "unknown", attention="softmax") / "record.json").unlink()
    assert write_lines(tmp_path).read_text() == ""


def test_accuracy_rounds_as_it_was_printed(tmp_path):
    """0.72595 in float32 is slightly above it, and in float64 slightly below."""
    write_run(tmp_path / "run", accuracy=0.72595)
    (run,) = read_lines(write_lines(tmp_path))
    assert f"{run.accuracy:.2%}" == "72.60%"
    assert run.line["test_accuracy"] == 0.72595


def without(key):
    return lambda line: line.pop(key)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("seed"), "'seed' is a required property"),
        (lambda line: line.update(test_accuracy="0.7"), "test_accuracy: '0.7' is not of type 'number'"),
        (lambda line: line.update(test_accuracy=72.6), "test_accuracy: 72.6 is greater than the maximum of 1"),
        (lambda line: line.update(schema=2), "schema: 1 was expected"),
        (lambda line: line.update(note=""), "('note' was unexpected)"),
        (lambda line: line.update(hours=float("nan")), "this is not JSON (NaN is not a valid JSON number)"),
        (lambda line: line["starts"][0].update(command="run.py"), "starts[0].command: 'run.py' is not of type 'array'"),
        (lambda line: line["config"]["trainer"].update(max_steps=7), "config_hash: it contradicts config"),
        (lambda line: line["config"].update(data={}), "config: this is not the configuration of a run"),
        (lambda line: line["config"]["model"].update(objective="masked_tokens"), "pretraining has no accuracy"),
        (lambda line: line.update(task="text"), "task: it contradicts config (got 'text', expected 'listops')"),
        (lambda line: line.update(data_hash="e"), "data_hash: it contradicts starts"),
    ],
)
def test_wrong_line_is_refused_with_its_number_and_key(change, said, tmp_path, main, capsys):
    write_run(tmp_path / "run")
    path = write_lines(tmp_path)
    line = json.loads(path.read_text())
    change(line)
    path.write_text(path.read_text() + "\n" + json.dumps(line) + "\n")
    with pytest.raises(SystemExit) as stopped:
        main(["report", f"--runs=[{path}]", f"--output={tmp_path}/out"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert f"{path}:3: " in error
    assert said in error
    assert "Fix: export the run again" in error
    assert not (tmp_path / "out").exists()


def test_all_wrong_lines_are_named(tmp_path):
    write_run(tmp_path / "run")
    path = write_lines(tmp_path)
    path.write_text(path.read_text() * 2 + "{\n")
    with pytest.raises(RunError) as refused:
        read_lines(path)
    first, second = str(refused.value).splitlines()
    assert first.startswith(f"{path}:2: name: ")
    assert f"is that of {path}:1 too" in first
    assert second.startswith(f"{path}:3: this is not JSON (")


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ("\n", "holds no run")])
def test_file_without_lines_is_refused(content, said, tmp_path):
    path = tmp_path / "runs.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=said):
        read_lines(path)


def test_missing_jsonschema_says_what_to_install(tmp_path, monkeypatch):
    write_run(tmp_path / "run")
    path = write_lines(tmp_path)
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(RunError, match=r"pip install -e '\.\[report\]'"):
        read_lines(path)


def test_unknown_data_is_not_comparable(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", attention="softmax", record={"data_hash": None})
    write_run(tmp_path / "c", attention="linformer", record={"data_hash": None})
    known, *unknown = accuracy_rows(group_runs(read_lines(write_lines(tmp_path))))
    assert (known["comparable"], known["remarks"]) == (True, "")
    assert [(row["comparable"], row["remarks"]) for row in unknown] == [(False, "data not known")] * 2
    assert len(cost_rows(group_runs(read_lines(tmp_path / "lines.jsonl")))) == 3


def test_schema_is_valid_and_describes_each_field():
    Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["required"]) == set(SCHEMA["properties"])
    assert all(field["description"].endswith(".") for field in SCHEMA["properties"].values())
    assert (ROOT / "skyformer/report/run.schema.json").exists(), "where the pages say it is"
