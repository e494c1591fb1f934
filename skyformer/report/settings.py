"""The settings that distinguish experiments, and short names for them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skyformer.report.runs import Run
from skyformer.training.run_folder import FREE_ON_RESUME, flatten

Settings = dict[str, Any]
# Free on a resume, but not between runs whose results are held against each other.
_MATTERS = (
    "best_checkpoint",
    "trainer.callbacks",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches",
    "trainer.max_",
    "trainer.val_check_",
)
# Seeds, places and machines; the data is compared by its hash.
_IS_FREE = (
    "data.class_path",
    "data.init_args.source",
    "model.attention.init_args.seed",
    "seed_everything",
    "trainer.devices",
    "trainer.max_time",
    "trainer.num_nodes",
    "trainer.plugins",
    "trainer.strategy",
    "trainer.use_distributed_sampler",
)
_BATCH = ("data.init_args.batch_size", "trainer.accumulate_grad_batches")


def settings_of(run: Run) -> Settings:
    """Return the settings that a result depends on, without the seed; `batch` is the global batch size."""
    flat = {key: value for key, value in flatten(run.config).items() if _matters(key) and key not in _BATCH}
    own = f"/seed{run.seed}/"  # each seed may have folders of its own, such as that of its pretraining
    kept = {
        key: value.replace(own, "/seed*/") if isinstance(value, str) else value
        for key, value in _with_arguments(flat).items()
    }
    if run.examples_per_step:
        kept["batch"] = run.examples_per_step * run.num_processes
    return kept


def _with_arguments(flat: Settings) -> Settings:
    """Expand lists of classes, such as callbacks, to `<key>.class_path` and `<key>.init_args.<class>.<argument>`.

    A second class of the same name has its place in the list as well: `<class>-2`.
    """
    found: Settings = {}
    for key, value in flat.items():
        if not isinstance(value, list) or not value or not all(map(_is_class, value)):
            found[key] = value
            continue
        arguments: dict[str, Any] = {}
        for place, one in enumerate(value, start=1):
            name = format_value(one)
            arguments[f"{name}-{place}" if name in arguments else name] = one.get("init_args") or {}
        found[f"{key}.class_path"] = [one["class_path"] for one in value]
        found |= _with_arguments(flatten({f"{key}.init_args": arguments}))
    return found


def _is_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _matters(key: str) -> bool:
    if key.startswith(_IS_FREE):
        return False
    return key.startswith(_MATTERS) or not key.startswith(FREE_ON_RESUME)


def differing(settings: Iterable[Settings]) -> list[str]:
    """The keys, in order, whose values are not the same in all; arguments of differing classes are left out."""
    return without_arguments(unequal(settings))


def without_arguments(keys: Sequence[str]) -> list[str]:
    """Those keys that are no argument of a class that is among them."""
    classes = [key.removesuffix("class_path") + "init_args." for key in keys if key.endswith(".class_path")]
    return [key for key in keys if not key.startswith(tuple(classes))]


def unequal(settings: Iterable[Settings]) -> list[str]:
    """The keys, in order, whose values are not the same in all; a missing one counts as None."""
    several = list(settings)
    keys = sorted({key for one in several for key in one})
    return [key for key in keys if len({format_value(one.get(key)) for one in several}) > 1]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each key, `lr`; with the part before where two are the same."""
    parts = {key: _parts(key) for key in keys}
    last = [part[-1] for part in parts.values()]
    return {key: part[-1] if last.count(part[-1]) == 1 else ".".join(part[-2:]) for key, part in parts.items()}


def _parts(key: str) -> list[str]:
    parts = [part for part in key.split(".") if part not in ("init_args", "class_path")]
    return parts or [key]


def format_value(value: Any) -> str:
    """A value for a reader: a class by its name, `none`, `true`. Settings are compared by these texts."""
    if isinstance(value, Mapping):
        return format_value(value["class_path"]) if _is_class(value) else str(dict(value))
    if isinstance(value, list | tuple):
        each = [f"({format_value(one)})" if isinstance(one, list) else format_value(one) for one in value]
        return "+".join(each) or "none"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, int):
        return f"{value:,}"
    names = str(value).split(".")
    is_class = all(name.isidentifier() for name in names) and names[-1][0].isupper()  # unlike a file, `pre.ckpt`
    return names[-1] if is_class else str(value)


def order(value: Any) -> tuple[int, float, str]:
    """To sort values by: numbers by size, then the rest by name."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return 1, 0.0, format_value(value)


def most_frequent(values: Sequence[Any]) -> Any:
    """The value that is there most often; of several the largest number, else the first; None of none."""
    counts = Counter(map(format_value, values))
    return max(values, key=lambda value: (counts[format_value(value)], _size(value)), default=None)


def _size(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
