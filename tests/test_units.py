"""The files of `systemd/`, as systemd itself judges them; no service manager has to run for that."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.require import require

UNITS = Path(__file__).resolve().parents[1] / "systemd"
SERVICE = (UNITS / "ikd.service").read_text()


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    require(shutil.which("systemd-analyze") is not None, "systemd-analyze")
    command = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_knows_every_word(tmp_path: Path) -> None:
    """A misspelt directive is only warned of at run time, and the restriction is not there."""
    units = [path for path in UNITS.iterdir() if path.suffix in (".service", ".socket")]
    assert len(units) >= 3
    for path in units:
        # systemd wants to find the program; where it is here does not matter
        text = re.sub(r"(?m)^(Exec\w+)=ik\w+", rf"\1={sys.executable}", path.read_text())
        (tmp_path / path.name).write_text(text)
    done = analyze(
        "verify", "--man=no", "--recursive-errors=one", *(str(tmp_path / one.name) for one in units)
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_exposure_is_two_at_most() -> None:
    """What `systemd-analyze security` counts is what whoever takes the daemon over may do."""
    done = analyze("security", "--offline=true", "--threshold=20", str(UNITS / "ikd.service"))
    assert done.returncode == 0, done.stdout


def setting(name: str) -> set[str]:
    """The words of a setting, of all its lines."""
    return {word for line in re.findall(rf"(?m)^{name}=(.*)$", SERVICE) for word in line.split()}


@pytest.mark.parametrize("name", ["CapabilityBoundingSet", "SystemCallFilter", "RestrictAddressFamilies"])
def test_every_right_says_what_for(name: str) -> None:
    """Nobody takes away a right whose use he does not know."""
    comments = "\n".join(line for line in SERVICE.splitlines() if line.startswith("#"))
    rights = {word for word in setting(name) if word[0] not in "@~"}
    assert rights
    assert {word for word in rights if word not in comments} == set()


def test_no_right_beyond_the_bounding_set() -> None:
    """A capability that is only in one of the two lines does nothing, or is there for whoever gets out."""
    assert setting("AmbientCapabilities") == setting("CapabilityBoundingSet")
