"""The compiled part of the package: offload._native, built where a compiler and OpenSSL's headers are.

Without them the package is complete all the same: the engine in Python serves, and `ikctl status` says so.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("offload/native")


def native() -> Extension:
    """The extension, with Intel's AES-GCM where it is installed (Debian: libipsec-mb-dev)."""
    macros, libraries = [], ["crypto"]
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"]
    if platform.machine() == "x86_64" and Path("/usr/include/intel-ipsec-mb.h").exists():
        macros.append(("WITH_IPSEC_MB", "1"))
        libraries.append("IPSec_MB")
    return Extension(
        "offload._native",
        sorted(map(str, SOURCES.glob("*.c"))),
        depends=[str(SOURCES / name) for name in ("native.h", "module.h")],
        define_macros=macros,
        libraries=libraries,
        extra_compile_args=flags,
        optional=True,
    )


setup(ext_modules=[native()])
