"""Shell. Replaces a file in one step, so that a crash, a loss of power or a full disk leaves the former file
or the new one, whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace(path: Path, octets: bytes, mode: int) -> None:
    """Write a file anew; raises `OSError`, and then the former one is there. What a crash in the middle
    leaves behind the next attempt removes. One writer at a time."""
    fresh = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):  # a link, or anything else somebody has put there, is not followed
        os.unlink(fresh)
    try:
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(handle, "wb") as file:
            os.fchmod(handle, mode)  # whatever the umask says
            file.write(octets)
            file.flush()
            os.fsync(handle)
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)
        raise
    with suppress(OSError):  # some file systems cannot: a loss of power may bring the former file back, whole
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the new name outlives a loss of power
        finally:
            os.close(folder)
