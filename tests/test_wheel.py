"""The wheel: built without a network, complete, and good for both programs where only it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ikd", "offload", "policy", "sadb")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")


def run(command: Iterable[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A program that must not find this directory by itself."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [*command], cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, so that nothing is left in the tree; without a compiler, which takes long."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    # what builds it is what the tests run with; a Python path given to these is given on
    path = os.environ.get("PYTHONPATH", "")
    command = [*PIP, "wheel", ".", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(out)]
    done = run(command, source, CC="/bin/false", PYTHONPATH=path.replace(str(ROOT), ""))
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("ikd-*.whl")
    return found


def test_everything_is_in_it(wheel: Path) -> None:
    """A module that is missing is found by whoever first uses it; one that is too much may be a test or a
    key."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    typed = {f"{name}/py.typed" for name in PACKAGES} | {"offload/_native.pyi"}
    assert inside == modules | typed


def test_both_programs_run_from_it(wheel: Path, tmp_path: Path) -> None:
    """What `pip install` of the wheel gives, also where there was no compiler for the native engine."""
    target = tmp_path / "site"
    install = [
        *PIP,
        "install",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--target",
        str(target),
        str(wheel),
    ]
    done = run(install, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for command, expected in (
        (("ikd", "--version"), "ikd 0.1.0"),
        (("ikctl", "--help"), "negotiation failed"),
        (("ikctl", "init", "--help"), "--peer"),
        (("ikctl", "completion", "bash"), "_IKCTL_COMPLETE"),
    ):
        program, *words = command
        done = run([str(target / "bin" / program), *words], tmp_path, PYTHONPATH=str(target))
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    done = run([sys.executable, "-c", "import ikd; print(ikd.__file__)"], tmp_path, PYTHONPATH=str(target))
    assert done.stdout.strip() == str(target / "ikd" / "__init__.py"), "another copy was tried"


@pytest.mark.parametrize(
    ("typed", "expected"), [("ikctl po", "policy"), ("ikctl policy sh", "show"), ("ikctl cert ren", "renew")]
)
def test_completion(typed: str, expected: str, tmp_path: Path) -> None:
    """What the script of `ikctl completion bash` asks for at the tabulator key."""
    code = "from ikd.control.cli import main; main()"
    done = run(
        [sys.executable, "-c", code],
        tmp_path,
        PYTHONPATH=str(ROOT),
        _IKCTL_COMPLETE="bash_complete",
        COMP_WORDS=typed,
        COMP_CWORD=str(len(typed.split()) - 1),
    )
    assert f"plain,{expected}" in done.stdout.splitlines(), done.stdout + done.stderr
