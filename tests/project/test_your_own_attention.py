"""`docs/your-own-attention.md` works as it is written."""

import re
import sys

import torch
from tiny_runs import ROOT

TEXT = (ROOT / "docs/your-own-attention.md").read_text()


def block(language: str) -> str:
    """The only block of code in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    return found


def test_backend_in_a_file_outside_the_package(tmp_path, main, tiny_arguments, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_attention.py").write_text(block("python"))
    (tmp_path / "my_attention.yaml").write_text(block("yaml"))
    command = block("bash").split()
    assert command[:3] == ["python", "run.py", "fit"]
    named = [part for part in command[3:] if part.endswith(".yaml")]
    assert named == ["configs/listops.yaml", "my_attention.yaml"]
    given = [a for a in tiny_arguments("listops", tmp_path) if "default_root_dir" not in a]
    given.insert(1, "--config=my_attention.yaml")
    cli = main(["fit", *given, "--trainer.max_steps=3"])
    assert cli.trainer.global_step == 3
    assert "runs/listops/loudness/seed0" in TEXT
    assert (tmp_path / "runs/listops/loudness/seed0/checkpoints/last.ckpt").exists()
    backend = cli.model.encoder.blocks[0].attention.backend
    assert type(backend) is sys.modules["my_attention"].LoudnessAttention
    assert (backend.loudness != 0.5).any(), "it was trained from where the YAML says"
    assert (backend.loudness - 0.5).abs().max() < 0.1


def test_it_keeps_its_promises(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "promising_attention.py").write_text(block("python"))
    from promising_attention import LoudnessAttention

    backend = LoudnessAttention(2, 4, 16)
    query, key, value = torch.randn(3, 2, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 5])[:, None]
    out = backend(query, key, value, mask)
    alone = backend(query[1:, :, :5], key[1:, :, :5], value[1:, :, :5], None)
    torch.testing.assert_close(out[1:, :, :5], alone)
