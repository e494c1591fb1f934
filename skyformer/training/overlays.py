"""How `--config` files combine."""

import re
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

_CALLBACKS, _FOLDER = "trainer.callbacks", "trainer.default_root_dir"
_NAME = re.compile(r"config(\.\d+)?\.yaml")  # of a run's configurations


class OverlayFile(ActionConfigFile):
    """Add the callbacks of a file to those of earlier files; the parser's own action would replace the list.

    A `config.yaml` in a run's folder refers to that folder, even after it was copied or moved.

    A callback replaces an earlier one of the same class and `monitor`. `callbacks: null` removes the earlier ones.
    """

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        former = cfg.get(_CALLBACKS)
        ActionConfigFile.apply_config(parser, cfg, dest, value)
        if cfg.get(_CALLBACKS):
            cfg[_CALLBACKS] = _add(former, cfg[_CALLBACKS])
        if (folder := _run_of(value)) is not None:
            _move(cfg, folder)


def _run_of(named: str) -> Path | None:
    """Return the folder of the run whose configuration this file is."""
    path = Path(named).expanduser()
    is_run = _NAME.fullmatch(path.name) and any(
        (path.parent / name).exists() for name in ("record.json", "checkpoints")
    )
    return path.parent if is_run else None


def _move(cfg: Namespace, folder: Path) -> None:
    former, cfg[_FOLDER] = cfg.get(_FOLDER), str(folder)
    loggers = cfg.get("trainer.logger")
    for logger in as_list(loggers):
        if isinstance(logger, Namespace) and logger.get("init_args.save_dir") == former:
            logger["init_args.save_dir"] = "."  # the run's folder


def _add(former: Any, callbacks: Any) -> list[Any]:
    before, added = as_list(former), as_list(callbacks)
    if added[: len(before)] == before:  # a file without callbacks, or with `callbacks+`
        added = added[len(before) :]
    replaced = [_kind(callback) for callback in added]
    return [*(callback for callback in before if _kind(callback) not in replaced), *added]


def as_list(given: Any) -> list[Any]:
    """Return a setting that takes one object, several or none, such as callbacks and loggers, as a list."""
    if isinstance(given, list):
        return given
    return [given] if given else []


def _kind(callback: Any) -> Any:
    """Return the class and its `monitor`, or the whole value if it has another form than the parser's."""
    if not isinstance(callback, Namespace) or "class_path" not in callback:
        return callback
    arguments = callback.get("init_args") or {}
    return callback.class_path, arguments.get("monitor")
