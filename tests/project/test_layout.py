"""Imports run one way: ops → attention → model → training → commands; `datamodules` needs nothing of `skyformer`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import ROOT

# Each layer may import itself, those before it, and the modules that import nothing of this project.
LAYERS = ("ops", "attention", "model", "training")
SHARED = {"exceptions", "files", "installation", "internals", "yaml_text"}


def imported_by(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_datamodules_import_nothing_of_skyformer():
    modules = (ROOT / "datamodules").rglob("*.py")
    assert not [path for path in modules for name in imported_by(path) if name.partition(".")[0] == "skyformer"]


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_imports_lower_layers_only(layer):
    allowed = SHARED | set(LAYERS[: LAYERS.index(layer) + 1])
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in (ROOT / "skyformer" / layer).rglob("*.py")
        for name in imported_by(path)
        if name.startswith("skyformer.") and name.split(".")[1] not in allowed
    }
    assert not found


def test_shared_modules_import_no_layer():
    for module in SHARED:
        names = imported_by(ROOT / f"skyformer/{module}.py")
        assert {name.split(".")[1] for name in names if name.startswith("skyformer.")} <= SHARED


def test_mathematics_imports_no_lightning():
    packages = "skyformer.ops, skyformer.attention, skyformer.model.encoder, skyformer.hf"
    others = {"lightning", "triton", "transformers", "datamodules"}
    code = (
        "import sys, skyformer; assert 'torch' not in sys.modules; "
        "skyformer.gaussian_attention, skyformer.nystrom_gaussian_attention, skyformer.Encoder; "
        f"import {packages}; assert 'torch' in sys.modules and not {others} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
