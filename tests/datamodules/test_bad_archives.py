"""Archives of reviews that are cut short, damaged or hostile."""

import io
import re
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import tiny_sources
from source_changes import MARKER, assert_nothing_prepared, names, packed, prepared, skipped, write_archive

from datamodules import Text
from datamodules.files import PreparedDataError
from datamodules.sources.archives import damaged

pytestmark = pytest.mark.usefixtures("no_processes")


BAD_ARCHIVES: dict[str, tuple[str, dict[str, Any], Callable[[bytes], bytes]]] = {
    "gzip cut short": ("a.tar.gz", {}, lambda content: content[: len(content) // 2]),
    "gzip cut at its end": ("a.tar.gz", {}, lambda content: content[:-12]),
    "xz cut short": ("a.tar.xz", {}, lambda content: content[: len(content) // 2]),
    "bzip2 cut short": ("a.tar.bz2", {}, lambda content: content[: len(content) // 2]),
    "tar cut in a review": ("a.tar", {}, lambda content: content[: content.index(b"marker") + 3]),
    "tar cut in a header": ("a.tar", {}, lambda content: content[: content.index(MARKER.encode()) + 100]),
    "tar with a damaged header": ("a.tar", {}, lambda content: content.replace(MARKER.encode(), b"train/pos/98_9.txt")),
    "gzip with a damaged review": (
        "a.tar.gz",
        {"compresslevel": 0},
        lambda content: content.replace(b"marker", b"Marker"),
    ),
    "xz damaged": ("a.tar.xz", {}, lambda content: content[:300] + b"damage" + content[306:]),
    "not a tar": ("a.tar.gz", {}, lambda content: b"<html>404 not found</html>" * 100),
    "empty": ("a.tar.gz", {}, lambda content: b""),
}


@pytest.mark.parametrize(("name", "settings", "damage"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive_is_said_and_leaves_nothing(name, settings, damage, source, prepared_dir):
    path = write_archive(source, name, **settings)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(PreparedDataError, match=re.escape(str(path))):
        prepared(Text, path, prepared_dir)
    assert_nothing_prepared(prepared_dir)
    path.write_bytes(whole)
    assert len(names(prepared(Text, path, prepared_dir))) == 41


def test_an_archive_of_something_else_is_said(tmp_path, prepared_dir):
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("README"))
    with pytest.raises(PreparedDataError, match=r"other.tar has no review train/neg"):
        prepared(Text, tmp_path / "other.tar", prepared_dir)
    assert_nothing_prepared(prepared_dir)


@pytest.mark.parametrize("name", ["reviews.csv", "reviews.zip"])
def test_another_kind_of_file_is_said_in_plain_words(name, tmp_path, prepared_dir):
    (tmp_path / name).write_text("review,sentiment\ngood,positive\n")
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("reviews.csv", "review,sentiment\n")
    with pytest.raises(PreparedDataError) as refused:
        prepared(Text, tmp_path / name, prepared_dir)
    what = "damaged, or no tar archive (file could not be opened successfully)"
    assert str(refused.value).startswith(f"{tmp_path / name}: {what}. ")


def test_message_of_several_lines_becomes_one():
    assert str(damaged("there", "one:\n- two")).startswith("there: one: - two. ")


def test_an_empty_review_of_an_archive_is_skipped_and_named(source, prepared_dir):
    tiny_sources.write_text(source)
    (source / "test/neg/77_2.txt").touch()
    data = prepared(Text, packed(source, "a.tar"), prepared_dir)
    assert skipped(data) == [("test", "test/neg/77_2.txt: an empty review")]
    assert len(names(data)) == 40


def test_a_hostile_archive_writes_nothing_outside(source, prepared_dir):
    path = write_archive(source, "a.tar")
    content = b"hostile"
    with tarfile.open(path, "a") as archive:
        for name in ("../escaped.txt", "../../train/neg/666_1.txt", f"{source}/test/neg/667_1.txt", "/escaped.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind in (("train/neg/668_1.txt", tarfile.SYMTYPE), ("train/neg/669_1.txt", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    before = sorted(prepared_dir.parent.rglob("*"))
    data = prepared(Text, path, prepared_dir)
    after = [found for found in sorted(prepared_dir.parent.rglob("*")) if prepared_dir not in (found, *found.parents)]
    assert after == before
    found = {name for _, name in names(data)}
    assert {found for found in found if "/66" not in found} == {
        review.relative_to(source).as_posix() for review in source.rglob("*.txt")
    }
    assert not {"train/neg/668_1.txt", "train/neg/669_1.txt"} & found


def test_reviews_that_an_archive_stores_as_links_to_equal_ones_are_read(source, prepared_dir):
    """What packing a folder without duplicates gives."""
    tiny_sources.write_text(source)
    (source / "train/neg/77_2.txt").hardlink_to(source / "train/neg/0_2.txt")
    data = prepared(Text, packed(source, "a.tar"), prepared_dir)
    assert names(data) == names(prepared(Text, source, prepared_dir))
    assert len(names(data)) == 41
