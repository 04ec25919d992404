"""The direction of imports and the line between pure and shell modules, read from the import statements.

If one of these fails, the protocol core has begun to depend on the world around it, or a lower layer on a
higher one: the fix is to move the code, seldom to change the tables here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

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
    frozenset({"life"}),
    frozenset({"association"}),
    frozenset({"admission", "alarms", "halfopen", "isakmp", "pace", "register"}),
    frozenset({"ikev1", "ikev2", "authip"}),
    frozenset({"adoption", "coexist"}),
    frozenset({"endpoint"}),
    frozenset(
        {
            "__main__",
            "atomic",
            "bench",
            "control",
            "daemon",
            "demo",
            "demo_memory",
            "demo_steps",
            "driver",
            "journal",
            "keylog",
            "loading",
            "logs",
            "loop",
            "metrics",
            "migrate",
            "network",
            "nic_plane",
            "offload_file",
            "paths",
            "pki",
            "plane",
            "publisher",
            "rates",
            "readings",
            "scraping",
            "sieving",
            "state_file",
            "systemd",
            "traffic",
            "transport",
        }
    ),
)
# Folders of offload, each of which may import what stands before it; the engine, on top level, imports none.
FOLDERS = ("host", "nic", "workers", "switch")
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


@cache
def imports(path: Path) -> tuple[str, ...]:
    """The dotted names a module imports when it runs, wherever in the file; not those for type checkers
    only."""
    return tuple(_imports(path, typing=False))


def _imports(path: Path, *, typing: bool) -> Iterator[str]:
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing:
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


def test_modules_import_only_what_their_layer_may() -> None:
    """A package that imports upwards cannot be used, tested or replaced alone."""
    found = [
        f"{name_of(path)} imports {imported}"
        for path in MODULES
        for imported in imports(path)
        if (other := imported.split(".")[0]) in PACKAGES
        and other != (package := name_of(path).split(".")[0])
        and other not in ALLOWED[package]
    ]
    assert not found


def upwards(path: Path) -> Iterator[str]:
    """What a module of ikd imports and may not."""
    name = name_of(path)
    part = name.split(".")[1]
    height = layer(part)
    if height is None:
        yield f"{name}: say in LAYERS of this test where {part} stands"
        return
    for imported in imports(path):
        pieces = imported.split(".")
        if pieces[0] != "ikd" or len(pieces) < 2:
            continue
        other = layer(pieces[1])
        if other is None:  # a name out of ikd/__init__.py
            continue
        if other > height:
            yield f"{name} imports {imported}, which stands above it"
        if pieces[1] != part and {part, pieces[1]} <= PROTOCOLS:
            yield f"{name} imports {imported}, another protocol"


def test_parts_of_ikd_import_only_downwards() -> None:
    """An exchange that knows the endpoint, or a protocol that knows another, cannot be read alone."""
    parts = [one for one in MODULES if one.is_relative_to(ROOT / "ikd") and name_of(one) != "ikd"]
    assert len(parts) > 50
    assert not [line for path in parts for line in upwards(path)]


def folder(name: str) -> int:
    """The height of a module of offload; -1 for the engine's."""
    pieces = name.split(".")
    return FOLDERS.index(pieces[1]) if len(pieces) > 1 and pieces[1] in FOLDERS else -1


def test_folders_of_offload_import_only_downwards() -> None:
    """An engine that knows adapters, or an adapter that knows who manages it, cannot be used alone."""
    parts = [one for one in MODULES if one.is_relative_to(ROOT / "offload")]
    assert {folder(name_of(one)) for one in parts} == {-1, 0, 1, 2, 3}
    assert not [
        f"{name_of(path)} imports {imported}"
        for path in parts
        for imported in imports(path)
        if imported.split(".")[0] == "offload" and folder(imported) > folder(name_of(path))
    ]


def test_pure_modules_reach_for_nothing_outside() -> None:
    """A pure module that reads the clock or a socket cannot run in virtual time; if it must, it is a shell
    module and its docstring says "Shell." in the first paragraph. Nor may it import such a module: purity
    that holds only until the next import is none."""
    shells = {name_of(path) for path in MODULES if is_shell(path)}
    found = []
    for path in MODULES:
        if not is_shell(path):
            outside = {one for one in imports(path) if one.split(".")[0] in OUTSIDE or one in shells}
            found += [f"{name_of(path)} is pure and imports {one}" for one in sorted(outside)]
    assert not found


def test_no_modules_import_each_other() -> None:
    """Modules in a circle are one module in several files: none of them can be understood, tested or moved
    without the others. Imports for type checkers count, too: what one needs of another that stands above it
    is a `Protocol`."""
    names = {name_of(path) for path in MODULES}
    graph = {
        name: {one for one in _imports(path, typing=True) if one in names and not name.startswith(f"{one}.")}
        for path in MODULES
        for name in (name_of(path),)
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None
