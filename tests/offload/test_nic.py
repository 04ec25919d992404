"""The adapter's process, whose ports belong to guests: what one of them does costs the others nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from support.engines import GCM, GCM_ESN, association, segments

from offload import vnet
from offload.channel import Decoder, framed
from offload.host import natt
from offload.nic import management, requests
from offload.nic.descriptors import MOST_PACKETS, Completion, Task, Transmit
from offload.nic.process import MOST_DONE, TURNS, Nic
from offload.nic.requests import Added, Answer, Refused
from offload.nic.rings import HostPort, wire
from offload.outer import Arrived, CryptoStatus, Mark
from sadb.address import Path, SocketAddress
from sadb.algorithms import QuickSuite
from sadb.sa import Mode, SecurityAssociation
from sadb.selector import Selector

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
    made._attach(management.Attach("vm", plug.slots, plug.room, len(raw), len(natt)), filenos)
    return guest


@dataclass
class Guest:
    """Who is behind a port, and does as he likes."""

    nic: Nic
    name: str
    rings: HostPort
    control: socket.socket

    def asks(self, *messages: requests.Request) -> list[Answer]:
        """Say something to the adapter, and hear what it answers."""
        decoder, found = Decoder(Answer, 1 << 16), list[Answer]()
        self.control.sendall(b"".join(map(framed, messages)))
        for _ in range(3):
            self.nic.turn(0)
            if self.name not in self.nic.ports:
                break
            with suppress(BlockingIOError):
                found += decoder.feed(self.control.recv(1 << 16, socket.MSG_DONTWAIT))  # type: ignore[arg-type]
        return found

    def adds(self, spi: int, suite: QuickSuite = GCM, *, inbound: bool = True, packets: bool = False) -> int:
        """Put an SA into the adapter; its handle, or 0 when it is refused."""
        (answer,) = self.asks(requests.add(1, sa(spi, suite, inbound=inbound), 0, packets=packets))
        self.refused = answer.reason if isinstance(answer, Refused) else ""
        return answer.handle if isinstance(answer, Added) else 0

    def sends(self, *descriptors: Transmit) -> list[Completion]:
        """Give the adapter something to do; what is done then."""
        for one in descriptors:
            assert self.rings.transmit.put(one)
        self.rings.publish()
        for _ in range(3):
            self.nic.turn(0)
        return self.rings.completed.take(100)


def sa(spi: int, suite: QuickSuite, *, inbound: bool) -> SecurityAssociation:
    ends = ("192.0.2.1", "192.0.2.2")
    return association(suite, spi, Mode.TRANSPORT, ends[::-1] if inbound else ends, Selector((), ()), inbound)


@pytest.fixture
def guests(adapter: tuple[Nic, socket.socket]) -> Iterator[tuple[Guest, Guest]]:
    """Two guests of one adapter."""
    made, _ = adapter
    with ExitStack() as stack:
        found = []
        for name in ("bad", "good"):
            host, plug = wire()
            ours, theirs = socket.socketpair()
            rings = HostPort(host)
            stack.callback(rings.close)
            stack.enter_context(ours)
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind(("127.0.0.1", 0))
            filenos = [*plug.filenos(), theirs.detach(), udp.detach()]
            made._attach(management.Attach(name, plug.slots, plug.room, 0, 1), filenos)
            stack.callback(made._detach, name)
            found.append(Guest(made, name, rings, ours))
        yield found[0], found[1]


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


def test_descriptors_that_found_no_place(adapter: tuple[Nic, socket.socket], engine: str) -> None:
    """A process that may have no more open gets fewer than were sent: one port less, not no adapter."""
    made, manager = adapter
    made._attach(management.Attach("vm", 8, 4096, 2, 4), [os.open("/dev/null", os.O_RDWR) for _ in range(3)])
    assert management.news_of(manager.recv(1000)) == management.Gone("vm")


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
        management.Attach("vm", plug.slots, plug.room, 0, 1),
        [*plug.filenos(), control.detach(), good.detach()],
    )
    assert "vm" not in made.ports


# Hostile guests ------------------------------------------------------------------------------------------


def test_the_end_of_all_numbers_fits_a_completion(guests: tuple[Guest, Guest], engine: str) -> None:
    """Behind the last of 64 bits there is none: what a fence says then must not end the adapter, and costs
    what is left of the lease, which is nothing."""
    bad, good = guests
    which = bad.adds(1, GCM_ESN, inbound=False, packets=True)
    plain = bytes(vnet.HEADER) + segments(4, [100])[0]
    done = bad.sends(
        Transmit(1, which, Task.LEASE, number=2**64 - 1, segment=1),
        Transmit(2, which, Task.PACKETS, plain),
        Transmit(3, which, Task.FENCE),
    )
    assert done == [Completion(1, True), Completion(2, True), Completion(3, True, 0)]
    assert good.adds(1)


def test_a_bug_of_ours_costs_one_port(
    guests: tuple[Guest, Guest],
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whatever else a guest finds: it is told, and the port is gone, not the adapter."""
    bad, good = guests
    whole = bad.nic.adapter.transmit

    def broken(port: str, descriptors: list[Transmit]) -> object:
        if port == "bad":
            raise ZeroDivisionError("a bug")
        return whole(port, descriptors)

    monkeypatch.setattr(bad.nic.adapter, "transmit", broken)
    bad.sends(Transmit(1, 7, Task.FENCE))
    assert list(bad.nic.ports) == ["good"]
    assert good.sends(Transmit(1, 7, Task.FENCE)) == [Completion(1, True)]
    assert "ZeroDivisionError: a bug" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["large", "packets", "train", "long"])
def test_no_descriptor_keeps_the_others_waiting(guests: tuple[Guest, Guest], engine: str, kind: str) -> None:
    """One octet in each of 60 000 packets, or a train of some hundred thousand, would take the adapter
    seconds: the ports beside it would count what they have there as lost."""
    bad, _ = guests
    which = bad.adds(1, inbound=False, packets=kind == "packets")
    if kind == "packets":
        bad.sends(Transmit(1, which, Task.LEASE, number=1, segment=65535))
    (frame,) = vnet.frames(segments(4, [600] * 100))
    tiny = frame[:4] + (1).to_bytes(2, "little") + frame[6:]
    piece, here = bytes(3) + b"\1" + bytes(36), SocketAddress(ip_address("127.0.0.1"), 9)
    path = Path(here, here)
    one = {
        "large": Transmit(2, which, Task.LARGE, tiny, number=1),
        "packets": Transmit(2, which, Task.PACKETS, tiny),
        "train": Transmit(2, which, Task.SECURE, piece * 1600, path=path, segment=len(piece)),
        "long": Transmit(2, which, Task.SECURE, piece * 100_000),
    }[kind]
    begun = time.process_time()
    assert bad.sends(one) == [Completion(2, False)]
    assert time.process_time() - begun < 0.5
    fits = replace(one, ident=3, data=frame, number=1)
    if kind in ("large", "packets"):
        assert vnet.outline(frame)[2] <= MOST_PACKETS
        assert bad.sends(fits) == [Completion(3, True)]


def test_a_flood_of_trains_does_not_keep_the_others_waiting(
    guests: tuple[Guest, Guest], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A datagram that is read may be a train of 64. As many trains as there are single packets to a turn
    would take so long that the other ports give up theirs."""
    bad, _ = guests
    taken: list[int] = []

    def received(port: str, arrived: list[Arrived]) -> list[Arrived]:
        taken.append(sum(-(-len(one.data) // (one.segment or len(one.data))) for one in arrived))
        return []

    monkeypatch.setattr(bad.nic.adapter, "receive", received)
    sock = natt.opened(ip_address("127.0.0.1"), 0, 0)
    made, control = socket.socketpair()
    host, plug = wire()
    where = sock.getsockname()
    filenos = [*plug.filenos(), control.detach(), sock.detach()]
    with closing(HostPort(host)), made, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        bad.nic._attach(management.Attach("vm", plug.slots, plug.room, 0, 1), filenos)
        peer.setsockopt(socket.IPPROTO_UDP, natt.UDP_SEGMENT, 100)
        for _ in range(30):
            peer.sendto(bytes(6400), where)
        for _ in range(100):
            bad.nic.turn(0)
        bad.nic._detach("vm")
    assert sum(taken) == 30 * 64
    assert max(taken) < 500


def test_a_guest_that_shuts_its_socket_for_reading(guests: tuple[Guest, Guest], engine: str) -> None:
    """It is readable for ever then; the adapter, which sleeps until something is, would turn in circles."""
    nic, (host, plug), (guest, control) = guests[0].nic, wire(), socket.socketpair()
    with closing(HostPort(host)), guest, natt.opened(ip_address("127.0.0.1"), 0, 0) as theirs:
        filenos = [*plug.filenos(), control.detach(), os.dup(theirs.fileno())]
        nic._attach(management.Attach("vm", plug.slots, plug.room, 0, 1), filenos)
        theirs.connect(theirs.getsockname())
        nic.turn(0)
        assert "vm" in nic.ports
        theirs.shutdown(socket.SHUT_RD)
        nic.turn(0)
        assert nic.ports.keys() == {"bad", "good"}


@pytest.mark.parametrize("end", ["taken", "gone"])
def test_a_guest_that_takes_nothing_and_shuts_its_socket(
    guests: tuple[Guest, Guest], engine: str, end: str
) -> None:
    """While its ring is full its sockets are not read, and must not wake the adapter: epoll tells of a socket
    that is shut, or has an error, whether one asks or not. When packets are taken, or the guest goes, the
    socket is looked at again, or forgotten."""
    nic, (host, plug), (guest, control) = guests[0].nic, wire(slots=2), socket.socketpair()
    with closing(HostPort(host)) as rings, guest, natt.opened(ip_address("127.0.0.1"), 0, 0) as theirs:
        filenos = [*plug.filenos(), control.detach(), os.dup(theirs.fileno())]
        nic._attach(management.Attach("vm", plug.slots, plug.room, 0, 1), filenos)
        for number in range(8):
            theirs.sendto(bytes(20 + number), theirs.getsockname())
            nic.turn(0)
        assert nic.ports["vm"].paused
        theirs.connect(theirs.getsockname())
        theirs.shutdown(socket.SHUT_RDWR)
        nic.turn(0)
        assert nic.poll.poll(0.05) == []
        if end == "gone":
            guest.close()
        for _ in range(8):
            rings.received.take(2)
            rings.publish()
            nic.turn(0)
        assert nic.ports.keys() == {"bad", "good"}


@pytest.mark.parametrize("before", [0, 2])
def test_an_answer_is_behind_what_was_opened_before_it(
    guests: tuple[Guest, Guest], engine: str, before: int
) -> None:
    """Who hears that an SA is deleted, and finds nothing in the ring, forgets its handle: a packet with a
    mark of it that came then would be dropped. Also when the ring is full, and packets wait for place."""
    nic, (host, plug), (control, theirs) = guests[0].nic, wire(slots=2), socket.socketpair()
    with closing(HostPort(host)) as rings, control:
        filenos = [*plug.filenos(), theirs.detach()]
        nic._attach(management.Attach("vm", plug.slots, plug.room, 0, 0), filenos)
        guest = Guest(nic, "vm", rings, control)
        handle = guest.adds(1001)
        port = nic.ports["vm"]
        where = ip_address("192.0.2.1"), ip_address("192.0.2.2")
        marked = Arrived(50, *where, bytes(40), mark=Mark(handle, CryptoStatus.SUCCESS))
        port.arrived.extend([marked] * (before + 1))
        control.sendall(framed(requests.DeleteSa(handle)))
        nic._requests(port)
        heard, taken = b"", []
        for _ in range(3):
            with suppress(BlockingIOError):
                heard += control.recv(1 << 16, socket.MSG_DONTWAIT)
            taken += rings.received.take(2)
            if heard:
                break
            rings.publish()
            port.hand_over()
            port.rings.publish()
        assert heard
        assert len(taken) == before + 1


def test_who_takes_no_completions_is_not_served(guests: tuple[Guest, Guest], engine: str) -> None:
    """They would pile up in the adapter, which has all the ports' memory, for as long as he likes. When he
    takes them, everything goes on."""
    bad, good = guests
    port, asked, given = bad.nic.ports["bad"], 0, 0
    while asked < 4 * MOST_DONE:
        while bad.rings.transmit.put(Transmit(asked + 1, 7, Task.FENCE)):
            asked += 1
        bad.rings.publish()
        for _ in range(2 * MOST_DONE // TURNS):
            bad.nic.turn(0)
        assert len(port.done) <= MOST_DONE + TURNS
        if len(port.done) >= MOST_DONE and not bad.rings.transmit.put(Transmit(asked + 1, 7, Task.FENCE)):
            break
    assert good.sends(Transmit(1, 7, Task.FENCE)) == [Completion(1, True)]
    for _ in range(200):
        given += len(bad.rings.completed.take(1000))
        bad.rings.publish()
        bad.nic.turn(0)
    assert given >= asked > 2 * MOST_DONE


def test_guests_have_what_they_are_granted_whatever_they_ask_for(
    guests: tuple[Guest, Guest], engine: str
) -> None:
    """The host decides who has slots, but a guest speaks with the adapter itself: that holds it to its limit,
    to inbound SAs if it is not trusted, and keeps what is reserved for others."""
    bad, good = guests
    quotas = bad.nic.adapter.quotas
    slots = bad.nic.adapter.capabilities.rx_slots
    quotas["bad"] = management.Quota("bad", 2 * slots, outbound=False)
    quotas["good"] = management.Quota("good", 10, kept=(2, 0))
    assert not bad.adds(1, inbound=False)
    assert bad.refused == "trust"
    many = [requests.add(spi, sa(spi, GCM, inbound=True), None) for spi in range(1, slots + 1)]
    added = [one for at in range(0, slots, 64) for one in bad.asks(*many[at : at + 64])]
    for _ in range(200):
        added += bad.asks()
    assert sum(isinstance(one, Added) for one in added) == slots - 2
    assert {one.reason for one in added if isinstance(one, Refused)} == {"slots_full"}
    assert good.adds(1)
    assert good.adds(2)
    assert not good.adds(3)
    quotas["bad"] = management.Quota("bad", 5)
    assert not bad.adds(5000, inbound=False)
    assert bad.refused == "port_limit"
