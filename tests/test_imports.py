"""The direction of imports and the line between pure and shell modules, read from the import statements.

If one of these fails, the protocol core has begun to depend on the world around it, or a lower layer on a
higher one: the fix is to move the code, seldom to change the tables here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ikd", "policy", "offload", "sadb")

# Whom a package may import, besides itself.
ALLOWED = {
    "sadb": frozenset(),
    "policy": frozenset({"sadb"}),
    "offload": frozenset({"sadb"}),
    "ikd": frozenset({"policy", "offload", "sadb"}),
}

# Inside ikd: a part may import parts that stand before it, and its own.
LAYERS = (
    frozenset({"settings", "events", "comparison", "exchange", "wire", "auth", "outputs"}),
    frozenset({"keying", "riders"}),
    frozenset({"life", "isakmp"}),
    frozenset({"association"}),
    frozenset({"halfopen"}),
    frozenset({"ikev1", "ikev2", "authip"}),
    frozenset({"coexist"}),
    frozenset({"endpoint"}),
    frozenset(
        {
            "__main__",
            "bench",
            "control",
            "daemon",
            "demo",
            "demo_memory",
            "driver",
            "keylog",
            "loading",
            "logs",
            "metrics",
            "network",
            "paths",
            "pki",
            "plane",
            "publisher",
            "readings",
            "systemd",
            "transport",
        }
    ),
)
PROTOCOLS = frozenset({"ikev1", "ikev2", "authip"})

# What only a shell module may import: it would bring in a clock, a network or a process.
OUTSIDE = frozenset(
    {
        "asyncio",
        "asyncio_dgram",
        "fcntl",
        "logging",
        "os",
        "pyroute2",
        "random",
        "secrets",
        "select",
        "selectors",
        "signal",
        "socket",
        "socketserver",
        "structlog",
        "subprocess",
        "tempfile",
        "threading",
        "time",
    }
)

MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """The dotted names a module imports when it runs, wherever in the file; not those for type checkers
    only."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending += ast.iter_child_nodes(node)


def is_shell(path: Path) -> bool:
    """Whether the first paragraph of the docstring says so."""
    return "Shell." in path.read_text(encoding="utf-8").split("\n\n")[0]


def layer(part: str) -> int | None:
    """The height of a part of ikd, None when it stands in no layer."""
    return next((n for n, parts in enumerate(LAYERS) if part in parts), None)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    """A package that imports upwards cannot be used, tested or replaced alone."""
    name = name_of(path)
    package = name.split(".")[0]
    for imported in imports(path):
        other = imported.split(".")[0]
        if other in PACKAGES and other != package:
            assert other in ALLOWED[package], f"{name} imports {imported}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "ikd")], ids=name_of)
def test_parts_of_ikd_import_only_downwards(path: Path) -> None:
    """An exchange that knows the endpoint, or a protocol that knows another, cannot be read alone."""
    name = name_of(path)
    if name == "ikd":
        return
    part = name.split(".")[1]
    height = layer(part)
    assert height is not None, f"{name}: say in LAYERS of this test where {part} stands"
    for imported in imports(path):
        pieces = imported.split(".")
        if pieces[0] != "ikd" or len(pieces) < 2:
            continue
        other = layer(pieces[1])
        if other is None:  # a name out of ikd/__init__.py
            continue
        assert other <= height, f"{name} imports {imported}, which stands above it"
        assert pieces[1] == part or not {part, pieces[1]} <= PROTOCOLS, f"{name} imports {imported}"


@pytest.mark.parametrize("path", [p for p in MODULES if not is_shell(p)], ids=name_of)
def test_pure_module_reaches_for_nothing_outside(path: Path) -> None:
    """A pure module that reads the clock or a socket cannot run in virtual time; if it must, it is a shell
    module and its docstring says "Shell." in the first paragraph."""
    outside = {one for one in imports(path) if one.split(".")[0] in OUTSIDE}
    assert not outside, f"{name_of(path)} is pure and imports {', '.join(sorted(outside))}"


@pytest.mark.parametrize("path", [p for p in MODULES if not is_shell(p)], ids=name_of)
def test_pure_module_imports_no_shell_module(path: Path) -> None:
    """Purity that holds only until the next import is none."""
    shells = {name_of(p) for p in MODULES if is_shell(p)}
    reached = set(imports(path)) & shells
    assert not reached, f"{name_of(path)} is pure and imports {', '.join(sorted(reached))}"
