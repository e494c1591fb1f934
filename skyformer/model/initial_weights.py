"""A new run that starts from the weights of an earlier one."""

from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from skyformer.exceptions import CheckpointError
from skyformer.model.checkpoint_io import read_checkpoint


def load_initial_weights(module: nn.Module, path: Path) -> None:
    """Copy the weights and buffers of a checkpoint that have the same name and shape in `module`; print the others.

    Args:
        module: changed in place; tensors keep their dtype.
        path: a checkpoint of a run, or one that `export` wrote.

    Raises:
        CheckpointError: when the file cannot be read or nothing in it fits.
    """
    if not path.is_file():
        raise CheckpointError(f"model.init_from: no such checkpoint (got {path}). Fix: name a file")
    checkpoint = read_checkpoint(path)
    given, own = checkpoint["state_dict"], module.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    if not fitting:
        raise CheckpointError(
            f"model.init_from: no weight of {path} fits this model. Fix: name a checkpoint of the same network"
        )
    module.load_state_dict(fitting, strict=False)
    lines = [f"Started from {path}, step {checkpoint['global_step']:,}: {len(fitting)} of {len(own)} tensors taken"]
    for name in sorted(own.keys() | given.keys()):
        if name not in fitting:
            there, here = (tuple(state[name].shape) if name in state else "absent" for state in (given, own))
            lines.append(f"  not taken: {name}, {there} in the checkpoint, {here} here")
    rank_zero_info("\n".join(lines))
