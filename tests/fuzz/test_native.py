"""The native loop under address and undefined-behaviour sanitizers: the engine's tests, and a fuzz target."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.require import require

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(str(one) for one in (ROOT / "offload/native").glob("*.c"))
SECONDS = int(os.environ.get("FUZZ_SECONDS", "30"))
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DWITH_SANITIZERS")
# with both libraries, where this machine has both
CIPHERS = {"openssl": ("-lcrypto",)}
if Path("/usr/include/intel-ipsec-mb.h").exists():
    CIPHERS["ipsec-mb"] = ("-DWITH_IPSEC_MB", "-lcrypto", "-lIPSec_MB")


def build(compiler: str, *arguments: str) -> None:
    """Compile; what the compiler complains of is the failure."""
    require(shutil.which(compiler) is not None, f"{compiler} (apt-get install {compiler})")
    command = [
        compiler,
        "-std=gnu11",
        "-g",
        "-O1",
        *SANITIZERS,
        "-I",
        str(ROOT / "offload/native"),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cipher", CIPHERS)
def test_engine_under_sanitizers(tmp_path: Path, cipher: str) -> None:
    """What the engine's tests do must read and write nothing but its own memory: a stray octet would be a
    stranger's way in. They run in a copy, so that nobody else gets this build."""
    for name in ("offload", "sadb", "policy", "ikd", "tests"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    module = tmp_path / "offload" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    build("gcc", "-shared", "-fPIC", "-I", include, *SOURCES, "-o", str(module), *CIPHERS[cipher])
    runtimes = [
        subprocess.check_output(["gcc", f"-print-file-name={one}"], text=True).strip()
        for one in ("libasan.so", "libubsan.so")
    ]
    names = ("engine", "engine_inbound", "path", "trains", "adapter", "rings", "carry")
    tests = [f"tests/offload/test_{name}.py" for name in names]
    # with an adapter those that are about one
    chosen = "native and (test_adapter or not native-adapter) or test_carry"
    show = f"import offload._native as it; assert it.__file__ == {str(module)!r}, it.__file__"
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps much until its end
        "PYTHONPATH": str(tmp_path),
        "REQUIRE_INTEROP": "1",
    }
    for arguments in (("-c", show), ("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", chosen)):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.timeout(SECONDS + 120)
def test_fuzz_target_finds_nothing(tmp_path: Path) -> None:
    """Frames of the host and packets of an authenticated peer may hold anything, and so may the memory that
    an adapter shares."""
    cipher = list(CIPHERS)[-1]
    parts = [one for one in SOURCES if not one.endswith("module.c")]
    target = tmp_path / "fuzz_native"
    source = str(ROOT / "tests/fuzz/fuzz_native.c")
    build("clang-14", "-fsanitize=fuzzer", source, *parts, "-o", str(target), *CIPHERS[cipher])
    done = subprocess.run(
        [str(target), f"-max_total_time={SECONDS}", "-max_len=4096", f"-artifact_prefix={tmp_path}/"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "DONE" in done.stderr
