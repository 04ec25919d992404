"""The virtual switch and those behind its ports. If one of these fails, a guest costs others their slots, or
the host's daemon its time."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import sas

from offload.nic.capabilities import PROFILES, Direction
from offload.nic.management import Quota, Status
from offload.nic.rings import wire
from offload.switch import port_protocol, switch
from offload.switch.adapters import Plugged
from offload.switch.guest import Guest
from offload.switch.port_protocol import Claim, Join, Used, facts
from offload.switch.ports import HOST, Ports
from offload.switch.switch import JOINS, PATIENCE, Switch
from sadb.sa import Mode

pytestmark = pytest.mark.parametrize("engine", ["python"])
PORT = "vm"


class Adapter:
    """In the place of the adapter's process: what it was told."""

    def __init__(self) -> None:
        self.quotas: dict[str, Quota] = {}
        self.attached: list[str] = []
        self.deliver: Callable[[Plugged], None]
        self.detached: list[str] = []

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def attach(
        self, port: str, raw: Sequence[int], natt: Sequence[int], deliver: Callable[[Plugged], None]
    ) -> None:
        self.attached.append(port)
        self.deliver = deliver

    def detach(self, port: str) -> None:
        self.detached.append(port)

    def allow(self, quota: Quota) -> None:
        self.quotas[quota.port] = quota

    def close(self) -> None:
        """Nothing to end."""


class Site:
    """A switch with a port for a guest, and a clock that is moved by hand."""

    def __init__(self, place: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.ports = Ports(PROFILES["ideal"], packet_mode=True, resend_lost=False)
        self.ports.attach(PORT, limit=10)
        self.warned: list[str] = []
        self.now = 100.0
        self.adapter = Adapter()
        self.switch = Switch(self.ports, place, lambda *decision: None, lambda why: None, self.warned.append)
        self.switch.adapter = self.adapter  # type: ignore[assignment]
        self.switch._now = lambda: self.now  # type: ignore[method-assign]
        self.switch.open(self.loop)
        self.switch.steering.link(True, self.now)

    def turns(self, count: int = 5) -> None:
        for _ in range(count):
            self.loop.run_until_complete(asyncio.sleep(0))

    def guest(self) -> socket.socket:
        """Whoever connects is the port."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.connect(str(self.switch.path(PORT)))
        self.turns()
        return made

    def says(self, guest: socket.socket, message: object, filenos: Sequence[int] = ()) -> bool:
        """Say something to the switch; whether the guest is still behind its port then."""
        with suppress(BrokenPipeError):
            socket.send_fds(guest, [port_protocol.encode(message)], list(filenos))
        self.turns()
        return self.switch.attached(PORT)

    def claims(self, guest: socket.socket, ident: int) -> None:
        pair = sas.pair(2 * ident, mode=Mode.TRANSPORT)
        claim = Claim(ident, facts(pair.inbound), facts(pair.outbound), "peer", "rule", True, None)
        assert self.says(guest, claim)

    def status(self, used: int) -> None:
        """What the adapter reports."""
        self.switch._status(Status({}, {}, {PORT: used}, (used, 0), 0, True))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.switch.close()
    made.turns()
    made.loop.close()


def test_the_adapter_knows_what_each_port_may_have(site: Site, engine: str) -> None:
    """Also of ports behind which nobody is: their reserves are kept from others as well."""
    site.ports.attach("other", reserve=6, trusted=False)
    site.ports.change(PORT, limit=20, reserve=5)
    site.switch.follow()
    assert site.adapter.quotas == {
        HOST: Quota(HOST, 512, True, (0, 0)),
        PORT: Quota(PORT, 20, True, (3, 2)),
        "other": Quota("other", 512, False, (6, 0)),
    }
    site.ports.detach("other")
    site.ports.enabled = False
    site.switch.follow()
    assert [one.limit for one in site.adapter.quotas.values()] == [0, 0, 0]
    assert site.adapter.quotas["other"].kept == ()


def test_no_port_is_attached_again_and_again(site: Site, engine: str) -> None:
    """The adapter makes memory for each: one guest could have it do nothing else, and then it would be taken
    for hung and ended, with all that others have in it. A new connection does not make a new start."""
    for _ in range(4):
        with site.guest() as guest:
            for _ in range(10):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                    site.says(guest, Join(0, 1), [udp.fileno()])
            assert not site.switch.attached(PORT)
    assert site.adapter.attached == [PORT] * int(JOINS[1])
    site.now += 1.0
    with site.guest() as guest, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        assert site.says(guest, Join(0, 1), [udp.fileno()])


def test_nonsense_leaves_no_descriptor_open(site: Site, engine: str) -> None:
    """Nor does a guest that brings others sockets: else the host's daemon would have no more some day."""
    with site.guest() as guest, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        before = len(os.listdir("/proc/self/fd"))
        assert site.says(guest, Used([]), [udp.fileno()] * 30)
        assert len(os.listdir("/proc/self/fd")) == before
        assert site.says(guest, Join(0, 1), [udp.fileno()])
        assert site.says(guest, Join(1, 1), [udp.fileno()] * 2)
        assert len(os.listdir("/proc/self/fd")) == before + 2
        assert not site.says(guest, Join(1, 1), [udp.fileno()])
        assert len(os.listdir("/proc/self/fd")) == before - 1  # the switch's end of the connection, too


def test_one_message_does_not_keep_the_host_busy(site: Site, engine: str) -> None:
    """Guests say at most 1000 rows at once; whoever says more does so to be a burden."""
    with site.guest() as guest:
        assert site.says(guest, Used([(1, 1, 1)] * port_protocol.ROWS))
        assert not site.says(guest, Used([(1, 1, 1)] * (port_protocol.ROWS + 1)))


def test_a_guest_that_talks_without_end_is_heard_now_and_then(
    site: Site, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pair that comes or goes is an event of the host: its log, and its time, are not a guest's to take.
    Nothing that it says is lost."""
    monkeypatch.setattr(switch, "MESSAGES", (10.0, 20.0))
    later: list[Callable[[], object]] = []
    monkeypatch.setattr(site.loop, "call_later", lambda _, work, *given: later.append(partial(work, *given)))
    with site.guest() as guest:
        pair = sas.pair(2, mode=Mode.TRANSPORT)
        for ident in range(1, 61):
            claim = Claim(ident, facts(pair.inbound), facts(pair.outbound), "peer", "rule", True, None)
            guest.send(port_protocol.encode(claim))
        site.turns(100)
        assert len(site.switch.steering) == 21
        for expected in range(21 + 11, 60, 11):  # what has become its due in a second, and one more
            site.now += 1.0
            later.pop()()
            site.turns(100)
            assert len(site.switch.steering) == expected
        site.now += 10.0
        later.pop()()
        site.turns(100)
        assert len(site.switch.steering) == 60


def test_who_keeps_slots_that_are_not_his_is_shown_out(site: Site, engine: str) -> None:
    """A limit that is lowered is for guests to follow. One that does not would keep slots from others."""
    with site.guest() as guest:
        for ident in range(1, 5):
            site.claims(guest, ident)
        assert site.ports[PORT].used == 8
        site.status(8)
        site.ports.change(PORT, limit=4)
        site.switch.follow()
        assert site.ports[PORT].used == 4
        site.status(8)
        site.now += PATIENCE - 0.1
        site.status(8)
        assert site.switch.attached(PORT)
        site.status(4)  # it was only slow
        site.status(5)
        site.now += PATIENCE - 0.1
        site.status(5)
        assert site.switch.attached(PORT)
        assert not site.adapter.detached
        site.now += 0.2
        site.status(5)
        assert not site.switch.attached(PORT)
        assert site.adapter.detached == [PORT]
        assert site.ports[PORT].used == 0
        assert len(site.warned) == 1
        assert f"port {PORT}: " in site.warned[0]


def test_a_guest_with_many_pairs_is_heard(site: Site, engine: str) -> None:
    """All it has is said at once when it connects, more than a socket takes: what finds no place waits."""
    troubles: list[str] = []
    guest = Guest(site.switch.path(PORT), troubles.append)
    pairs = [sas.pair(2 * spi, mode=Mode.TRANSPORT) for spi in range(1, 1001)]
    told: list[tuple[frozenset[Direction], bool]] = []

    def move(directions: frozenset[Direction], hard: bool) -> None:
        told.append((directions, hard))

    tokens: list[Any] = [guest.join(pair, True, None, move) for pair in pairs]
    guest.open(site.loop)
    for _ in range(100):
        site.turns(200)
        if len(site.switch.steering) == len(pairs):
            break
    assert len(site.switch.steering) == len(pairs)
    assert not troubles
    assert len(told) == 5  # as many as its limit allows
    guest.leave(tokens[0])
    site.turns()
    assert len(site.switch.steering) == len(pairs) - 1
    guest.close()
    site.turns()
    assert len(site.switch.steering) == 0


def test_who_does_not_listen_is_shown_out(site: Site, engine: str) -> None:
    """The host keeps for a guest what that has not taken yet, but not without end."""
    with site.guest() as guest:
        site.ports.change(PORT, limit=4000)
        for ident in range(1, 301):
            site.claims(guest, ident)
        for _ in range(40):  # more than the socket takes, and all of it waits
            site.switch._send(site.switch._guests[PORT], port_protocol.Welcome("x" * 10_000))
        site.turns()
        assert site.switch.attached(PORT)
        for _ in range(1700):
            if not site.switch.attached(PORT):
                break
            site.switch._send(site.switch._guests[PORT], port_protocol.Welcome("x" * 10_000))
        site.turns()
        assert not site.switch.attached(PORT)


def test_a_guest_gets_the_adapter_as_the_host_has_it(site: Site, engine: str) -> None:
    """Packet mode and what becomes of lost packets are the host's to say; the rings are the guest's alone."""
    got: list[Plugged] = []
    guest = Guest(site.switch.path(PORT), lambda why: None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        guest.attach([], [udp.fileno()], got.append)
        guest.open(site.loop)
        site.turns(20)
        assert site.adapter.attached == [PORT]
        host, adapter = wire(4, 4096)
        adapter.close()
        ours, theirs = socket.socketpair()
        with theirs:
            site.adapter.deliver(Plugged(host, ours.detach(), "ideal", packet_mode=True, resend_lost=False))
            site.turns(20)
            (plugged,) = got
            assert (plugged.profile, plugged.packet_mode, plugged.resend_lost) == ("ideal", True, False)
            assert (plugged.plug.slots, plugged.plug.room) == (4, 4096)
            theirs.sendall(b"to the guest")
            assert socket.socket(fileno=os.dup(plugged.control)).recv(100) == b"to the guest"
            plugged.close()
            assert theirs.recv(1) == b""
    guest.close()
    site.turns()
