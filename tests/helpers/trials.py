"""What comes of a damaged file: the task is prepared and all of it is read, under watch, in a folder of its own."""

import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from damage import Damage
from damaged_kinds import Kind, agree, build, write_tree
from torch.utils.data import DataLoader
from watched import watching

from datamodules.files import PreparedDataError
from datamodules.prepared.format import verify

PathChange = Callable[[Path], Any]
Special = tuple[PathChange, str]  # with the verdict that there must be
REFUSED, ACCEPTED, FOREIGN = "refused", "accepted", "anything else"
FIXES = ("remove the folder", "data.source", "data.data_dir")
SMALL = 1 << 20  # bytes of a file that is compared as a whole


class Outcome(NamedTuple):
    """`REFUSED`, `ACCEPTED` or `FOREIGN`, and what was said."""

    verdict: str
    said: str = ""


class Trials:
    """Lays a pristine folder out anew for each trial, always in the same place, since its path is one of the settings.

    Args:
        root: folder for all.
        patch: undone by whoever made it.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.place = root / "trial"
        self.patch = patch
        (root / "pristine").mkdir()
        patch.setattr(
            "datamodules.examples.DataLoader",
            lambda *arguments, **settings: DataLoader(*arguments, **{**settings, "num_workers": 0}),
        )
        patch.setattr("datamodules.examples.available_cores", lambda: 1)  # it reads a container's limits

    def __call__(self, kind: Kind, change: PathChange) -> Outcome:
        """Change the file and read it."""
        file = self.lay_out(kind)
        change(file)
        if kind.agreeing:
            agree(file.parents[1])
        before = snapshot(self.place)
        with watching([self.place], self.place / "data") as watch, redirect_stdout(io.StringIO()):
            outcome = _read_all(kind, self.place)
        faults = [*watch.found, *_left(before, snapshot(self.place), self.place / "data")]
        return Outcome(FOREIGN, "; ".join(faults)) if faults else outcome

    def damage(self, kind: Kind, damage: Damage) -> Outcome | None:
        """Damage its bytes and read it; None where that changes none of them."""
        content = next(self.pristine(kind.tree).glob(kind.file)).read_bytes()
        damaged = damage(content)
        return None if damaged == content else self(kind, lambda path: path.write_bytes(damaged))

    def lay_out(self, kind: Kind) -> Path:
        """Link the pristine folder, but copy what will be changed; returns the file to change."""
        pristine = self.pristine(kind.tree)
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(pristine, self.place, copy_function=os.link)
        file = next(self.place.glob(kind.file))
        for path in (file, *self.place.glob("data/*/meta.json")):
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
        return file

    def pristine(self, tree: str) -> Path:
        """The folder in which nothing is changed, made once."""
        folder = self.root / "pristine" / tree
        if not folder.exists():
            shutil.rmtree(self.place, ignore_errors=True)
            with redirect_stdout(io.StringIO()):
                write_tree(tree, self.place, self.patch)
            self.place.rename(folder)
        return folder


@contextmanager
def trials(root: Path) -> Iterator[Trials]:
    with pytest.MonkeyPatch.context() as patch:
        yield Trials(root, patch)


def _read_all(kind: Kind, place: Path) -> Outcome:
    try:
        data = build(kind.task, place, kind.source)
        data.prepare_data()
        data.setup("fit")
    except PreparedDataError as error:
        return _judge(kind, str(error))
    except Exception as error:
        return Outcome(FOREIGN, f"{type(error).__name__}: {error}")
    try:
        _check_content(data)
    except Exception as error:
        return Outcome(FOREIGN, f"accepted what is not valid: {type(error).__name__}: {error}")
    return Outcome(ACCEPTED)


def _judge(kind: Kind, said: str) -> Outcome:
    """Whether a message names the file, or the first one of those that it leads to, and the fix, in a line."""
    named = kind.named in said or "skipped; the first: /" in said
    if named and any(fix in said for fix in FIXES) and said.isprintable() and len(said) < 2_000:
        return Outcome(REFUSED, said)
    return Outcome(FOREIGN, f"a message without the file or the fix, or too long: {said[:2_000]}")


def _check_content(data: Any) -> None:
    for name, split in data.splits.items():
        batch = split.__getitems__(range(len(split)))
        assert len(split) > 0
        assert 0 <= batch.tokens.min() <= batch.tokens.max() < data.vocab_size
        assert 0 <= batch.label.min() <= batch.label.max() < data.num_classes
        assert split.longest <= data.max_length
        assert len(data.example_names(name)) == len(split)
    verify(data.folder)


def snapshot(folder: Path) -> dict[Path, tuple[Any, ...]]:
    """All that lies below it: kind, size, and content where that is small; a pipe is not opened."""
    found: dict[Path, tuple[Any, ...]] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            small = status.st_size <= SMALL
            found[path] = (status.st_mode, status.st_size, path.read_bytes() if small else status.st_mtime_ns)
        else:
            found[path] = (status.st_mode,)
    return found


def _left(before: dict[Path, tuple[Any, ...]], after: dict[Path, tuple[Any, ...]], data: Path) -> Iterator[str]:
    """What was changed, or left half-made, or made in another place."""
    for path, content in before.items():
        if after.get(path) != content:
            yield f"{path} was changed"
    for path in after.keys() - before.keys():
        if not path.is_relative_to(data) or path.suffix == ".partial":
            yield f"{path} was left"
        elif path.parent == data and path.is_dir() and not (path / "meta.json").is_file():
            yield f"{path} is half-made"
