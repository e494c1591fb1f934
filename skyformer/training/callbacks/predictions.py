"""Write the results of `predict`."""

import csv
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from skyformer.files import write_atomically


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.csv` or `.parquet` in the run's folder, in the order of the test set.

    The columns are `id`, `label`, `prediction` and the probability of each class, `p0`, `p1`, … The id is the example's
    name in its source, or its index in the test set. New inputs of `data.predict_source` have no label. Each of several
    processes writes its own `predictions.<rank>.csv`.

    If each token has a label, a row is a labelled token. Its columns are `id`, `position`, `label`, `prediction` and
    `probability`, that of the prediction.

    Args:
        format: `csv`, or `parquet`, which needs pyarrow.

    Raises:
        ValueError: for `parquet` without pyarrow.
    """

    def __init__(self, format: Literal["csv", "parquet"] = "csv") -> None:
        super().__init__(write_interval="epoch")
        if format == "parquet" and find_spec("pyarrow") is None:
            raise ValueError("predictions.format=parquet needs pyarrow. Fix: pip install -e '.[parquet]'")
        self.format = format

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        if trainer.fast_dev_run:
            return
        share = f".{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.default_root_dir, f"predictions{share}.{self.format}")
        columns = _columns(predictions, trainer.datamodule)
        write_atomically(path, _as_csv(columns) if self.format == "csv" else _as_parquet(columns))
        print(f"Wrote {path}")


def _columns(predictions: Sequence[Any], datamodule: Any) -> dict[str, list[Any]]:
    joined = type(predictions[0])(*(torch.cat(parts) for parts in zip(*predictions, strict=True)))
    order = joined.example.argsort(stable=True)
    found = {name: values[order] for name, values in joined._asdict().items()}
    is_new = getattr(datamodule, "predict_source", None) is not None
    split = "predict" if is_new else "test"
    names = datamodule.example_names(split) if hasattr(datamodule, "example_names") else None
    example = found.pop("example").tolist()
    if is_new:
        del found["label"]
    probabilities = found.pop("probabilities", None)
    if probabilities is not None:
        found["prediction"] = probabilities.argmax(dim=1)
        found |= {f"p{number}": column for number, column in enumerate(probabilities.unbind(dim=1))}
    ids = [names[place] if names else str(place) for place in example]
    return {"id": ids, **{name: values.tolist() for name, values in found.items()}}


def _as_csv(columns: dict[str, list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow(f"{value:.6f}" if isinstance(value, float) else value for value in row)
    return text.getvalue()


def _as_parquet(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), content)
    return content.getvalue()
