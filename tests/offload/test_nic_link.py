"""What a worker believes of an adapter's answers.

If one of these fails, an adapter that somebody has taken over keeps the worker from carrying anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from support import engines

from offload.channel import address, framed
from offload.nic.capabilities import PROFILES
from offload.nic.driver import Driver
from offload.nic.link import NicLink
from offload.nic.requests import Added, TooBig
from offload.nic.rings import wire
from offload.nic.slots import Broken

pytestmark = engines.ONE_ENGINE


def told(report: TooBig) -> None:
    """As a worker hears of path MTUs."""
    address(report.destination)


@pytest.fixture
def link() -> Iterator[tuple[NicLink, socket.socket]]:
    """A link, and the adapter's end of the socket for requests."""
    host, adapter = wire(4, 4096)
    ours, theirs = socket.socketpair()
    made = NicLink(host, ours.detach(), Driver(PROFILES["ideal"]), lambda arrived: None, told)
    yield made, theirs
    made.close()
    adapter.close()
    theirs.close()


@pytest.mark.parametrize("handle", [0, -1])
def test_a_handle_that_no_descriptor_can_have(link: tuple[NicLink, socket.socket], handle: int) -> None:
    """The first packet for it could not be put into the ring, nor any behind it."""
    made, theirs = link
    theirs.sendall(framed(Added(1, handle)))
    with pytest.raises(Broken):
        made.hear(1.0)


def test_an_address_that_is_none(link: tuple[NicLink, socket.socket]) -> None:
    """A path MTU to nowhere."""
    made, theirs = link
    theirs.sendall(framed(TooBig(bytes(5), 1400, None)))
    with pytest.raises(Broken):
        made.hear(1.0)
