"""README and the pages in `docs/` agree with the code and with each other."""

import importlib.util
import re
import subprocess
import sys

import pytest
from tiny_runs import ROOT

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 120


def test_readme_python_prints_what_it_says(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len([line for line in block.splitlines() if line]) == 5
    exec(compile(block, str(README), "exec"), {})
    promised = re.search(r"# ([\d.]+)$", block.rstrip())
    assert promised is not None
    assert f"tensor({promised[1]}" in capsys.readouterr().out


def test_readme_links_lead_to_files():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert len(links) > 20
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda path: path.stem)
def test_named_files_exist(page):
    named = re.findall(r"(?<![\w./<>])(?:skyformer|datamodules|configs|tests|docs)/[\w./-]*[\w/]", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings_handlers") is None, reason="needs pip install -e '.[docs]'")
def test_site_builds_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    api = (tmp_path / "api/index.html").read_text()
    assert "skyformer.gaussian_attention" in api
    assert "datamodules.Pathfinder" in api


def commands() -> list[list[str]]:
    """The arguments of each command line that runs as it is written, with shell variables replaced."""
    script = 'python() { printf \'%s\\n\' "$@"; echo; }\nskyformer() { python run.py "$@"; }\n'
    found = set()
    for page in (README, *PAGES):
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            if not re.search(r"<\w+>|my_|^for |^#!", block, flags=re.MULTILINE):  # to fill in, or run by another test
                printed = subprocess.run(
                    ["/bin/bash", "-c", script + block], env={"PATH": ""}, capture_output=True, text=True, check=False
                )
                found |= {tuple(lines.splitlines()[1:]) for lines in printed.stdout.split("\n\n") if "run.py" in lines}
    return sorted([*command] for command in found)


COMMANDS = commands()


def test_commands_are_found():
    assert len(COMMANDS) > 40
    assert any("configs/results/text.yaml" in command for command in COMMANDS), "of a shell variable"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] in ("fit", "test")], ids=" ".join)
def test_lightning_command_parses(command, main, capsys, monkeypatch):
    """Each key is known and each value has the right type. Nothing is run."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        main(command if any("help" in word for word in command) else [*command, "--print_config"])
    assert stopped.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] not in ("fit", "test")], ids=" ".join)
def test_options_of_other_command_exist(command, main, capsys):
    with pytest.raises(SystemExit):
        main([*command[: 2 if command[0] == "study" else 1], "--help"])
    options = capsys.readouterr().out
    own = [word for word in command if re.fullmatch(r"--\w+", word)]  # others are a task's or submitit's
    assert not [option for option in own if option not in options]
