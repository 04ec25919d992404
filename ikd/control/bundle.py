"""Shell. `ikctl bundle`: what a bug report needs, in one archive that only its owner can read.

Of the configuration directory only files that are known by name are read, and `control.redact` takes their
secrets out; private keys, keytabs, tickets and certificates are never opened. What cannot be had, because no
daemon runs or a file may not be read, is replaced by the reason.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

from ikd import __version__
from ikd.control import redact
from ikd.control.protocol import ControlError, Json, file_error, stamp

REQUESTS: Final = ("version", "status", "sa", "policy", "why", "offload", "log", "metrics", "recent")
WARNING: Final = "names, addresses and the policy are in it: look through it before it leaves your hands"
_FOLDER: Final = "ikd-bundle"
_SECRETS: Final = "secrets.toml"

Call = Callable[[str], Json]


def write(target: Path, directory: Path, call: Call) -> Json:
    """Make the archive; `call` runs a request at the daemon. Raises `ControlError` when there is such a file
    already, or it cannot be written."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(target, flags, 0o600)
    except OSError as error:
        raise file_error(error, "name a file that is not there yet", "cannot make ") from None
    missing: dict[str, str] = {}
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            names = _fill(file, directory, call, missing)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ControlError("usage", f"cannot write {target}: {error.strerror}", "") from None
        raise
    return {"file": str(target), "members": names, "missing": missing, "warning": WARNING}


def _fill(file: io.BufferedWriter, directory: Path, call: Call, missing: dict[str, str]) -> list[str]:
    """Write all members; their names. Those that have only the reason for their absence are `missing`."""
    hidden = _hidden(directory)
    names = []
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, value in _members(directory, call):
            clean = redact.scrubbed(value, hidden)
            if reason := _lacking(clean):
                missing[name] = reason
            text = clean if isinstance(clean, str) else json.dumps(clean, indent=2, ensure_ascii=False) + "\n"
            octets = text.encode("utf-8", "backslashreplace")
            entry = tarfile.TarInfo(f"{_FOLDER}/{name}")
            entry.size, entry.mtime, entry.mode = len(octets), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(octets))
            names.append(name)
    return names


def _lacking(value: Json) -> str:
    """Why a member has nothing to tell, empty when it has; an adapter need not be there."""
    match value:
        case {"error": {"code": code, "message": str(reason)}}:
            return "" if code == "no-adapter" else reason
        case {"error": str(reason)}:
            return reason
    return ""


def _members(directory: Path, call: Call) -> Iterator[tuple[str, Json]]:
    yield "versions.json", versions()
    for name in REQUESTS:
        try:
            answer = call(name)
        except ControlError as error:
            yield f"{name}.json", {"error": error.plain()}
        else:
            yield (f"{name}.txt", answer["text"]) if name == "metrics" else (f"{name}.json", answer)
    try:
        os.listdir(directory)
    except OSError as error:  # who may steer the daemon need not be one who may read its files
        yield "configuration/files.json", {"error": f"{directory}: {error.strerror}"}
        return
    yield "configuration/files.json", _listing(directory)
    for path in _configuration(directory):
        name = str(path.relative_to(directory))
        try:
            value = redact.document(name, path.read_text(encoding="utf-8"))
        except OSError as error:
            value = {"error": f"{path}: {error.strerror}"}
        except UnicodeDecodeError:  # whose text has octets of the file
            value = {"error": f"{name} is no UTF-8"}
        except ValueError as error:
            value = {"error": str(error)}
        yield f"configuration/{name.removesuffix('.toml')}.json", value


def _configuration(directory: Path) -> list[Path]:
    """The files that may be shown."""
    names = ("ikd.toml", "policy.toml", "offload.toml", "groups.toml", _SECRETS)
    found = [directory / name for name in names if os.path.lexists(directory / name)]
    return [*found, *sorted(directory.glob("policy.d/*.toml"))]


def _hidden(directory: Path) -> tuple[str, ...]:
    """What must not be in any member; nothing when we may not read it, for then nothing of it can be."""
    try:
        return redact.secrets((directory / _SECRETS).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ()


def _listing(directory: Path) -> list[Json]:
    """Names, modes, owners and sizes, which tell of a key that everybody can read."""
    found: list[Json] = []
    for path in sorted(directory.rglob("*"))[:1000]:
        try:
            status = path.lstat()
        except OSError:
            continue
        found.append(
            {
                "name": str(path.relative_to(directory)),
                "mode": f"{status.st_mode:o}",
                "owner": f"{status.st_uid}:{status.st_gid}",
                "octets": status.st_size,
                "changed": stamp(status.st_mtime),
            }
        )
    return found


def versions() -> Json:
    """Of this program, what it stands on, and the system."""
    return {
        "ikctl": __version__,
        "python": sys.version,
        "system": platform.platform(),
        "time": stamp(time.time()),
        "user": os.geteuid(),
        "libraries": {name: found for name in _libraries() if (found := _version(name))},
    }


def _libraries() -> list[str]:
    try:
        wanted = requires("ikd") or []
    except PackageNotFoundError:  # run from the source tree
        wanted = []
    names = {one.split(";")[0].split(">")[0].split("=")[0].strip() for one in wanted}
    return sorted(names | {"cryptography", "pyroute2", "structlog"})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
