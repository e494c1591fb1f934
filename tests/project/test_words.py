"""README, pages, docstrings, comments and messages are in plain modern English: a list of words that they avoid."""

import re

import pytest
from tiny_runs import ROOT

ARCHAIC = re.compile(
    r"\b((?i:anew|lest|likewise|mend(s|ed)?|shall|hence|whence|beside|of (which|whom)|so (many|much as)"
    r"|(there|where)(of|in|by|upon)|(goes?|went|going) on|(is|are|was|were) said|all told|told apart"
    r"|(which|would) else|but for)|(is|are) none)\b"  # `none` in lower case: Python's `is None` is no match
)
FILES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "configs").rglob("*.yaml"),
    *(path for package in ("skyformer", "datamodules") for path in (ROOT / package).rglob("*.py")),
    ROOT / "run.py",
]


def plain_text(text: str) -> str:
    """Lines joined, so that a phrase is found across a line break, also in a comment."""
    return re.sub(r"\s*\n[\s#]*", " ", text)


@pytest.mark.parametrize("path", sorted(FILES), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_avoids_archaic_words(path):
    text = plain_text(path.read_text())
    found = [text[max(0, match.start() - 40) : match.end() + 20] for match in ARCHAIC.finditer(text)]
    assert not found


def test_words_are_found():
    for text in ("which of them\n    # goes\n    # on", "it is\nnone", "Of\nwhich"):
        assert ARCHAIC.search(plain_text(text)), text
    for text in ("if x is None:", "is nonetheless", "goes_on", "mending walls", "which elsewhere"):
        assert not ARCHAIC.search(plain_text(text)), text
