"""The adapter's process, whose ports belong to guests: what one of them does costs the others nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from offload.nic import management
from offload.nic.process import Nic
from offload.nic.rings import wire

pytestmark = pytest.mark.parametrize("engine", ["python"])


@pytest.fixture
def adapter() -> Iterator[tuple[Nic, socket.socket]]:
    """An adapter in this process, and its manager's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, ExitStack() as stack:
        made = Nic(management.Order("ideal", theirs.detach()))
        stack.callback(made.manager.close)
        stack.callback(made.poll.close)
        yield made, ours


def attach(made: Nic, natt: list[int], raw: list[int]) -> socket.socket:
    """A port with these sockets; the guest's end for requests."""
    host, plug = wire()
    host.close()
    guest, control = socket.socketpair()
    filenos = [*plug.filenos(), control.detach(), *raw, *natt]
    made._attach(management.Attach("vm", 10, plug.slots, plug.room, len(raw), len(natt)), filenos)
    return guest


def test_sockets_of_a_guest_may_be_anything(adapter: tuple[Nic, socket.socket], engine: str) -> None:
    """Whatever it passes is refused or served; the adapter, which others use, goes on."""
    made, manager = adapter
    for kind in ((socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_STREAM)):
        for as_raw in (False, True):
            fileno = socket.socket(*kind).detach()
            attach(made, [] if as_raw else [fileno], [fileno] if as_raw else []).close()
            assert "vm" not in made.ports
            assert management.news_of(manager.recv(1000)) == management.Gone("vm")
    attach(made, [os.open("/dev/null", os.O_RDWR)], []).close()
    assert "vm" not in made.ports
    good = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    good.bind(("127.0.0.1", 0))
    with attach(made, [good.detach()], []):
        assert "vm" in made.ports
        made._detach("vm")


def test_a_guest_that_is_gone_while_the_link_is_down(adapter: tuple[Nic, socket.socket], engine: str) -> None:
    """Telling it of the link must not end the adapter."""
    made, _ = adapter
    made._link(False)
    good = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    good.bind(("127.0.0.1", 0))
    host, plug = wire()
    host.close()
    guest, control = socket.socketpair()
    guest.close()
    made._attach(
        management.Attach("vm", 10, plug.slots, plug.room, 0, 1),
        [*plug.filenos(), control.detach(), good.detach()],
    )
    assert "vm" not in made.ports
