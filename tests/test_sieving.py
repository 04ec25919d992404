"""A flood of first messages is thinned out before anybody is woken, and strangers still get in."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path as File
from types import SimpleNamespace
from typing import Any

import pytest
from support.loopback import free_ports, pair, until

from ikd.bench import spoof
from ikd.events import CookieDemanded, DatagramDropped, Event, FloodBegan, FloodOver
from ikd.sieving import EVERY, LEAST, Sieving, adjusted
from ikd.transport import Transport
from sadb.address import Path, SocketAddress, parse

MOST = 1000.0
SOMEBODY = Path(SocketAddress(parse("192.0.2.1"), 500), SocketAddress(parse("192.0.2.9"), 500))


class Flooded:
    """A sieve without sockets, and so many first messages a second that would pass it."""

    def __init__(self) -> None:
        self.shares: list[tuple[float, float]] = []
        self.events: list[Event] = []
        self._due: list[Callable[[], None]] = []
        transport: Any = SimpleNamespace(sieve=lambda *shares: self.shares.append(shares))
        later = lambda _, call: self._due.append(call)  # noqa: E731
        self.sieving = Sieving(transport, self.events.append, later, lambda: MOST)

    @property
    def strangers(self) -> float:
        """What passes of those without a cookie."""
        return self.shares[-1][0] if self.shares else 1.0

    def turn(self, rate: float) -> float:
        """One look later: how many a second were answered."""
        answered = round(rate * EVERY * self.strangers)
        listener = self.sieving.listener(CookieDemanded)
        assert listener is not None
        for _ in range(answered):
            listener(CookieDemanded(path=SOMEBODY))
        for call in [self._due.pop() for _ in self._due]:
            call()
        return answered / EVERY

    @property
    def resting(self) -> bool:
        """Whether nothing is watched any more."""
        return not self._due


def test_a_kernel_without_memory_is_asked_again() -> None:
    """In a flood that is when it may have none; who did not look again would have no sieve for ever."""
    made = Flooded()
    refusing = made.sieving._transport.sieve

    def refuse(*shares: float) -> None:
        made.sieving._transport.sieve = refusing  # type: ignore[method-assign]
        raise OSError(errno.ENOMEM, "no memory")

    made.sieving._transport.sieve = refuse  # type: ignore[method-assign]
    made.turn(20_000)
    assert (made.shares, made.events, made.sieving.trouble) == ([], [], "")
    made.turn(20_000)
    assert made.strangers < 1.0
    assert [type(one) for one in made.events] == [FloodBegan]


def test_a_flood_is_brought_down_and_let_go() -> None:
    """Answering takes the time that established peers need; a sieve that stays after the flood turns honest
    strangers away."""
    made = Flooded()
    answered = [made.turn(20_000) for _ in range(20)]
    assert answered[0] == 20_000
    assert all(one <= 1.1 * MOST for one in answered[1:])
    assert min(answered[2:]) >= 0.4 * MOST
    assert [type(one) for one in made.events] == [FloodBegan]
    assert "flood" in made.sieving.trouble
    for _ in range(12):
        made.turn(30)  # usual days
    assert [type(one) for one in made.events] == [FloodBegan, FloodOver]
    assert made.strangers == 1.0
    assert not made.sieving.trouble
    made.turn(0)
    assert made.resting


def test_usual_days_are_not_sieved() -> None:
    """A site that comes back after a power failure is no flood."""
    made = Flooded()
    for _ in range(10):
        made.turn(0.9 * MOST)
    assert not made.shares
    assert not made.events


def test_strangers_with_a_cookie_go_last() -> None:
    """They have mostly shown that they receive at their address."""
    share = 1.0
    for _ in range(50):  # a flood that goes on however small the share is: of forged cookies
        share = adjusted(share, 50_000, MOST)
        strangers, returning = max(LEAST, share), min(1.0, share / LEAST)
        assert strangers == LEAST or returning == 1.0
    assert share > 0
    assert returning < 0.01


def test_a_full_table_counts_like_a_cookie() -> None:
    """Where nobody is asked for cookies, as in IKEv1 without them, a flood costs as much."""
    made = Flooded()
    listener = made.sieving.listener(DatagramDropped)
    assert listener is not None
    listener(DatagramDropped(reason="malformed"))
    assert made.resting
    listener(DatagramDropped(reason="half-open-limit"))
    assert not made.resting


@pytest.fixture
def octets() -> bytes:
    """A first message."""
    return bytes(spoof.packet("192.0.2.2")[28:])


async def test_real_sockets(tmp_path: File, octets: bytes) -> None:
    """The kernel does what the program says: with a share of nothing first messages vanish, and are counted;
    everything for an SA that is there passes; and it ends."""
    async with pair(tmp_path, settings="[limits]\ncookie_threshold = 0\n") as (left, right):
        await left.ask("up", name="net")
        path = next(iter(right.daemon.endpoint.associations.values())).path
        left.daemon.transport.sieve(0.0, 1.0)

        def send(number: int) -> None:
            data = number.to_bytes(8, "big") + octets[8:]
            for port in (left.daemon.transport.port, left.daemon.transport.nat_port):
                here = Path(SocketAddress(path.local.address, port), SocketAddress(path.peer.address, port))
                right.daemon.transport.send(data, here)

        before = left.daemon.transport.unread()
        for number in range(1, 6):
            send(number)
        await right.ask("rekey", name="net")
        assert left.daemon.transport.unread() - before == 10
        assert not left.happened(CookieDemanded)
        left.daemon.transport.sieve(1.0, 1.0)
        send(9)
        await until(lambda: len(left.happened(CookieDemanded)) == 2)


async def test_cookies_pass_a_sieve_for_strangers(octets: bytes) -> None:
    """Else nobody could ever get in during a flood."""
    came: list[bytes] = []
    receiver: Any = SimpleNamespace(ike=lambda data, path: came.append(data), esp=came.extend, trouble=print)
    transport = Transport([parse("127.0.0.1")], free_ports(), receiver)
    transport.open(asyncio.get_running_loop())
    try:
        transport.sieve(0.0, 1.0)
        places = [one.sock.getsockname() for one in transport._sockets]
        returning = octets[:16] + b"\x29" + octets[17:]
        answer = octets[:8] + b"\x01" * 8 + octets[16:]
        for data in (octets, returning, answer):
            transport._sockets[1].sock.sendto(data, places[0])
        await until(lambda: len(came) == 2)
        assert came == [returning, answer]
    finally:
        transport.close()
