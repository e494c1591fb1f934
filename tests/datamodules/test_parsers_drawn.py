"""Every parser of a file that people bring, on what hypothesis draws: a result that makes sense, or a typed error."""

import csv
import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.files import PreparedDataError
from datamodules.listops import tokenize
from datamodules.pathfinder.release import _read_metadata
from datamodules.prepared.meta import check_meta, parse_meta
from datamodules.sources.archives import read_label, read_rows
from skyformer.exceptions import CheckpointError
from skyformer.model.checkpoint_io import read_checkpoint
from skyformer.training.loggers import CSVLogger

DRAWN = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
WORDS = [b"[MAX", b"[MIN", b"[MED", b"[SM", b"]", b"(", b")", b"0", b"9", b"10", b"[", b"\t", b"\n", b"\x00"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)

LOG = b"step,train/loss,val/loss\n0,1.5,\n1,1.25,\n2,1.125,\n2,,1.0\n3,1.0625,\n"


def outcome(function, *arguments):
    """What it returns, all of it where that is an iterator; or None with the error's text not empty."""
    try:
        result = function(*arguments)
        return list(result) if hasattr(result, "__next__") else result
    except (PreparedDataError, CheckpointError) as error:
        if not str(error):
            raise
        return None


@given(st.lists(st.sampled_from(WORDS) | st.binary(max_size=6), max_size=12).map(b" ".join))
@DRAWN
def test_listops_expression(source):
    tokens = outcome(tokenize, "file:1", source)
    assert tokens is None or (len(tokens) <= len(source.split()) and all(1 <= token <= 15 for token in tokens))


@given(st.binary(max_size=12) | st.text("0123456789.-+e ٣", max_size=6).map(str.encode))
@DRAWN
def test_label(text):
    assert outcome(read_label, "file:1", text, 10) in {None, *range(10)}


@given(st.binary(max_size=300) | st.lists(st.sampled_from(WORDS), max_size=40).map(b"".join))
@DRAWN
def test_rows(content):
    with TemporaryDirectory() as folder:
        path = Path(folder, "rows.tsv")
        path.write_bytes(content)
        rows = outcome(read_rows, path, 2, "Reading")
        assert rows is None or all(len(columns) == 2 for _, columns in rows)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@DRAWN
def test_meta(data):
    def read():
        meta = parse_meta(data)
        check_meta(meta if isinstance(meta, dict) else {})

    with suppress(ValueError):  # `read_meta` puts the file's name before it
        read()


@given(st.binary(max_size=200) | st.text("imgs/0123456789 .png\n-", max_size=80).map(str.encode))
@DRAWN
def test_metadata_of_pathfinder(content):
    with TemporaryDirectory() as folder:
        path = Path(folder, "1.npy")
        path.write_bytes(content)
        outcome(_read_metadata, path)


@given(st.binary(max_size=400))
@DRAWN
def test_checkpoint(content):
    with TemporaryDirectory() as folder:
        path = Path(folder, "last.ckpt")
        path.write_bytes(content)
        assert outcome(read_checkpoint, path) is None


@given(
    st.integers(0, len(LOG)).map(lambda length: LOG[:length])
    | st.binary(max_size=200)
    | st.text('step,train/loss0123456789.\n"', max_size=120).map(str.encode)
)
@DRAWN
def test_log_of_a_resumed_run(content):
    """Any log can be gone on with, and what is kept of it is rows of steps before."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "metrics.csv")
        path.write_bytes(content)
        CSVLogger(folder).start_at(3)
        logger = CSVLogger(folder)
        logger.log_metrics({"train/loss": 1.0}, step=3)
        logger.save()
        with path.open(newline="", encoding="utf-8") as file:
            *kept, last = csv.DictReader(file)
        assert (last["step"], last["train/loss"]) == ("3", "1.0")
        assert all(int(row["step"]) < 3 for row in kept)
