"""What a worker believes of an adapter's answers.

If one of these fails, an adapter that somebody has taken over keeps the worker from carrying anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from support import engines

from offload.channel import Decoder, address, framed
from offload.nic.capabilities import PROFILES
from offload.nic.driver import Driver
from offload.nic.link import NicLink
from offload.nic.requests import Added, Deleted, Refused, Request, TooBig
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


class Endless:
    """A socket on which there is always something more: the other end is faster than we are."""

    reads = 0

    def recv(self, size: int) -> bytes:
        self.reads += 1
        assert self.reads < 1000, "listens for ever"
        return framed(Deleted(7)) * 1000


def test_one_that_never_ends_is_not_listened_to_for_ever(
    link: tuple[NicLink, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that only listens carries nothing, and is ended as one that hangs; so is the next one."""
    made, _ = link
    with monkeypatch.context() as patch:
        patch.setattr(made, "control", Endless())
        made.hear(1.0)


def test_nothing_grows_with_what_an_adapter_says(link: tuple[NicLink, socket.socket]) -> None:
    """Handles that it never gave, and reasons that there are not, are nothing to remember."""
    made, theirs = link
    for number in range(2000):
        theirs.sendall(framed(Deleted(number + 1)) + framed(Refused(number, f"because of {number}")))
        made.hear(1.0)
    assert made._driver.counters == {"refused: refused": 2000}
    assert made._driver._ended == (set(), set())


def test_requests_that_are_not_taken(link: tuple[NicLink, socket.socket]) -> None:
    """An SA that was never asked for is to be deleted; an adapter that adds such ones and takes no requests
    would have them pile up here."""
    made, theirs = link
    flock = b"".join(framed(Added(1, handle)) for handle in range(1, 3000))
    decoder, taken = Decoder(Request, 1 << 16), list[object]()
    theirs.sendall(flock)
    made.hear(1.0)
    made.push()
    while len(taken) < 2999:
        taken += decoder.feed(theirs.recv(1 << 16))
        made.push()
    with pytest.raises(Broken):  # noqa: PT012 - which time it is depends on the socket
        for _ in range(1000):
            theirs.sendall(flock)
            made.hear(1.0)
            made.push()
