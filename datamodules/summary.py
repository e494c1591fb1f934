"""Print a summary of prepared data: counts, lengths, sizes and padding."""

import numpy as np
from rich.console import Console
from rich.table import Table

from datamodules.base import SequenceDataModule
from datamodules.batches import EvalBatches, TrainBatches
from datamodules.collate import SplitBatches
from datamodules.prepared.format import read_meta
from datamodules.prepared.layout import UNLABELLED


def print_summary(data: SequenceDataModule, seconds: float | None) -> None:
    """Print the summary of a task's prepared data, after `setup`.

    Args:
        data: the task.
        seconds: time of preparing; None if the data was there already.
    """
    console = Console(highlight=False, markup=False, emoji=False)  # a path is no markup
    files = [file for split in read_meta(data.folder)["splits"].values() for file in split.values()]
    size = sum(file["bytes"] for file in files) / 1e6
    how = "was there already" if seconds is None else f"made in {seconds:,.1f} s"
    console.print(f"{data.task}: {size:,.1f} MB, {how}\n  {data.folder}", soft_wrap=True)
    for table in (_lengths(data), _labels(data) if data.token_labels else _classes(data)):
        console.print(table)
        console.print()
    if seconds is None:  # else it has just been said, with names
        for split, reasons in read_meta(data.folder)["skipped"].items():
            if reasons:
                console.print(f"{split}: {len(reasons):,} skipped, all named in meta.json", soft_wrap=True)
    console.print(_padding(data), soft_wrap=True)


def _lengths(data: SequenceDataModule) -> Table:
    what = "tokens a document" if data.num_documents > 1 else "tokens"
    table = Table("split", title=what.capitalize(), title_justify="left", box=None, pad_edge=False)
    for heading in ("examples", "mean", "median", "95 %", "max"):
        table.add_column(heading, justify="right")
    for split in data.prepared_splits:
        lengths = data.splits[split].split.lengths
        values = (lengths.mean(), np.median(lengths), np.percentile(lengths, 95), lengths.max())
        table.add_row(split, f"{len(lengths):,}", *(f"{value:,.0f}" for value in values))
    return table


def _labels(data: SequenceDataModule) -> Table:
    table = Table("split", title="Labelled tokens", title_justify="left", box=None, pad_edge=False)
    for heading in ("all", "an example"):
        table.add_column(heading, justify="right")
    for split in data.prepared_splits:
        count = np.count_nonzero(data.splits[split].split.labels != UNLABELLED)
        table.add_row(split, f"{count:,}", f"{count / len(data.splits[split]):,.1f}")
    return table


def _classes(data: SequenceDataModule) -> Table:
    table = Table("class", title="Examples a class", title_justify="left", box=None, pad_edge=False)
    for split in data.prepared_splits:
        table.add_column(split, justify="right")
    labels = [data.splits[split].split.labels for split in data.prepared_splits]
    counts = [np.bincount(of_split, minlength=data.num_classes) for of_split in labels]
    for number, name in enumerate(data.class_names):
        title = name if name == str(number) else f"{number} {name}"
        table.add_row(title, *(f"{count[number]:,}" for count in counts))
    return table


def _padding(data: SequenceDataModule) -> str:
    """Return the fraction of padding in an epoch of training and in the test set."""
    train, test = data.splits["train"], data.splits["test"]
    shares = {}
    if len(train) >= data.batch_size:
        shares[f"training (batches of {data.batch_size})"] = padding_share(
            train, TrainBatches(train.lengths, data.batch_size, seed=0)
        )
    shares[f"test (of {data.eval_batch_size})"] = padding_share(test, EvalBatches(test.lengths, data.eval_batch_size))
    full = 1 - train.num_tokens.mean() / (data.max_length * data.num_documents)
    text = ", ".join(f"{share:.1%} in {name}" for name, share in shares.items())
    return f"Padding: {text}; in training padded to {data.max_length:,}, {full:.1%}"


def padding_share(split: SplitBatches, batches: TrainBatches | EvalBatches) -> float:
    """Return the fraction of padding in these batches."""
    tokens, order = split.num_tokens, list(batches)
    real = sum(int(tokens[batch].sum()) for batch in order)
    room = sum(split.width(int(split.lengths[batch].max())) * len(batch) for batch in order)
    return 1 - real / (room * split.split.num_documents)
