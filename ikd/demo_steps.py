"""Shell. What both ways to run `make demo` have: the files, lines that are shown, what was on the wire."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ikd import pki

CONFIGURATION: Final = Path(__file__).resolve().parents[1] / "conf" / "demo"
PLACEHOLDER: Final = "/run/ikd-demo"  # in the files; each run has a directory of its own
SIDES: Final = {"left": "192.0.2.1", "right": "192.0.2.2"}
MARKER: Final = b"this text must not be readable on the wire. "


class DemoFailed(Exception):
    """A step did not do what it should; the text says which and what was seen."""


def prepare(directory: Path) -> dict[str, Path]:
    """Copy both configurations and issue each host a certificate of a new authority."""
    now = time.time()
    authority = pki.make_ca("CN=Demo CA", now, days=30)
    made = {}
    for side, address in SIDES.items():
        home = made[side] = directory / side
        shutil.copytree(CONFIGURATION / side, home)
        settings = home / "ikd.toml"
        settings.write_text(settings.read_text().replace(PLACEHOLDER, str(directory)))
        host = pki.issue(authority, f"CN={side}.example", [f"{side}.example", address], now=now, days=30)
        (home / "pki").mkdir()
        (home / "pki" / "ca.pem").write_bytes(pki.certificate_pem(authority.certificate))
        (home / "pki" / "host.pem").write_bytes(pki.certificate_pem(host.certificate))
        key = home / "pki" / "host.key"
        key.touch(mode=0o600)
        key.write_bytes(pki.key_pem(host.key))
    return made


class Steps:
    """What the reader sees: one line for each thing done, with the seconds since the beginning."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def done(self, text: str) -> None:
        """A step that worked."""
        line = Text(f"{self.elapsed():5.1f} s  ", style="dim")
        self.console.print(
            line.append("✓ ", style="bold green").append(Text.from_markup(text, style="default"))
        )

    def policy(self, home: Path) -> None:
        """A policy file as the reader would write it."""
        text = re.sub(r"^#.*\n+", "", (home / "policy.toml").read_text(), flags=re.MULTILINE).strip()
        shown = Syntax(text, "toml", background_color="default")
        self.console.print(Panel(shown, title=f"policy.toml of {home.name}", title_align="left", width=60))

    def output(self, title: str, text: str) -> None:
        """What a command printed."""
        self.console.print(Text(f"\n$ {title}", style="bold"))
        self.console.print(Text.from_ansi(text.rstrip()))


def ikctl(control: Path, *arguments: str) -> str:
    """What an `ikctl` command prints."""
    program = "from ikd.control.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--socket", str(control), *arguments],
        env=os.environ | {"COLUMNS": "110"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


# The wire ------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What passed a link: packets by kind, and whether the marker could be read."""

    kinds: Counter[str] = field(default_factory=Counter)
    octets: Counter[str] = field(default_factory=Counter)
    readable: int = 0

    def take(self, frame: bytes) -> None:
        """One frame off the link."""
        kind = kind_of(frame)
        if kind:
            self.kinds[kind] += 1
            self.octets[kind] += len(frame)
            self.readable += MARKER in frame


def kind_of(frame: bytes) -> str:
    """What an Ethernet frame is for somebody who listens; nothing for the link's own address resolution."""
    ethertype = frame[12:14]
    if ethertype == b"\x08\x06":
        return ""
    if ethertype == b"\x86\xdd":
        # neighbour discovery and multicast reports of the link-local addresses, which no rule covers
        return "" if frame[20] in (0, 58) else "IPv6"
    if ethertype != b"\x08\x00":
        return "not IP"
    at = 14 + (frame[14] & 15) * 4
    protocol = frame[23]
    if protocol == socket.IPPROTO_ESP:
        return "ESP"
    if protocol == socket.IPPROTO_UDP:
        ports = {int.from_bytes(frame[at : at + 2], "big"), int.from_bytes(frame[at + 2 : at + 4], "big")}
        if 500 in ports or (4500 in ports and frame[at + 8 : at + 12] == bytes(4)):
            return "IKE"
        return "ESP in UDP" if 4500 in ports else "UDP in the clear"
    return {1: "ICMP in the clear", 6: "TCP in the clear"}.get(protocol, f"IP protocol {protocol}")


def judge(steps: Steps, seen: Seen, sent: int) -> None:
    """Show what was on the wire; raises `DemoFailed` when anything could be read."""
    table = Table(title="On the wire between the hosts", title_justify="left", title_style="bold")
    for name in ("packets", "octets"):
        table.add_column(name, justify="right")
    table.add_column("kind")
    for kind, count in seen.kinds.most_common():
        table.add_row(f"{count:,}", f"{seen.octets[kind]:,}", kind)
    steps.console.print(table)
    clear = sorted(set(seen.kinds) - {"ESP", "ESP in UDP", "IKE"})
    if clear or seen.readable:
        raise DemoFailed(f"readable on the wire: {', '.join(clear)}; {seen.readable} packets with our text")
    steps.done(f"only ESP and IKE: a text sent {sent:,} times was seen [b]0[/b] times")
