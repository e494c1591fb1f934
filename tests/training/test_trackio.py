"""Curves to trackio, on this machine: one run of trackio for a run and all its resumes."""

from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("trackio") is None, reason="trackio is not installed: pip install -e '.[trackio]'"
)


def test_resume_and_test_continue_the_run(tmp_path, main, tiny_arguments, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which trackio reads when it is imported
    from trackio.sqlite_storage import SQLiteStorage

    overlay = tiny_arguments("listops", tmp_path / "run", "trainer/trackio")
    arguments = [argument for argument in overlay if not argument.startswith("--trainer.logger")]

    def runs_after(command, *extra):
        main([command, *arguments, *extra])
        return SQLiteStorage.get_runs("skyformer")

    (first,) = runs_after("fit", "--trainer.max_steps=3")
    assert first == (tmp_path / "run/trackio_id.txt").read_text()
    assert first.startswith("-".join([*tmp_path.parts[-2:], "run"]))
    assert SQLiteStorage.get_run_config("skyformer", first)["embed_dim"] == 16
    assert runs_after("fit", "--trainer.max_steps=6", "--ckpt_path=last") == [first]
    assert runs_after("test") == [first]
    rows = SQLiteStorage.get_logs("skyformer", first)
    assert sorted({row["step"] for row in rows if "train/loss" in row}) == list(range(6))
    assert any("test/accuracy" in row for row in rows)
