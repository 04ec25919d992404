"""Shell. Reads the files of a configuration that somebody else wrote: its own directory's and no others, and
no more than a person would write."""

from __future__ import annotations

from collections.abc import Iterator
from glob import has_magic
from pathlib import Path

from ikd.migrate.model import DEEPEST, MOST_FILES, MOST_OCTETS, Finding, Place, Unreadable

_LONGEST = 4096  # of a path


class Files:
    """Files below the directory of the first one; `include` is how the readers ask for more. `findings` has
    what was asked for and is not there."""

    def __init__(self, first: Path) -> None:
        self._base = first.resolve().parent
        self._octets = MOST_OCTETS
        self._count = 0
        self.first = first
        self.findings: list[Finding] = []

    def read(self, path: Path) -> str:
        """One file's text; raises `Unreadable`."""
        self._count += 1
        if self._count > MOST_FILES:
            raise Unreadable(f"{path}: more than {MOST_FILES} files")
        try:
            if not path.is_file():  # a pipe or a device would never end
                raise Unreadable(f"{path}: no such file")
            with path.open("rb") as file:
                data = file.read(self._octets + 1)
        except OSError as error:
            raise Unreadable(f"{path}: {error.strerror}") from None
        self._octets -= len(data)
        if self._octets < 0:
            raise Unreadable(f"{path}: all files together are longer than {MOST_OCTETS} octets")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Unreadable(f"{path}: is not UTF-8 text") from None
        if "\0" in text:
            raise Unreadable(f"{path}: is not text")
        return text

    def include(self, pattern: str, place: Place) -> Iterator[tuple[str, str]]:
        """The files a pattern means, beside the file it stands in. One outside the directory is refused: what
        is read there may be of another owner. One that is not there or empty says nothing, wherever it is:
        Debian's files include such ones below /var/lib/strongswan."""
        beside = Path(place.file).resolve().parent
        wanted = Path(pattern)
        if not wanted.parts or len(wanted.parts) > 4 * DEEPEST or len(pattern) > _LONGEST:
            raise Unreadable(f'{place}: include "{pattern[:80]}" is no name of files')
        if ".." in wanted.parts or "**" in pattern:
            raise Unreadable(f'{place}: include "{pattern}" leaves the directory {self._base}')
        if wanted.is_absolute():
            if not wanted.is_relative_to(self._base):
                if _says_nothing(wanted):
                    self.findings.append(Finding(place, f"include {pattern}: nothing is there"))
                    return
                raise Unreadable(f'{place}: include "{pattern}" leaves the directory {self._base}')
            beside, wanted = self._base, wanted.relative_to(self._base)
        try:
            found = sorted(beside.glob(str(wanted)))
        except (OSError, ValueError, NotImplementedError) as error:
            raise Unreadable(f'{place}: include "{pattern}": {error}') from None
        found = [path for path in found if not path.is_dir()]
        if not found and not has_magic(pattern):
            raise Unreadable(f'{place}: include "{pattern}": no such file')
        for path in found:
            if not path.resolve().is_relative_to(self._base):
                raise Unreadable(f'{place}: include "{pattern}" leaves the directory {self._base}: {path}')
            yield str(path), self.read(path)


def _says_nothing(path: Path) -> bool:
    """Whether a file is empty or not there; one that we may not ask about may have anything in it."""
    try:
        return not has_magic(str(path)) and path.stat().st_size == 0
    except FileNotFoundError:
        return True
    except OSError:
        return False
