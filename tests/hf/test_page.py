"""`docs/huggingface.md` works as it is written."""

import re
from typing import Any

import torch
from tiny_runs import ROOT


def test_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    page = ROOT / "docs/huggingface.md"
    names: dict[str, Any] = {}
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL))
    exec(compile(code, str(page), "exec"), names)
    assert names["vectors"].shape == (2, 300, 64)
    assert names["model"].config.skyformer["num_landmarks"] == 128
    assert names["scores"].shape == (1, 2)
    assert torch.equal(names["scores"], names["classifier"](names["tokens"]))
    assert {path.name for path in (tmp_path / "text-skyformer").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
