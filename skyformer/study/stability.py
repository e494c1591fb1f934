"""The instability score: how much a training step changes a model's output, relative to its size (Appendix F)."""

import math
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from skyformer.exceptions import RunError
from skyformer.model.classifier import SequenceClassifier
from skyformer.model.encoder import MultiHeadAttention
from skyformer.report.style import new_figure, save_picture, style_of
from skyformer.study.backends import read_backends, same_draws
from skyformer.study.setting import Setting, make_parser, print_tables, write_rows

BACKENDS = ["softmax", "protocol/nystromformer_without_convolution", "kernelized", "skyformer"]
# Mean of τ over the first 20 steps, over that of self-attention (Chen et al. 2021, Appendix F), of a Nyströmformer
# without convolution.
PUBLISHED_STEPS = 20
PUBLISHED = {
    "nystromformer": {"text": 1.03, "listops": 1.01, "retrieval": 0.97, "pathfinder": 0.99, "image": 1.02},
    "kernelized": {"text": 0.83, "listops": 0.77, "retrieval": 0.64, "pathfinder": 0.74, "image": 0.62},
    "skyformer": {"text": 0.81, "listops": 0.79, "retrieval": 0.64, "pathfinder": 0.79, "image": 0.65},
}


def run_stability(args: list[str]) -> None:
    """Train each backend for some steps from the same weights on the same batches; `stability.csv`, `.md`, `.png`."""
    parser = make_parser(
        "stability", "The instability score of training steps (Appendix F).", BACKENDS, "report/stability"
    )
    parser.add_argument("--steps", type=int, default=20, help="Training steps.")
    parser.add_argument("--repeats", type=int, default=1, help="Initialisations, from seed_everything on.")
    setting = Setting.read(parser, args)
    config = setting.config
    for name in ("steps", "repeats"):
        if config[name] < 1:
            raise RunError(f"--{name} must be at least 1 (got {config[name]}). Fix: --{name} 1, or more")
    names = {name: backend for name, (backend, _) in read_backends(config.backends).items()}
    if "softmax" not in names:
        raise RunError(f"--backends: the scores are relative to softmax's (got {config.backends}). Fix: add softmax")
    rows = list(measure(setting, names, config.steps, config.repeats))
    output = Path(config.output).expanduser()
    write_rows(output / "stability.csv", rows)
    title = f"Instability of the first {config.steps} steps on {setting.task}, {setting.source}"
    is_papers = config.steps == PUBLISHED_STEPS and setting.state is None
    print_tables(output / "stability.md", title, [(_CAPTION, summarise(rows, setting.task if is_papers else ""))])
    draw(rows, title, output / "stability.png")
    print(f"{output}/stability.csv, stability.md, stability.png")


_CAPTION = (
    "τ_i = ‖f(x_i, W_i) − f(x_i, W_(i−1))‖² / ‖W_i − W_(i−1)‖², f the class scores in evaluation mode. The ratio "
    "is of the means over the steps. The paper's ratios are of 20 steps from initialised weights."
)


def measure(setting: Setting, names: dict[str, str], steps: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each method, repeat and step: `tau`."""
    for repeat in range(repeats):
        seed = setting.config.seed_everything + repeat
        for name, backend in names.items():
            print(f"{name}, seed {seed}", file=sys.stderr)
            lightning.seed_everything(seed, verbose=False)
            model = setting.make_model(backend, seed=seed)
            loader = setting.data.train_dataloader()
            if steps > len(loader):
                raise RunError(f"--steps: an epoch has {len(loader)} batches (got {steps}). Fix: --steps {len(loader)}")
            batches = islice(loader, steps)
            for step, tau in enumerate(instability(model, batches, setting.max_steps), 1):
                yield {"method": name, "seed": seed, "step": step, "tau": tau}


def instability(model: SequenceClassifier, batches: Iterator[Any], max_steps: int) -> Iterator[float]:
    """τ of each training step, in float64: steps of a small rate are lost among float32's last bits."""
    model.double()
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.float32_attention = False
    optimizer, scheduler = model.make_optimizer_and_scheduler(max_steps)
    for batch in batches:
        before, weights = _scores(model, batch), _weights(model)
        model.train()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(*model.scores_and_labels(batch)).backward()
        optimizer.step()
        model.eval()
        if scheduler is not None:
            scheduler.step()
        moved = (_weights(model) - weights).square().sum()
        changed = (_scores(model, batch) - before).square().sum()
        yield (changed / moved).item()


@torch.no_grad()
def _scores(model: SequenceClassifier, batch: Any) -> Tensor:
    with same_draws():
        return model(batch.tokens, batch.mask, batch.position)


@torch.no_grad()
def _weights(model: SequenceClassifier) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return for each method and seed: mean τ divided by that of softmax with the same seed."""
    by_run: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        by_run.setdefault(row["method"], {}).setdefault(row["seed"], []).append(row["tau"])
    means = {name: {seed: fmean(taus) for seed, taus in runs.items()} for name, runs in by_run.items()}
    return {name: [mean / means["softmax"][seed] for seed, mean in runs.items()] for name, runs in means.items()}


def summarise(rows: Sequence[dict[str, Any]], task: str) -> list[dict[str, str]]:
    """A row a method, next to the paper's ratio; `task` is empty where the paper has no ratio."""
    table = []
    for name, found in ratios(rows).items():
        mean_tau = fmean(row["tau"] for row in rows if row["method"] == name)
        spread = f" ± {stdev(found):.2f}" if len(found) > 1 else ""
        published = PUBLISHED.get(name, {}).get(task, math.nan)
        table.append(
            {
                "method": style_of(name).label,
                "mean τ": f"{mean_tau:.3g}",
                "ratio to self-attention": f"{fmean(found):.2f}{spread}",
                "paper": "-" if math.isnan(published) else f"{published:.2f}",
            }
        )
    return table


def draw(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """τ against the step, the mean over the seeds."""
    figure, (panel,) = new_figure(1, 7.6, 3.8)
    for name in dict.fromkeys(row["method"] for row in rows):
        look = style_of(name)
        own = [row for row in rows if row["method"] == name]
        steps = sorted({row["step"] for row in own})
        values = [fmean(row["tau"] for row in own if row["step"] == step) for step in steps]
        panel.plot(
            steps,
            values,
            color=look.color,
            linestyle=look.linestyle,
            marker=look.marker,
            ms=4,
            label=look.label,
            lw=1.4,
        )
    panel.set(xlabel="step", ylabel="instability score τ")
    figure.suptitle(title, fontsize="medium")
    panel.set_ylim(bottom=0)
    panel.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right center", frameon=False)
    save_picture(figure, path)
