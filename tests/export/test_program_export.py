"""`export --output model.pt2`: a program that gives the model's scores for any batch size and length."""

import subprocess
import sys

import pytest
import torch

from skyformer.loading import load_model

long = pytest.mark.long  # tracing takes 10 to 20 seconds
WITH_A_PROGRAM = ("skyformer", "kernelized", "softmax", "nystromformer", "linformer", "performer")
WITHOUT = ("bigbird", "informer", "reformer")
ALONE = """
import sys, torch
tokens, mask = torch.load(sys.argv[2])
torch.save(torch.export.load(sys.argv[1]).module()(tokens, mask), sys.argv[3])
assert "skyformer" not in sys.modules
"""


@pytest.fixture
def checkpoint(tmp_path, main, tiny_arguments):
    def train(task: str, attention: str, *options: str):
        arguments = tiny_arguments(task, tmp_path / "run", f"attention/{attention}")
        main(["fit", *arguments, *options, "--model.num_layers=1"])
        return tmp_path / "run/checkpoints/last.ckpt"

    return train


@long
@pytest.mark.parametrize("attention", WITH_A_PROGRAM)
def test_program_gives_the_model_s_scores(attention, checkpoint, tmp_path, main):
    path = checkpoint("pathfinder", attention)
    main(["export", f"--ckpt_path={path}", f"--output={tmp_path}/model.pt2"])
    program, model = torch.export.load(tmp_path / "model.pt2").module(), load_model(path)
    for batch, length in ((1, 1024), (4, 1024), (3, 100), (2, 64), (5, 333)):
        tokens, mask = torch.randint(256, (batch, length)), torch.rand(batch, length) < 0.4
        mask[:, 0] = True
        with torch.no_grad():
            assert torch.allclose(program(tokens, mask), model(tokens, mask), atol=1e-5), (batch, length)


@long
def test_program_of_a_recipe_s_network(checkpoint, tmp_path, main):
    options = ["--model.positions=rotary_2d", "--model.position_init=normal", "--model.pooling=attention"]
    path = checkpoint("pathfinder", "skyformer", *options, "--model.norm=rms", "--model.feed_forward=geglu")
    main(["export", f"--ckpt_path={path}", f"--output={tmp_path}/model.pt2"])
    program, model = torch.export.load(tmp_path / "model.pt2").module(), load_model(path)
    tokens, mask = torch.randint(256, (3, 100)), torch.rand(3, 100) < 0.4
    with torch.no_grad():
        assert torch.allclose(program(tokens, mask), model(tokens, mask), atol=1e-5)


@long
def test_two_documents_and_a_process_without_the_project(checkpoint, tmp_path, main):
    path = checkpoint("retrieval", "skyformer")
    main(["export", f"--ckpt_path={path}", f"--output={tmp_path}/model.pt2"])
    tokens, mask = torch.randint(1, 257, (3, 2, 128)), torch.rand(3, 2, 128) < 0.5
    torch.save((tokens, mask), tmp_path / "inputs.pt")
    arguments = [str(tmp_path / name) for name in ("model.pt2", "inputs.pt", "scores.pt")]
    subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True, cwd=tmp_path)
    with torch.no_grad():
        assert torch.allclose(torch.load(tmp_path / "scores.pt"), load_model(path)(tokens, mask), atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("attention", WITHOUT)
def test_attention_without_a_program_is_refused(attention, checkpoint, tmp_path, main, capsys):
    path = checkpoint("pathfinder", attention)
    with pytest.raises(SystemExit) as stopped:
        main(["export", f"--ckpt_path={path}", f"--output={tmp_path}/model.pt2"])
    assert stopped.value.code == 1
    assert "has no program for all batch sizes and lengths" in capsys.readouterr().err
    assert not (tmp_path / "model.pt2").exists()


def test_half_precision_program_is_refused(checkpoint, tmp_path, main, capsys):
    path = checkpoint("listops", "skyformer")
    with pytest.raises(SystemExit):
        main(["export", f"--ckpt_path={path}", f"--output={tmp_path}/model.pt2", "--half=true"])
    assert "--half: a program is in float32" in capsys.readouterr().err


def test_loaded_model_leaves_the_generator_alone(checkpoint):
    path = checkpoint("listops", "skyformer")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = load_model(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(weight, saved[name]) for name, weight in model.state_dict().items())
