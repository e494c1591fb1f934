"""The leaderboard is that of `docs/results/runs.jsonl`, and so are the accuracies in README and docs."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_runs import ROOT, write_run

from skyformer.report import published
from skyformer.report.groups import group_runs
from skyformer.report.leaderboard import leaderboard
from skyformer.report.lines import ListedRun, lines_of, read_lines
from skyformer.report.runs import find_runs

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[(\d\d\.\d\d)(?: %)?\]\((?:docs/)?leaderboard\.md#([^)]+)\)")


@pytest.fixture(scope="module")
def runs() -> dict[str, ListedRun]:
    """The published runs by name."""
    return {run.line["name"]: run for run in read_lines(ROOT / "docs/results/runs.jsonl")}


def test_committed_page_is_that_of_the_runs(runs):
    page = leaderboard(group_runs([*runs.values()]), lines_of(runs.values()))
    written = (ROOT / "docs/leaderboard.md").read_text()
    assert page == written, "CONTRIBUTING.md shows how to write it"


def rows(page: Path) -> Iterator[dict[str, str]]:
    """The rows of a page's tables, by the heads of their columns."""
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), flags=re.MULTILINE):
        head, _, *lines = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines())
        yield from (dict(zip(head, line, strict=False)) for line in lines)


def test_accuracies_of_the_pages_are_those_of_the_runs(runs):
    found = [link for page in PAGES for link in LINK.findall(page.read_text())]
    assert len(found) > 15
    assert {name for _, name in found} <= runs.keys()
    assert [(number, name) for number, name in found if number != f"{100 * (runs[name].accuracy or 0):.2f}"] == []


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_each_test_accuracy_links_to_its_run(page, runs):
    tested = [row for row in rows(ROOT / page) if {"test accuracy", "test, %"} & row.keys()]
    assert len(tested) >= 5
    for row in tested:
        cell = row.get("test accuracy") or row["test, %"]
        if cell in ("-", "at chance when stopped after 500 steps", "validation 55.7 after 750 steps"):
            continue  # not tested
        match = LINK.fullmatch(cell)
        assert match, row
        run = runs[match[2]]
        validation = row.get("validation, %") or row.get("best validation, %")
        assert validation in (None, f"{100 * run.best_validation:.2f}"), row
        paper = row.get("paper, %") or row.get("paper", "").removesuffix(" %")
        assert paper in ("", "-", f"{published.accuracy(run.backend, run.task):.2f}"), row
        if "of" in (steps := row.get("steps", "")):
            assert steps == f"{run.steps:,} of {run.examples_per_step}", row


def test_percentages_of_the_readme_are_of_runs_or_of_the_paper(runs):
    known = {f"{100 * (run.accuracy or 0):.2f}" for run in runs.values()}
    papers = {published.accuracy(run.backend, run.task) for run in runs.values()} - {None}
    known |= {f"{accuracy:.2f}" for accuracy in papers}
    guessing = "50.29"  # of the most frequent label of Pathfinder's test set
    assert set(re.findall(r"\d\d\.\d\d(?= ?%)", PAGES[0].read_text())) <= known | {guessing}


@pytest.mark.parametrize("name", ["image-g", "pathfinder-h"])
def test_published_weights_are_those_of_the_run(name, runs):
    published_file = ROOT / f"docs/results/{runs[name].task}.ckpt"
    assert hashlib.sha256(published_file.read_bytes()).hexdigest() == runs[name].line["checkpoint_sha256"]


def test_comparable_runs_come_first_and_the_best_is_bold(tmp_path):
    write_run(tmp_path / "short", attention="linformer", accuracy=0.9, steps=60)
    for seed in range(2):
        write_run(tmp_path / f"sky{seed}", seed=seed, accuracy=0.6 + seed / 10)
        write_run(tmp_path / f"soft{seed}", attention="softmax", seed=seed, accuracy=0.4)
    write_run(tmp_path / "untested", attention="informer", accuracy=None)
    found, _ = find_runs([tmp_path])
    (tmp_path / "page.md").write_text(leaderboard(group_runs(found), lines_of(found)))
    first, second, third, *_ = [row for row in rows(tmp_path / "page.md") if "test, %" in row]
    assert (first["method"], first["test, %"]) == ("Skyformer", "**65.00 ± 7.07 (n=2)**")
    assert (second["method"], second["test, %"]) == ("Softmax", "40.00 ± 0.00 (n=2)")
    assert (third["method"], third["test, %"], third["steps"]) == ("Linformer", "90.00", "60 of 32")
    assert third["differs in"].startswith("1 of 2 seeds; 60 of 100 steps")
    names = re.findall(r"\[`([^`]+)`\]\(#\1\)", first["run"])
    assert len(names) == 2
    text = (tmp_path / "page.md").read_text()
    assert all(f'<details markdown="1" id="{name}">' in text for name in names)
    assert "| Informer" not in text, "not tested"
