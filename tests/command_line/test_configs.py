"""Every shipped YAML parses, those that a test machine can run take a step, and overlays go with every task."""

import re

import pytest
import torch
import yaml
from tiny_runs import ROOT, TINY_DATA

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
TASKS = sorted(TINY_DATA)
ATTENTIONS = sorted(path.stem for path in (ROOT / "configs/attention").glob("*.yaml"))
# What a test machine may lack: a GPU, a C++ compiler's minute, a second process (its own test), an account, a package.
NOT_HERE = {"fp16", "compile", "ddp", "gpu", "wandb", "mlflow", "trackio"}
RECIPES = sorted((ROOT / "configs/recipe").rglob("*.yaml"))
OVERLAYS = sorted(path.stem for path in (ROOT / "configs/trainer").glob("*.yaml") if path.stem not in NOT_HERE)


def test_every_task_has_a_tiny_version():
    assert sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")) == TASKS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_first_line_is_the_command_that_runs_it(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith(("# python run.py fit --config configs/", "# python run.py sweep --grid configs/"))
    named = re.findall(r"--(?:config|grid) (\S+)", first)
    assert all((ROOT / name).is_file() for name in named)
    assert str(path.relative_to(ROOT)) in named


# With dropout on their weights these go through all 16,384² of them on Path-X, for which a test has no time.
DENSE = {"softmax", "kernelized"}
PAIRS = [(task, attention) for task in TASKS for attention in ATTENTIONS if task != "pathx" or attention not in DENSE]


def every_task_and_method_once(task: str, attention: str) -> bool:
    return attention == "skyformer" or task == "listops"


@pytest.mark.parametrize(
    ("task", "attention"),
    [pytest.param(*pair, marks=() if every_task_and_method_once(*pair) else pytest.mark.long) for pair in PAIRS],
)
def test_attention_trains_on_task(task, attention, tmp_path, main, tiny_arguments):
    arguments = tiny_arguments(task, tmp_path, f"attention/{attention}")
    one_step = ["--trainer.max_steps=1", "--model.lr_scheduler.init_args.warmup_steps=0"]
    cli = main(["fit", *arguments, *one_step])
    assert cli.trainer.global_step == 1
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    assert attention in type(cli.model.encoder.blocks[0].attention.backend).__name__.lower()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_trainer_overlay_takes_effect(overlay, tmp_path, main, tiny_arguments):
    arguments = [a for a in tiny_arguments("listops", tmp_path, f"trainer/{overlay}") if "trainer.logger" not in a]
    if overlay == "quick":
        arguments.append("--model.lr_scheduler.init_args.warmup_steps=2")
    cli = main(["fit", *arguments, "--trainer.max_steps=3"])
    assert cli.trainer.global_step == 3
    effects = {
        "accumulate": lambda: cli.trainer.accumulate_grad_batches == 4 and cli.trainer.gradient_clip_val == 1.0,
        "bf16": lambda: cli.trainer.precision == "bf16-mixed",
        "csv": lambda: (tmp_path / "metrics.csv").exists(),
        "ema": lambda: any(c.state_dict().get("latest_update_step") == 3 for c in cli.trainer.callbacks),
        "skip_non_finite": lambda: cli.config.fit.non_finite_loss.action == "skip",
        "top_three": lambda: (tmp_path / "checkpoints/top-step3.ckpt").exists(),
        "early_stopping": lambda: cli.trainer.early_stopping_callback.patience == 10,
        "quick": lambda: (tmp_path / "result.json").exists(),
        "short_comparison": lambda: cli.trainer.optimizers[0].defaults["lr"] == 1e-3,
    }
    assert effects[overlay]()


@pytest.mark.parametrize("overlay", sorted(NOT_HERE))
def test_overlay_that_cannot_run_here_parses(overlay, tmp_path, main, tiny_arguments, capsys):
    given = tiny_arguments("listops", tmp_path, f"trainer/{overlay}")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *(argument for argument in given if "trainer.logger" not in argument), "--print_config"])
    assert stopped.value.code == 0
    effect = {
        "fp16": "precision: 16-mixed",
        "compile": "compile: true",
        "ddp": "strategy: ddp",
        "gpu": "cuda_graph: true",
        "wandb": "WandbLogger",
        "mlflow": "MLflowLogger",
        "trackio": "TrackioLogger",
    }
    assert effect[overlay] in capsys.readouterr().out


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            marks=() if path.parent.name == "small" and path.stem in ("listops", "pathfinder") else pytest.mark.long,
            id=f"{path.parent.name}-{path.stem}",
        )
        for path in RECIPES
    ],
)
def test_recipe_trains_at_its_own_size(path, tmp_path, main, tiny_arguments):
    overlay = str(path.relative_to(ROOT / "configs").with_suffix(""))
    given = tiny_arguments(path.stem, tmp_path, overlay)
    sizes = [f"--model.{name}" for name in ("embed_dim", "hidden_dim")]
    arguments = [argument for argument in given if not argument.startswith(tuple(sizes))]
    extra = ["--trainer.max_steps=1", "--model.lr_scheduler.init_args.warmup_steps=0", "--test_after_fit=false"]
    extra.append("--data.init_args.batch_size=1")  # for time
    if path.stem == "pathfinder":
        extra.append("--data.init_args.level_schedule=null")  # longer than one step
    cli = main(["fit", *arguments, *extra])
    recipe = yaml.safe_load(path.read_text())
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    encoder, settings = cli.model.encoder, recipe["model"]
    assert (len(encoder.blocks), encoder.norm.normalized_shape[0]) == (settings["num_layers"], settings["embed_dim"])
    assert encoder.rotary is not None
    assert list(cli.datamodule.chosen_augmentations) == recipe["data"]["init_args"].get("augment", [])
    betas = (0.9, 0.999) if path.match("small/text.yaml") else (0.9, 0.98)
    assert cli.trainer.optimizers[0].defaults["betas"] == betas


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipe_has_the_steps_of_its_epochs(path):
    """As a comment says; the counts are those of the tasks' training sets."""
    examples = {"listops": 96_000, "text": 22_500, "retrieval": 147_086, "image": 45_000, "pathfinder": 160_000}
    steps, epochs = map(int, re.search(r"max_steps: (\d+) # (\d+) epochs", path.read_text()).groups())
    batch_size = yaml.safe_load(path.read_text())["data"]["init_args"]["batch_size"]
    assert steps == epochs * (examples[path.stem] // batch_size)


def test_paper_protocol_after_another_attention_is_refused(tmp_path, main, capsys, tiny_arguments):
    """Its attention settings are Skyformer's; they must not switch the method silently."""
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *tiny_arguments("listops", tmp_path, "attention/softmax", "protocol/paper")])
    assert stopped.value.code == 2
    assert "solver" in capsys.readouterr().err


def test_sizes_come_from_the_data(tmp_path, main, tiny_arguments):
    cli = main(["fit", *tiny_arguments("listops", tmp_path), "--trainer.max_steps=3"])
    assert cli.model.encoder.tokens.num_embeddings == 16
    assert cli.model.encoder.positions.num_embeddings == 64
    assert cli.model.head.layers[-1].out_features == 10


@pytest.mark.parametrize("task", [task for task in TASKS if task != "mqar"])  # the paper has no MQAR
def test_paper_protocol(task, tmp_path, main, tiny_arguments, monkeypatch):
    """What the published numbers need is on, and the run works."""
    cli = main(["fit", *tiny_arguments(task, tmp_path, "protocol/paper"), "--trainer.max_steps=3"])
    backend = cli.model.encoder.blocks[0].attention.backend
    assert (backend.solver, backend.landmark_draw, backend.eval_landmarks) == (
        "newton_schulz",
        "half_and_half",
        "fresh",
    )
    assert backend.ridge == 0.1
    assert cli.model.head.pooling == "padded_mean"
    monkeypatch.setattr(type(cli.datamodule), "published_val_size", 3)
    assert sum(len(batch.label) for batch in cli.datamodule.val_dataloader()) == min(
        3, len(cli.datamodule.splits["val"])
    )
    assert all(len(batch.label) == cli.datamodule.eval_batch_size for batch in cli.datamodule.test_dataloader())
    assert cli.model.encoder.blocks[0].attention.float32_attention
    batch = next(iter(cli.datamodule.train_dataloader()))
    if cli.datamodule.image_side:
        assert torch.equal(batch.mask, batch.tokens != 0)
        assert batch.position.max() > batch.tokens.shape[1], "black pixels are left out"
    else:
        assert batch.tokens.shape[-1] == cli.datamodule.max_length
    if task == "listops":
        assert not (batch.tokens == 15).any(), "brackets are dropped"
    if task == "text":
        assert len(cli.datamodule.splits["train"]) == 30, "none is cut off for the validation set"
        assert len(cli.datamodule.splits["val"]) == len(cli.datamodule.splits["test"]) == 10


def test_paper_protocol_then_another_attention(tmp_path, main, tiny_arguments):
    arguments = tiny_arguments("listops", tmp_path, "protocol/paper", "attention/softmax")
    cli = main(["fit", *arguments, "--trainer.max_steps=3"])
    assert type(cli.model.encoder.blocks[0].attention.backend).__name__ == "SoftmaxAttention"
