"""Shell. Puts the files of a configuration in place, after the daemon's own loader has found them good; and
exchanges single files for new ones, so that there is always a whole one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ikd import loading
from ikd.control.protocol import ControlError, file_error

_MODES = {".key": 0o600, ".toml": 0o640, ".pem": 0o644}
_SECRETS = "secrets.toml"


def place(directory: Path, contents: Mapping[str, bytes], force: bool) -> tuple[list[Path], tuple[str, ...]]:
    """Write files by their names below `directory`; their paths, and what the loader warns of. They are given
    to whom the directory belongs to: the daemon may have a user of its own. Raises `ControlError`; then
    nothing has changed, unless it is the other files of the directory that are wrong."""
    stage: Path | None = None
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".new-", dir=directory))
        for name, data in contents.items():
            path = stage / name
            path.parent.mkdir(mode=0o750, exist_ok=True)
            mode = 0o600 if name == _SECRETS else _MODES[path.suffix]
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
        _check(stage)
        written = _install(stage, directory, force)
        return written, _check(directory)
    except OSError as error:
        error.filename = error.filename or str(directory)
        raise file_error(error, "name another directory") from None
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        with suppress(OSError):  # one that we made and that stayed empty
            directory.rmdir()


def _check(directory: Path) -> tuple[str, ...]:
    try:
        return loading.load(directory).warnings
    except loading.ConfigurationError as error:
        # what is wrong with a file that is still aside is told as if it were in place
        text = "\n".join(error.complaints).replace(f"{directory}/", "")
        raise ControlError("configuration", text, "correct what is named and try again") from None


def _install(stage: Path, directory: Path, force: bool) -> list[Path]:
    """Move what is in `stage`, all or, when one is there already and `force` is not given, nothing."""
    names = sorted(path.relative_to(stage) for path in stage.rglob("*") if path.is_file())
    there = [str(name) for name in names if os.path.lexists(directory / name)]
    if there and not force:
        raise ControlError(
            "configuration",
            f"{directory} has {', '.join(there)} already",
            "name another directory, or overwrite with --force",
        )
    move = os.replace if force else os.link  # a link never overwrites
    owner = directory.stat()
    for name in names:
        (directory / name).parent.mkdir(mode=0o750, exist_ok=True)
        if os.geteuid() == 0:
            for made in (stage / name, (directory / name).parent):
                os.chown(made, owner.st_uid, owner.st_gid, follow_symlinks=False)
        move(stage / name, directory / name)
    return [directory / name for name in names]


def exchange(contents: Mapping[Path, tuple[bytes, int]]) -> None:
    """Replace files, in this order, each by its new octets with a mode; whose a file was it stays. What was
    there is kept under the same name with `.old` added. Raises `ControlError`; then, unless moving them
    fails half-way, nothing has changed."""
    made: dict[Path, Path] = {}
    try:
        for path, (data, mode) in contents.items():
            place = path.resolve()  # a link goes on leading to it
            made[place] = _written(place, data, mode)
        for place, new in made.items():
            _keep(place)
            os.replace(new, place)
    except OSError as error:
        raise file_error(error, "see to that and try again", "cannot write ") from None
    finally:
        for new in made.values():
            new.unlink(missing_ok=True)


def _written(place: Path, data: bytes, mode: int) -> Path:
    """A file beside the one it is to replace, on the disk."""
    fileno, name = tempfile.mkstemp(prefix=f".{place.name}-", dir=place.parent)
    with os.fdopen(fileno, "wb") as file:
        try:
            owner = place.stat()
            if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fileno, owner.st_uid, owner.st_gid)
            os.fchmod(fileno, mode)
            file.write(data)
            file.flush()
            os.fsync(fileno)
        except OSError:
            Path(name).unlink()
            raise
    return Path(name)


def _keep(place: Path) -> None:
    """A second name for a file, in place of what had it."""
    aside = place.with_name(f".{place.name}.old-{os.getpid()}")
    os.link(place, aside)
    os.replace(aside, place.with_name(place.name + ".old"))
