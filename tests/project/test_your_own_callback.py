"""`docs/your-own-callback.md` works as it is written."""

import csv
import re
import sys

from tiny_runs import ROOT

from skyformer.training import callbacks

PAGE = (ROOT / "docs/your-own-callback.md").read_text()


def test_callback_of_the_page_logs(tmp_path, monkeypatch, main, tiny_arguments):
    for language, name in (("python", "my_callback.py"), ("yaml", "my_callback.yaml")):
        (tmp_path / name).write_text(re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1])
    monkeypatch.syspath_prepend(tmp_path)
    main(["fit", *tiny_arguments("listops", tmp_path / "run"), f"--config={tmp_path / 'my_callback.yaml'}"])
    sys.modules.pop("my_callback")
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["weights/norm"]]
    assert steps == list(range(9))


def test_page_names_the_callbacks_with_settings():
    named = set(re.findall(r"`(\w+)`", PAGE)) & set(dir(callbacks))
    assert named >= {"LastCheckpoint", "BestCheckpoint", "NonFiniteLoss", "PredictionWriter", "RunConfig"}
