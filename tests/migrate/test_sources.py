"""ikd.migrate.sources: which files a foreign configuration may make us read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ikd.migrate.model import MOST_FILES, MOST_OCTETS, Place, Unreadable
from ikd.migrate.sources import Files


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """The files of a directory, with one outside of it."""
    base = tmp_path / "etc"
    (base / "conf.d").mkdir(parents=True)
    (base / "main.conf").write_text("main")
    (base / "conf.d" / "a.conf").write_text("a")
    (base / "conf.d" / "b.conf").write_text("b")
    (tmp_path / "outside.conf").write_text("shadow")
    (base / "link.conf").symlink_to(tmp_path / "outside.conf")
    return Files(base / "main.conf")


def included(files: Files, pattern: str, inside: str = "main.conf") -> list[str]:
    """The texts of what `include PATTERN` means in a file."""
    place = Place(str(files.first.parent / inside), 3)
    return [text for _, text in files.include(pattern, place)]


def test_files_of_the_directory(files: Files) -> None:
    """Connections are usually in a directory of their own and would be missing."""
    assert included(files, "conf.d/*.conf") == ["a", "b"]
    assert included(files, "b.conf", "conf.d/a.conf") == ["b"]
    assert included(files, str(files.first.parent / "conf.d" / "a.conf")) == ["a"]
    assert included(files, "nothing/*.conf") == []


@pytest.mark.parametrize(
    "pattern", ["../outside.conf", "conf.d/../../outside.conf", "/etc/passwd", "link.conf", "*", "**/*.conf"]
)
def test_nothing_outside_is_read(files: Files, pattern: str) -> None:
    """A configuration from somebody else would show what only its reader may read."""
    with pytest.raises(Unreadable, match="leaves the directory"):
        included(files, pattern)


def test_a_directory_that_is_a_link(files: Files, tmp_path: Path) -> None:
    """The same through a directory."""
    (files.first.parent / "far").symlink_to(tmp_path)
    with pytest.raises(Unreadable, match="leaves the directory"):
        included(files, "far/outside.conf")


@pytest.mark.parametrize("pattern", ["missing.conf", "", "conf.d/x" * 2000])
def test_file_that_is_not_there(files: Files, pattern: str) -> None:
    """A connection that is left out silently is one that nobody misses until it is too late."""
    with pytest.raises(Unreadable, match=r"main.conf:3: include"):
        included(files, pattern)


def test_what_debian_includes(files: Files, tmp_path: Path) -> None:
    """Its ipsec.conf and ipsec.secrets name files elsewhere that are empty or not there: nothing of an
    ordinary Debian could be translated."""
    (tmp_path / "ipsec.conf.inc").touch()
    assert included(files, str(tmp_path / "ipsec.conf.inc")) == []
    assert included(files, str(tmp_path / "missing.inc")) == []
    assert [one.place.line for one in files.findings] == [3, 3]
    assert "missing.inc: nothing is there" in files.findings[1].text


def test_how_much_is_read(files: Files) -> None:
    """A file as large as the disk, many files, or a pipe that never ends would hang the command."""
    base = files.first.parent
    (base / "large.conf").write_bytes(b"x" * (MOST_OCTETS + 1))
    with pytest.raises(Unreadable, match="longer than"):
        included(files, "large.conf")
    many = Files(base / "main.conf")
    for _ in range(MOST_FILES):
        many.read(base / "main.conf")
    with pytest.raises(Unreadable, match="more than 100 files"):
        many.read(base / "main.conf")
    os.mkfifo(base / "pipe.conf")
    with pytest.raises(Unreadable, match="no such file"):
        included(Files(base / "main.conf"), "pipe.conf")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a\0b"])
def test_what_is_no_text(files: Files, data: bytes) -> None:
    """A traceback would be shown for a file of another kind."""
    (files.first.parent / "x.conf").write_bytes(data)
    with pytest.raises(Unreadable, match="text"):
        included(files, "x.conf")
