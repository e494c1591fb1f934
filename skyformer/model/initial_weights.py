"""A new run that starts from the weights of an earlier one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from skyformer.exceptions import CheckpointError
from skyformer.model.checkpoint_io import read_checkpoint
from skyformer.model.earlier_versions import upgrade_config
from skyformer.yaml_text import load_dumped

_TOKENS = "encoder.tokens.weight"


def load_initial_weights(module: nn.Module, path: Path, data_hash: str | None = None) -> None:
    """Copy the weights and buffers of a checkpoint that have the same name and shape in `module`; print the others.

    After pretraining on masked tokens, the whole encoder must match. The embedding of the mask id is dropped if
    `module` has none.

    Args:
        module: changed in place; tensors keep their dtype.
        path: a checkpoint of a run, or one that `export` wrote.
        data_hash: hash of the run's own data. A warning is printed if a pretrained model has seen other data.

    Raises:
        CheckpointError: when the file cannot be read or what must fit does not.
    """
    checkpoint = read_initial(path)
    settings = upgrade_config(load_dumped(checkpoint["config"])).get("model", {})
    given, own = dict(checkpoint["state_dict"]), module.state_dict()
    if _TOKENS in given and _TOKENS in own:
        has_mask_ids = has_mask_id(settings), getattr(module, "masked_tokens", None) is not None
        given[_TOKENS] = _with_rows_of(own[_TOKENS], given[_TOKENS], *has_mask_ids)
    fitting = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    lines = []
    for name in sorted(own.keys() | given.keys()):
        if name not in fitting:
            there, here = (tuple(state[name].shape) if name in state else "absent" for state in (given, own))
            lines.append(f"  not taken: {name}, {there} in the checkpoint, {here} here")
    is_pretrained = settings.get("objective") == "masked_tokens"
    wrong = [line.removeprefix("  not taken: ") for line in lines if "not taken: encoder." in line]
    if is_pretrained and wrong:
        raise CheckpointError(
            f"model.init_from: the pretrained encoder of {path} does not fit this model (got {'; '.join(wrong)}). "
            "Fix: use the task, attention and sizes that it was pretrained with"
        )
    if not fitting:
        raise CheckpointError(
            f"model.init_from: no weight of {path} fits this model. Fix: name a checkpoint of the same network"
        )
    module.load_state_dict(fitting, strict=False)
    step = f"step {checkpoint['global_step']:,}{', pretrained on masked tokens' if is_pretrained else ''}"
    lines.insert(0, f"Started from {path}, {step}: {len(fitting)} of {len(own)} tensors taken")
    seen, now = (str(value).partition("+")[0] for value in (checkpoint.get("data_hash"), data_hash))
    if is_pretrained and data_hash and seen != now:
        lines.append(
            f"  it was pretrained on other data (hash {seen}, {now} here): examples of this run's validation and test "
            "sets may have been among them"
        )
    rank_zero_info("\n".join(lines))


def read_initial(path: Path) -> dict[str, Any]:
    """The contents of the checkpoint that `model.init_from` names.

    Raises:
        CheckpointError: where there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(f"model.init_from: no such checkpoint (got {path}). Fix: name a file")
    return read_checkpoint(path)


def _with_rows_of(own: Tensor, given: Tensor, given_has_mask_id: bool, own_has_mask_id: bool) -> Tensor:
    """Return the given embedding with the rows of the own one, if only the row of the mask id differs."""
    if len(given) - given_has_mask_id != len(own) - own_has_mask_id or given.shape[1:] != own.shape[1:]:
        return given
    shared = min(len(given), len(own))
    return torch.cat([given[:shared], own[shared:].to(given)])


def has_mask_id(settings: Mapping[str, Any]) -> bool:
    """Return whether a model with this `model` section of a configuration has an id for masked tokens."""
    return settings.get("objective") == "masked_tokens" or bool(settings.get("mlm_weight"))
