"""`python run.py export`: a checkpoint, program or folder to share, and the configuration inside a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from skyformer.exceptions import CheckpointError, RunError
from skyformer.export.checkpoint import EXTENSIONS, export_checkpoint
from skyformer.export.program import export_program
from skyformer.installation import command_parser, program_name
from skyformer.model.checkpoint_io import read_checkpoint
from skyformer.model.earlier_versions import upgrade_config
from skyformer.training import loggers
from skyformer.training.config_checks import config_files
from skyformer.training.overlays import as_list
from skyformer.yaml_text import load_dumped

EVALUATIONS = ("test", "validate", "predict")


def run_export(args: list[str]) -> Path:
    """Write a run's checkpoint as a small file, as a program, or as a folder for the Hugging Face hub.

    Args:
        args: arguments after `export`.

    Raises:
        CheckpointError: for a checkpoint that cannot be read.
        RunError: for an attention that has no program, `--half` for a program or a folder, a folder that holds files,
            or a missing package.
        SystemExit: 2 for a wrong argument.
    """
    parser = command_parser(
        "export",
        "Write weights and configuration of a checkpoint to a small file, which test, validate and predict "
        "take by --ckpt_path alone; or, as .pt2, its model as a torch.export program for any batch size, any length "
        "from 64 tokens on; or, with a slash at the end, a folder with a model card for the Hugging Face hub.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="A run's checkpoint, such as its best.ckpt.")
    parser.add_argument(
        "--output", type=str, required=True, help="What to write: <name>.ckpt, <name>.pt2 or <folder>/."
    )
    parser.add_argument("--half", type=bool, default=False, help="Weights in float16: half the size, nearly the same.")
    config = parser.parse_args(args)
    source, target = Path(config.ckpt_path).expanduser(), Path(config.output).expanduser()
    if not source.is_file():
        raise CheckpointError(
            f"--ckpt_path {source} is not a file. Fix: name a checkpoint, such as <run>/checkpoints/best.ckpt"
        )
    if target.suffix == ".pt2":
        if config.half:
            raise RunError("--half: a program is in float32. Fix: leave it out, or --output <name>.ckpt")
        size = export_program(source, target)
        print(
            f"{target}: {size / 1e6:.2f} MB. Run it with\n  torch.export.load({str(target)!r}).module()(tokens, mask)"
        )
        return target
    if config.output.endswith("/"):
        if config.half:
            raise RunError("--half: a folder is in float32. Fix: leave it out, or --output <name>.ckpt")
        try:
            from skyformer.hf.hub import export_folder
        except ImportError as error:
            raise RunError(f"--output {config.output}: {error}") from error
        size = export_folder(source, target)
        print(
            f"{target}: {size / 1e6:.2f} MB. Load it with\n"
            f"  skyformer.hf.hub.HubClassifier.from_pretrained({str(target)!r})"
        )
        return target
    size = export_checkpoint(source, target, config.half)
    print(f"{target}: {size / 1e6:.2f} MB. Test it with\n  {program_name()} test --ckpt_path {target}")
    return target


def with_its_configuration(args: Sequence[str]) -> list[str]:
    """Add the configuration of the checkpoint to the arguments of an evaluation that names a checkpoint only.

    Callbacks, plugins, profiler and loggers of other packages are left out, since the checkpoint may be a stranger's.
    Results go to the run's folder if the checkpoint is in one, else to `runs/<name of the checkpoint>`.

    Raises:
        CheckpointError: for a checkpoint that cannot be read.
    """
    given = list(args)
    named = _value_of("--ckpt_path", given)
    if not given or given[0] not in EVALUATIONS or named is None or any(config_files(given)):
        return given
    path = Path(named).expanduser()
    if not path.is_file():
        return given
    config = upgrade_config(load_dumped(read_checkpoint(path)["config"]))
    folder = path.resolve().parent.parent
    if not (path.parent.name == "checkpoints" and (folder / "config.yaml").exists()):
        folder = Path("runs", path.stem)
    config["trainer"] |= EXTENSIONS | {"logger": _own_loggers(config["trainer"].get("logger"))}
    text = yaml.safe_dump(config)
    return [given[0], "--config", text, "--trainer.default_root_dir", str(folder), *given[1:]]


def _own_loggers(given: Any) -> Any:
    """Return this project's loggers among those of a run, for another folder; False if it had only others."""
    if not given:
        return given
    own = [
        logger | {"init_args": {**(logger.get("init_args") or {}), "save_dir": "."}}
        for logger in as_list(given)
        if isinstance(logger, dict) and str(logger.get("class_path")).startswith(f"{loggers.__name__}.")
    ]
    return own or False


def _value_of(option: str, args: Sequence[str]) -> str | None:
    for place, argument in enumerate(args):
        if argument == option and place + 1 < len(args):
            return args[place + 1]
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None
