"""The files around the code agree with it: lock file, citation, CI, CONTRIBUTING."""

import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_runs import ROOT

import skyformer

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_lock_file_pins_every_dependency_to_an_allowed_version():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines), "names and versions only"
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["optional-dependencies"]
    # MLflow and trackio bring servers, so the tested environment goes without.
    tested = ["docs", "test", *Requirement(extras["test"][0]).extras]
    groups = [PROJECT["dependencies"], *(extras[name] for name in tested)]
    for requirement in (Requirement(text) for group in groups for text in group):
        if requirement.name != "skyformer":
            version = pinned[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version}"


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == skyformer.__version__
    assert citation["license"] == PROJECT["license"]
    assert f"## {skyformer.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_ci_covers_the_supported_versions():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    cases = {(case["python"], case["versions"]) for case in jobs["test"]["strategy"]["matrix"]["include"]}
    supported = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text}
    assert {python for python, _ in cases} == supported
    assert min(supported, key=lambda text: int(text.split(".")[1])) == PROJECT["requires-python"].removeprefix(">=")
    assert {versions for _, versions in cases} == {"lowest-direct", "locked", "highest"}
    assert any(step.get("run") == ".ci/run" for step in jobs["check"]["steps"])


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([\w./]+(?:\.py|\.md|\.yaml|\.toml|/))`|\]\(([\w./-]+)\)", text))
    paths = {path or link for path, link in named}
    assert len(paths) > 10
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]
