"""What `report` writes: forms of a table, the page; and what it makes of damage."""

import csv
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser

import pytest
from report_runs import write_run
from rich.console import Console

from skyformer.report.groups import group_runs
from skyformer.report.page import make_page
from skyformer.report.runs import find_runs
from skyformer.report.table import Cell, Table, print_table, to_latex, to_markdown

TABLE = Table(
    "A & B",
    ("Method", "List_Ops"),
    (("a_b, lr=1", (Cell("1.00 ± 0.10 (n=2)", ("batch 16, not 32", "paper 2.00, −1.00 (a)"), True),)),
     ("<c|d>", (Cell("0.50"),))),
    ("50 % of {x}.",),
)  # fmt: skip


def test_markdown_shows_signs_as_they_are():
    text = to_markdown(TABLE)
    assert r"| a\_b, lr=1 | **1.00 ± 0.10 (n=2)**<br>batch 16, not 32<br>paper 2.00, −1.00 (a) |" in text
    assert r"\<c\|d>" in text


def test_latex_has_no_sign_that_it_would_read():
    text = to_latex(TABLE)
    assert r"\textbf{1.00 $\pm$ 0.10 (n=2)} \\ batch 16, not 32 \\ paper 2.00, $-$1.00 (a)" in text
    assert r"\caption{A \& B}" in text
    assert r"50 \% of \{x\}." in text
    assert text.isascii()
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


class _Checker(HTMLParser):
    """Tags that are open, all that were met, and what they refer to."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.met, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.met.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_closed_and_says_what_heads_what():
    text = make_page([TABLE], {}, [], [], [])
    assert _Checker(text).open == []
    assert '<th scope="row">&lt;c|d&gt;</th>' in text
    assert "<strong>1.00 ± 0.10 (n=2)</strong><small>batch 16, not 32</small>" in text


@pytest.mark.parametrize("width", [80, 200])
def test_table_on_the_screen_is_whole_and_no_wider(width, capsys):
    columns = ("Method", *"ABCDEFG")
    row = (
        "Skyformer, num_landmarks=128",
        tuple(Cell(f"{n}.00 ± 0.10 (n=3)", ("paper 61.23, −1.00",)) for n in range(7)),
    )
    print_table(Table("T", columns, (row,), ("word " * 40,)), Console(width=width))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert [f"{n}.00 ± 0.10 (n=3)" in "\n".join(lines) for n in range(7)] == [True] * 7
    assert sum("num_landmarks" in line for line in lines) == (4 if width == 80 else 1)


def test_report_writes_everything_and_a_page_that_needs_nothing_else(tmp_path, main, capsys):
    for attention in ("softmax", "skyformer"):
        write_run(
            tmp_path / "runs" / attention, attention=attention, record={"command": ["run.py", "fit", "--a", "b c"]}
        )
    write_run(tmp_path / "runs/text", task="text", accuracy=None)
    main(["report", f"--runs=[{tmp_path}/runs]", f"--output={tmp_path}/out"])
    assert "50.00 (n=1)" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *(f"{name}.{ending}" for name in ("accuracy", "cost") for ending in ("md", "tex", "csv")),
        *(f"{quantity}_against_{axis}.png" for quantity in ("accuracy", "loss") for axis in ("time", "steps")),
        *("runs.csv", "training.md", "loss_curves.png", "report.html", "runs.jsonl", "leaderboard.md"),
    }
    page = _Checker((tmp_path / "out/report.html").read_text())
    assert page.open == []
    assert page.met.count("img") == 5
    assert page.met.count("details") == 3
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "script" not in page.met
    text = (tmp_path / "out/report.html").read_text()
    assert "python run.py fit --a 'b c'" in unescape(text)
    with (tmp_path / "out/runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["method"], row["test_accuracy"], row["best_validation_accuracy"]) for row in rows] == [
        ("text", "Skyformer", "", "0.5"),
        ("listops", "Skyformer", "0.5", "0.5"),
        ("listops", "Softmax", "0.5", "0.5"),
    ]


def test_tensorboard_and_csv_logs_say_the_same(tmp_path, main, tiny_arguments):
    for name, logger in (("events", "TensorBoardLogger"), ("table", "CSVLogger")):
        logger = f"--trainer.logger=skyformer.training.loggers.{logger}"
        main(["fit", *tiny_arguments("listops", tmp_path / name), logger, "--test_after_fit=true"])
    runs, problems = find_runs([tmp_path])
    assert problems == []
    events, table = runs
    for name in ("train/loss", "val/accuracy", "val/loss"):
        assert events.curve(name).step.tolist() == table.curve(name).step.tolist()
        assert events.curve(name).value == pytest.approx(table.curve(name).value)
    assert events.steps == table.steps == 9
    written = json.loads((tmp_path / "table/result.json").read_text())["test/accuracy"]
    assert events.accuracy == table.accuracy == pytest.approx(written, abs=1e-6)
    (group,) = group_runs(runs)
    assert group.repeated_seeds == [0]


@pytest.fixture(scope="module")
def event_run(tmp_path_factory, main, tiny_arguments):
    folder = tmp_path_factory.mktemp("events") / "run"
    main(["fit", *tiny_arguments("listops", folder), "--trainer.logger=skyformer.training.loggers.TensorBoardLogger"])
    return folder


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_event_file_is_named_and_read_up_to_there(damage, event_run, tmp_path, main, capsys):
    run = tmp_path / "run"
    shutil.copytree(event_run, run)
    (path,) = run.glob("events.*")
    content = bytearray(path.read_bytes())
    middle = content.rindex(b"train/loss")
    if damage == "cut":
        del content[middle:]
    else:
        content[middle] ^= 1
    path.write_bytes(content)
    write_run(tmp_path / "whole", attention="softmax")
    main(["report", f"--runs=[{tmp_path}]", f"--output={tmp_path}/out"])
    assert f"{run}: an event file is damaged" in capsys.readouterr().err
    (damaged,) = [run for run in find_runs([tmp_path])[0] if run.backend == "skyformer"]
    assert 0 < len(damaged.curve("train/loss").step) < 9
    assert "an event file is damaged" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("result.json", "{", "result.json is damaged"),
        ("result.json", '{"test/accuracy": 40}', "result.json holds no accuracies from 0 to 1"),
        ("result.json", '{"test/accuracy": NaN}', "result.json holds no accuracies from 0 to 1"),
        ("record.json", "[1]", "record.json holds no list of records"),
        ("record.json", '[{"hardware": 1}]', "record.json holds no list of records"),
        ("record.json", None, "no record.json"),
        ("config.yaml", "a: [", "config.yaml is not the configuration of a run"),
        ("config.yaml", "data: {class_path: x}", "config.yaml is not the configuration of a run"),
        (
            "config.yaml",
            "{data: {class_path: x}, model: {attention: {class_path: y}}, trainer: {max_steps: z}}",
            "(inv",
        ),
        ("metrics.csv", "step,train/loss\n9,2.0\n19,\0x", "metrics.csv: 1 damaged line(s) left out"),
        ("metrics.csv", "", None),
        ("metrics.csv", None, None),
    ],
)
def test_damage_is_named_and_the_rest_goes_on(name, content, said, tmp_path, main, capsys, monkeypatch):
    monkeypatch.setattr("skyformer.report.command._draw", lambda *args: {})  # pictures take most of the time
    folder = write_run(tmp_path / "runs/damaged")
    write_run(tmp_path / "runs/whole", attention="softmax", accuracy=0.25)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    main(["report", f"--runs=[{tmp_path}/runs]", f"--output={tmp_path}/out"])
    captured = capsys.readouterr()
    assert "25.00 (n=1)" in captured.out
    assert re.findall(r"Traceback", captured.err) == []
    if said:
        assert f"{folder}" in captured.err
        assert said in captured.err
