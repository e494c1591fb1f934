"""A trained model as a folder for the Hugging Face hub."""

import json
import re
import subprocess

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from tiny_runs import ROOT

import skyformer
from skyformer.hf.hub import HubClassifier
from skyformer.model.checkpoint_io import read_checkpoint

FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, main, tiny_arguments):
    folder = tmp_path_factory.mktemp("run")
    main(["fit", *tiny_arguments("listops", folder), "--test_after_fit=true"])
    return folder


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    HubClassifier.from_checkpoint(run / "checkpoints/best.ckpt").save_pretrained(folder)
    return folder


def test_saved_model_gives_the_checkpoints_scores(run, saved):
    assert {path.name for path in saved.iterdir()} == FILES
    loaded = HubClassifier.from_pretrained(saved)
    assert not loaded.training
    model = skyformer.load_model(run / "checkpoints/best.ckpt")
    tokens = torch.randint(1, 15, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(40) < torch.tensor([[40], [23]])
    assert torch.equal(loaded(tokens, mask), model(tokens, mask))


def test_card_of_another_task_does_not_name_the_arena(run):
    model = HubClassifier.from_checkpoint(run / "checkpoints/best.ckpt")
    assert "long-range-arena" in model.generate_model_card().data.tags
    model._hub_mixin_config["run"]["task"] = "MQAR"
    card = model.generate_model_card()
    assert card.data.eval_results[0].dataset_name == "MQAR"
    assert "long-range-arena" not in card.data.tags
    assert "not one of Long Range Arena" in card.text


def test_card_says_what_was_trained_and_how_well(run, saved):
    result = json.loads((run / "result.json").read_text())
    card = ModelCard.load(saved / "README.md")
    assert card.data.library_name == "skyformer"
    (evaluation,) = card.data.eval_results
    assert (evaluation.dataset_name, evaluation.metric_type) == ("Long Range Arena: ListOps", "accuracy")
    assert evaluation.metric_value == result["test/accuracy"]
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (.*) \|$", card.text, flags=re.MULTILINE))
    step = read_checkpoint(run / "checkpoints/best.ckpt")["global_step"]
    assert (rows["task"], rows["method"], rows["steps"], rows["seed"]) == ("ListOps", "Skyformer", str(step), "0")
    assert rows["test accuracy"].startswith(f"{result['test/accuracy']:.2%} on 13 examples; guessing gives ")
    assert "brackets=True" in rows["protocol"]
    record = json.loads((run / "record.json").read_text())[-1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert record["code"]["commit"] == (commit.stdout.strip() or None)
    assert rows["commit"].startswith(record["code"]["commit"] or "unknown")
    assert record["versions"]["torch"] in rows["versions"]
    assert rows["command"].startswith("`")


def test_folder_names_no_place_of_this_machine(run, saved, data_dir):
    for name in ("README.md", "config.json"):
        text = (saved / name).read_text()
        assert str(run.parent) not in text
        assert str(data_dir) not in text


def test_missing_weight_is_refused(saved, tmp_path):
    weights = load_file(saved / "model.safetensors")
    weights.pop("classifier.encoder.norm.weight")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    with pytest.raises(RuntimeError, match=r"Missing key.*classifier.encoder.norm.weight"):
        HubClassifier.from_pretrained(tmp_path)


def test_parameters_that_layers_share_are_shared_again(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    config["model"]["attention"] = {"class_path": "skyformer.attention.LinformerAttention", "init_args": {}}
    model = HubClassifier(config)
    model.save_pretrained(tmp_path)
    loaded = HubClassifier.from_pretrained(tmp_path)
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_push_uploads_the_same_files(saved, monkeypatch):
    uploaded = {}

    def upload(self, *, repo_id, folder_path, **_):
        uploaded[repo_id] = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        return "url"

    def create(self, *, repo_id, **_):
        return type("Repository", (), {"repo_id": repo_id})

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    HubClassifier.from_pretrained(saved).push_to_hub("me/listops")
    assert uploaded["me/listops"] == {name: (saved / name).read_bytes() for name in FILES}


def test_export_writes_the_folder(run, saved, tmp_path, main, capsys):
    best = f"--ckpt_path={run}/checkpoints/best.ckpt"
    main(["export", best, f"--output={tmp_path}/model/"])
    assert f"HubClassifier.from_pretrained('{tmp_path}/model')" in capsys.readouterr().out
    for name in FILES:
        assert (tmp_path / "model" / name).read_bytes() == (saved / name).read_bytes()
    for extra, said in (([], "exists and is not an empty folder. Fix: "), (["--half=true"], "--half: a folder is in")):
        with pytest.raises(SystemExit):
            main(["export", best, f"--output={tmp_path}/model/", *extra])
        assert said in capsys.readouterr().err


def test_checkpoint_that_was_not_tested_says_so(run, tmp_path):
    HubClassifier.from_checkpoint(run / "checkpoints/last.ckpt").save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None
    assert "| test accuracy | not tested |" in card.text
