"""What is installed here as wheels again, so that another environment can be made without a package index."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(wanted: Iterable[str]) -> dict[str, Distribution]:
    """The distributions that requirements such as `ikd[kerberos]` lead to, those included."""
    found: dict[str, Distribution] = {}
    ahead = [Requirement(one) for one in wanted]
    while ahead:
        one = ahead.pop()
        name = canonicalize_name(one.name)
        if name not in found:
            found[name] = distribution(name)
        extras = one.extras or {""}
        for text in found[name].requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            applies = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
            if applies and canonicalize_name(requirement.name) not in found:
                ahead.append(requirement)
    return found


def repack(one: Distribution, directory: Path) -> None:
    """A wheel of an installed distribution; its commands are made again out of its metadata."""
    about = one.read_text("WHEEL") or ""
    tags = [line.removeprefix("Tag: ").split("-") for line in about.splitlines() if line.startswith("Tag: ")]
    tag = "-".join(".".join(dict.fromkeys(part)) for part in zip(*tags, strict=True))
    name = canonicalize_name(one.name).replace("-", "_")
    with zipfile.ZipFile(directory / f"{name}-{one.version}-{tag}.whl", "w") as wheel:
        for file in one.files or ():
            path = Path(str(one.locate_file(file)))
            if ".." not in file.parts and file.suffix != ".pyc" and path.exists():
                wheel.write(path, str(file))
