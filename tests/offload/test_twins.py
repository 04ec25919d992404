"""Clients behind one NAT: each gets its own answers, whatever ports they use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import GCM, arrived, association, covering, datagram, entropy

from offload import ip, twins
from offload.outer import Arrived, Outgoing
from offload.software import SoftwareEngine
from offload.twins import PORTS
from sadb.address import Path, SocketAddress
from sadb.backend import Notice
from sadb.sa import Acquire, Action, Flow, Mode, SaPair
from sadb.selector import ANY_PORT, TCP, UDP, Selector, fields_of

L2TP = 1701
SERVER, NAT, OTHER = "198.51.100.2", "203.0.113.1", "203.0.113.9"


@dataclass
class Client:
    """A host behind a NAT: an engine of its own, and the port it is seen at."""

    address: str
    nat: str
    port: int
    engine: SoftwareEngine
    pair: SaPair

    def sends(self, payload: bytes, ports: tuple[int, int] = (L2TP, L2TP)) -> list[Arrived]:
        """What of a datagram to the server arrives there."""
        wire = self.engine.outbound([datagram(self.address, SERVER, payload, ports=ports)], 1.0).wire
        seen = SocketAddress(ip_address(self.nat), self.port)
        return [
            replace(one, source=seen.address, path=Path(one.path.local, seen))
            for one in arrived(wire)
            if one.path is not None
        ]


class Site:
    """A server whose UDP 1701 is protected from anybody, and the clients it has SAs with."""

    def __init__(self, remote_ports: tuple[int, int] = ANY_PORT) -> None:
        self.remote_ports = remote_ports
        self.engine = SoftwareEngine(entropy())
        self.notices: list[Notice] = []
        self.engine.notify = self.notices.append
        selector = Selector(
            covering(f"{SERVER}/32", protocol=UDP, ports=(L2TP, L2TP)),
            covering("0.0.0.0/0", protocol=UDP, ports=remote_ports),
        )
        self.engine.route((Flow("l2tp", selector, Action.SECURE),))
        self._spi = 1000

    def client(self, number: int, nat: str = NAT, port: int | None = None) -> Client:
        """A new client with a pair on both sides."""
        address = f"192.168.7.{number}"
        engine = SoftwareEngine(entropy(bytes([number])))
        made = Client(address, nat, port or 60000 + number, engine, None)  # type: ignore[arg-type]
        near = covering(f"{address}/32", protocol=UDP)
        far = covering(f"{SERVER}/32", protocol=UDP, ports=(L2TP, L2TP))
        engine.route((Flow("dial", Selector(near, far), Action.SECURE),))
        self.rekey(made)
        return made

    def rekey(self, client: Client) -> SaPair:
        """Another pair for a client; the server's end of it."""
        spi_in, spi_out = self._spi, self._spi + 1
        self._spi += 2
        far = covering(f"{SERVER}/32", protocol=UDP, ports=(L2TP, L2TP))
        # each side selects by the addresses it sees (RFC 7296 section 2.23.1)
        own = Selector(covering(f"{client.address}/32", protocol=UDP), far)
        shown = Selector(far, covering(f"{client.nat}/32", protocol=UDP, ports=self.remote_ports))
        client.pair = _pair(own, (client.address, SERVER), (spi_out, spi_in), (4500, 4500), "dial")
        client.engine.install(client.pair)
        pair = _pair(shown, (SERVER, client.nat), (spi_in, spi_out), (4500, client.port), "l2tp")
        pair.created = float(self._spi)
        self.engine.install(pair)
        return pair

    def gets(self, sent: list[Arrived]) -> tuple[int, bytes]:
        """What the stack is shown of one datagram: source port and payload; its checksum is checked."""
        (packet,) = self.engine.inbound(sent, 1.0).local
        assert ip.with_transport_checksum(packet, 20, UDP) == packet
        return int.from_bytes(packet[20:22], "big"), packet[28:]

    def answers(
        self, client: Client, port: int, payload: bytes, now: float = 1.0
    ) -> list[tuple[int, int, bytes]]:
        """Send to a port at the NAT, from 1701; where it goes outside, and what opens there as it gets to the
        client: port outside, port inside, payload."""
        packet = datagram(SERVER, client.nat, payload, ports=(L2TP, port))
        return [self._opened(client, one) for one in self.engine.outbound([packet], now).wire]

    @staticmethod
    def _opened(client: Client, one: Outgoing) -> tuple[int, int, bytes]:
        assert one.path is not None
        outside = one.path.peer.port
        peer = SocketAddress(ip_address(SERVER), 4500)
        here = SocketAddress(ip_address(client.address), 4500)
        came = Arrived(ip.ESP, peer.address, here.address, one.data, path=Path(here, peer))
        found = client.engine.inbound([came], 1.0).local
        if not found:
            return outside, 0, b""
        assert ip.with_transport_checksum(found[0], 20, UDP) == found[0]
        return outside, int.from_bytes(found[0][22:24], "big"), found[0][28:]


def _pair(
    selector: Selector, ends: tuple[str, str], spis: tuple[int, int], ports: tuple[int, int], rule: str
) -> SaPair:
    inbound = association(GCM, spis[0], Mode.TRANSPORT, ends[::-1], selector, True)
    outbound = association(GCM, spis[1], Mode.TRANSPORT, ends, selector, False)
    inbound.encapsulation, outbound.encapsulation = ports[::-1], ports
    return SaPair(inbound, outbound, selector, Mode.TRANSPORT, rule, owner=1)


def test_two_clients_with_the_same_ports_get_their_own_answers() -> None:
    """Both use port 1701: without help the last one gets the packets of both, under its own keys."""
    site = Site()
    clients = [site.client(number) for number in (2, 3, 4)]
    ports = []
    for client in clients:
        port, payload = site.gets(client.sends(b"hello " + client.address.encode()))
        assert payload == b"hello " + client.address.encode()
        ports.append(port)
    assert ports[0] == L2TP  # the first is left as it is
    assert len(set(ports)) == 3
    assert all(PORTS[0] <= port <= PORTS[1] for port in ports[1:])
    for _ in range(2):  # looked up, and remembered
        for client, port in zip(clients, ports, strict=True):
            assert site.answers(client, port, b"answer") == [(client.port, L2TP, b"answer")]
            assert site.gets(client.sends(b"more"))[0] == port


def test_one_client_alone_is_never_changed() -> None:
    """Some servers look at the port; and most NATs have one client."""
    site = Site()
    client = site.client(2)
    for port in (L2TP, 40000, 50000):
        assert site.gets(client.sends(b"x", (port, L2TP)))[0] == port
        assert site.answers(client, port, b"y") == [(client.port, port, b"y")]


def test_different_ports_are_kept_and_the_answers_go_where_they_belong() -> None:
    """Selectors of any port overlap, flows do not: then the owner is enough."""
    site = Site()
    one, two = site.client(2), site.client(3)
    assert site.gets(one.sends(b"x", (40001, L2TP)))[0] == 40001
    assert site.gets(two.sends(b"x", (40002, L2TP)))[0] == 40002
    assert site.answers(one, 40001, b"a") == [(one.port, 40001, b"a")]
    assert site.answers(two, 40002, b"b") == [(two.port, 40002, b"b")]


def test_clients_behind_different_nats_do_not_meet() -> None:
    """The same port at another address is another flow."""
    site = Site()
    one, two = site.client(2), site.client(3, OTHER)
    assert [site.gets(client.sends(b"x"))[0] for client in (one, two)] == [L2TP, L2TP]
    assert site.answers(one, L2TP, b"a") == [(one.port, L2TP, b"a")]
    assert site.answers(two, L2TP, b"b") == [(two.port, L2TP, b"b")]


def test_a_port_that_was_given_out_is_not_another_clients() -> None:
    """Else a client that happens to use, or guesses, that port would get its neighbour's answers."""
    site = Site()
    one, two = site.client(2), site.client(3)
    site.gets(one.sends(b"x"))
    given, _ = site.gets(two.sends(b"x"))
    other, _ = site.gets(one.sends(b"x", (given, L2TP)))
    assert other not in (given, L2TP)
    assert site.answers(two, given, b"b") == [(two.port, L2TP, b"b")]
    assert site.answers(one, other, b"a") == [(one.port, given, b"a")]
    own, _ = site.gets(two.sends(b"x", (given, L2TP)))  # also its own second flow must not be mixed up
    assert site.answers(two, own, b"c") == [(two.port, given, b"c")]
    assert site.answers(two, given, b"d") == [(two.port, L2TP, b"d")]


def test_a_rekey_keeps_what_the_stack_sees() -> None:
    """A session must not change its port in the middle; old and new pair are the same client's."""
    site = Site()
    one, two = site.client(2), site.client(3)
    site.gets(one.sends(b"x"))
    port, _ = site.gets(two.sends(b"x"))
    old = two.pair
    for client in (two, one):
        site.rekey(client)
        for each, shown in ((one, L2TP), (two, port)):
            each_outside = [(each.port, L2TP, b"y")]
            assert site.answers(each, shown, b"y") == each_outside
    two.engine.remove(old)
    assert site.gets(two.sends(b"x"))[0] == port


def test_a_moved_client_keeps_its_flows() -> None:
    """A NAT that forgot gives it another port outside; the stack must not notice."""
    site = Site()
    one, two = site.client(2), site.client(3)
    site.gets(one.sends(b"x"))
    port, _ = site.gets(two.sends(b"x"))
    pair = site.rekey(two)
    two.port = 61234
    site.engine.moved(pair, ip_address(SERVER), ip_address(NAT), (4500, 61234))
    assert site.answers(two, port, b"y") == [(61234, L2TP, b"y")]
    assert site.gets(two.sends(b"x"))[0] == port
    assert site.answers(one, L2TP, b"z") == [(one.port, L2TP, b"z")]


def test_answers_for_a_client_that_is_gone_do_not_go_to_its_neighbour() -> None:
    """They are decrypted there: packets of one user in the hands of another."""
    site = Site()
    one, two = site.client(2), site.client(3)
    site.gets(one.sends(b"x"))
    port, _ = site.gets(two.sends(b"x"))
    (gone,) = [pair for pair in site.engine._spis.values() if pair.outbound.encapsulation == (4500, two.port)]
    site.engine.remove(gone)
    assert site.answers(one, port, b"secret") == []
    assert isinstance(site.notices[-1], Acquire)
    assert site.answers(one, L2TP, b"y") == [(one.port, L2TP, b"y")]
    site.rekey(two)  # it comes back, and is known again
    (held,) = site.engine.released(1.0).wire
    assert site._opened(two, held) == (two.port, L2TP, b"secret")
    assert site.gets(two.sends(b"x"))[0] == port


def test_flows_of_those_who_are_gone_are_free_again() -> None:
    """A host that reconnects with another port outside must not be taken for its own twin, and after a while
    nobody is waited for."""
    site = Site()
    one = site.client(2)
    site.gets(one.sends(b"x"))
    site.engine.remove(next(iter(site.engine._spis.values())))
    again = site.client(2, port=61000)
    assert site.answers(again, L2TP, b"early", 2.0) == []
    late = 2.0 + twins.GONE_SECONDS
    assert site.answers(again, L2TP, b"late", late) == [(61000, L2TP, b"late")]
    assert site.gets(again.sends(b"x"))[0] == L2TP


def test_a_rule_with_both_ports_serves_who_sent_last() -> None:
    """Another port would not be covered: its answers would leave in the clear."""
    site = Site((L2TP, L2TP))
    one, two = site.client(2), site.client(3)
    for client in (one, two, one):
        assert site.gets(client.sends(b"x"))[0] == L2TP
        assert site.answers(client, L2TP, b"y") == [(client.port, L2TP, b"y")]


def test_flows_of_a_client_have_a_bound() -> None:
    """A client that tries every port makes room in its own list, not in its neighbour's."""
    site = Site()
    one, two = site.client(2), site.client(3)
    site.gets(one.sends(b"x"))
    port, _ = site.gets(two.sends(b"x"))
    for n in range(twins.MOST_FLOWS + 50):
        site.gets(one.sends(b"x", (20000 + n, L2TP)))
    assert len(site.engine._twins) == twins.MOST_FLOWS + 1
    assert site.answers(two, port, b"y") == [(two.port, L2TP, b"y")]


def test_clients_that_are_gone_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reconnection leaves one behind."""
    monkeypatch.setattr(twins, "MOST_GONE", 3)
    site = Site()
    for number in range(10):
        client = site.client(2, port=50000 + number)
        site.gets(client.sends(b"x", (1000 + number, L2TP)))
        site.engine.remove(next(iter(site.engine._spis.values())))
    assert len(site.engine._twins) == 3


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([L2TP, 2, PORTS[0], PORTS[1]])), max_size=24))
def test_no_flow_is_ever_anothers(moves: list[tuple[int, int]]) -> None:
    """Whatever clients send in whatever order, a port shown belongs to one flow of one client."""
    site = Site()
    clients = [
        site.client(number, nat) for number, nat in zip(range(2, 6), (NAT, NAT, NAT, OTHER), strict=True)
    ]
    shown: dict[tuple[int, int], int] = {}
    for who, port in moves:
        found, _ = site.gets(clients[who].sends(b"x", (port, L2TP)))
        assert shown.setdefault((who, port), found) == found
    for (who, port), found in shown.items():
        assert site.answers(clients[who], found, b"y") == [(clients[who].port, port, b"y")]
    for (a, one), (b, two) in product(shown.items(), repeat=2):
        assert a == b or one != two or clients[a[0]].nat != clients[b[0]].nat


@given(st.binary(max_size=64), st.integers(0, 65535), st.booleans(), st.booleans(), st.sampled_from([4, 6]))
def test_a_changed_port_leaves_a_right_checksum(
    payload: bytes, port: int, source: bool, tcp: bool, version: int
) -> None:
    """The stack, or the client, would drop it without a word; a UDP checksum of 0 means none in IPv4."""
    ends = ("192.0.2.1", "192.0.2.2") if version == 4 else ("2001:db8::1", "2001:db8::2")
    packet = datagram(*ends, payload)
    if tcp:
        at = 20 if version == 4 else 40
        outer = ip.Outer(ip_address(ends[0]), ip_address(ends[1]), TCP)
        body = packet[at : at + 4] + bytes(8) + b"\x50\x10\0\1\0\0\0\0" + payload
        packet = ip.with_transport_checksum(outer.header(0, len(body)) + body, at, TCP)
    changed = ip.with_port(packet, port.to_bytes(2, "big"), source=source)
    fields = fields_of(changed)
    assert fields is not None
    assert (fields.source_port if source else fields.destination_port) == port
    assert ip.with_transport_checksum(changed, 20 if version == 4 else 40, fields.protocol) == changed
    if version == 4 and not tcp:
        none = packet[:26] + b"\0\0" + packet[28:]
        assert ip.with_port(none, b"\1\2", source=source)[26:28] == b"\0\0"


def test_transport_mode_answers_only_its_own_end() -> None:
    """A client may have been given a selector of every address; packets for others are not for its keys."""
    site = Site()
    client = site.client(2)
    pair = site.rekey(client)
    site.engine.remove(pair)
    pair.selector = Selector(client.pair.selector.remote, covering("0.0.0.0/0", protocol=UDP))
    site.engine.install(pair)
    assert site.engine.outbound([datagram(SERVER, OTHER, ports=(L2TP, L2TP))], 1.0).wire == []
    assert isinstance(site.notices[-1], Acquire)
