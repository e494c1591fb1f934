"""The accuracy of each kind of test examples: rows, picture, and results that are not usable."""

import csv

import pytest
from report_runs import groups_in, write_run

from skyformer.report.cases import case_rows, draw_cases
from skyformer.report.command import run_report
from skyformer.report.runs import find_runs

CASES = ("32 tokens, 2 pairs", "32 tokens, 4 pairs")


def write(folder, attention: str, seed: int, *accuracies: float) -> None:
    cases = dict(zip(CASES, accuracies, strict=True))
    write_run(folder / f"{attention}{seed}", "mqar", attention, seed, by_case=cases)


def test_rows_have_the_mean_over_seeds(tmp_path):
    write(tmp_path, "skyformer", 0, 0.5, 0.2)
    write(tmp_path, "skyformer", 1, 0.7, 0.2)
    write(tmp_path, "softmax", 0, 1.0, 0.9)
    rows = {(row["method"], row["case"]): row for row in case_rows(groups_in(tmp_path))}
    first = rows["Skyformer", CASES[0]]
    assert (first["accuracy_mean"], first["n"]) == (60.0, 2)
    assert first["accuracy_std"] == pytest.approx(14.1421, abs=1e-4)
    assert rows["Softmax", CASES[1]] | {"accuracy_mean": 90.0, "accuracy_std": "", "n": 1} == rows["Softmax", CASES[1]]
    assert len(rows) == 4


def test_report_has_the_picture_and_the_rows(tmp_path):
    write(tmp_path / "runs", "skyformer", 0, 0.5, 0.2)
    write_run(tmp_path / "runs/text", "text")
    run_report([f"--runs=[{tmp_path}/runs]", f"--output={tmp_path}/report"])
    assert "Test accuracy on each kind of examples" in (tmp_path / "report/report.html").read_text()
    assert (tmp_path / "report/accuracy_by_case.png").stat().st_size > 1000
    with (tmp_path / "report/accuracy_by_case.csv").open() as file:
        assert [(row["task"], row["case"], float(row["accuracy_mean"])) for row in csv.DictReader(file)] == [
            ("mqar", CASES[0], 50.0),
            ("mqar", CASES[1], 20.0),
        ]


def test_nothing_is_drawn_for_tasks_without_kinds(tmp_path):
    write_run(tmp_path / "runs", "text")
    groups = groups_in(tmp_path)
    assert case_rows(groups) == []
    assert not draw_cases(groups, tmp_path / "picture.png")


@pytest.mark.parametrize("by_case", [{CASES[0]: 1.5}, {CASES[0]: "0.5"}, [0.5]])
def test_unusable_accuracies_are_not_counted(by_case, tmp_path):
    write_run(tmp_path / "run", "mqar", by_case=by_case)
    (run,), problems = find_runs([tmp_path])
    assert run.accuracy is None
    assert run.accuracy_by_case == {}
    assert any("counted as not tested" in problem for problem in problems)
