"""Two engines back to back, and the packets that go between them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from struct import pack

import pytest
from support.adapter import AdapterEngine, PacketAdapterEngine

from offload import ip
from offload.fragments import Reassembler, is_fragment
from offload.outer import Arrived, Outgoing
from offload.software import SoftwareEngine
from sadb.address import Path
from sadb.algorithms import ENCRYPTION, INTEGRITY, QuickSuite, SecurityProtocol
from sadb.backend import Notice
from sadb.replay import ReplayWindow
from sadb.sa import Action, Flow, Lifetime, Mode, SaPair, SecurityAssociation
from sadb.secret import Secret
from sadb.selector import ANY_PORT, ICMP, TCP, UDP, Selector, TrafficSelector

ENGINES: dict[str, type[SoftwareEngine]] = {"python": SoftwareEngine}
if find_spec("offload._native") or os.environ.get("REQUIRE_INTEROP"):  # where it must be there, it is missed
    from support.native import NativeEngine
    from support.native_adapter import NativeAdapterEngine

    ENGINES["native"] = NativeEngine
    ENGINES["native-adapter"] = NativeAdapterEngine
ENGINES["adapter"] = AdapterEngine
ENGINES["packet"] = PacketAdapterEngine
chosen = "python"
ONE_ENGINE = pytest.mark.parametrize("engine", ["python"], indirect=True)  # for modules without any

LARGEST_TRAIN = 65507  # octets in one datagram of IPv4

NETS = {4: ("10.1.0.0/16", "10.2.0.0/16"), 6: ("2001:db8:a::/48", "2001:db8:b::/48")}
GATEWAYS = {4: ("192.0.2.1", "198.51.100.1"), 6: ("2001:db8:1::1", "2001:db8:2::1")}
HOSTS = {4: ("10.1.0.5", "10.2.0.7"), 6: ("2001:db8:a::5", "2001:db8:b::7")}

ESP_SUITES = [
    QuickSuite(SecurityProtocol.ESP, row, integrity, esn=esn)
    for row in ENCRYPTION
    for integrity in ([None] if row.aead else INTEGRITY)
    for esn in (False, True)
]
AH_SUITES = [
    QuickSuite(SecurityProtocol.AH, None, integrity, esn=esn)
    for integrity in INTEGRITY
    for esn in (False, True)
] + [
    QuickSuite(SecurityProtocol.AH, row, esn=esn)
    for row in ENCRYPTION
    if row.name.endswith("gmac")
    for esn in (False, True)
]
GCM = next(suite for suite in ESP_SUITES if suite.encryption and suite.encryption.name == "aes128gcm")
GCM_ESN = replace(GCM, esn=True)
CBC = next(suite for suite in ESP_SUITES if str(suite) == "aes128 sha256")
AH_SHA256 = AH_SUITES[0]


def entropy(seed: bytes = b"test") -> Callable[[int], bytes]:
    """A repeatable stream of octets that looks random."""
    state = [seed]

    def take(count: int) -> bytes:
        state[0] = hashlib.sha256(state[0]).digest()
        return hashlib.shake_256(state[0]).digest(count)

    return take


def covering(*nets: str, protocol: int = 0, ports: tuple[int, int] = ANY_PORT) -> tuple[TrafficSelector, ...]:
    """Selectors of prefixes."""
    return tuple(TrafficSelector.of(ip_network(net), protocol, ports) for net in nets)


def association(
    suite: QuickSuite, spi: int, mode: Mode, ends: tuple[str, str], selector: Selector, inbound: bool
) -> SecurityAssociation:
    """One direction; its keys depend on the SPI alone, so that both ends have the same."""
    encryption, integrity = suite.keys
    keys = hashlib.shake_256(spi.to_bytes(4, "big")).digest(encryption + integrity)
    return SecurityAssociation(
        spi=spi,
        suite=suite,
        mode=mode,
        source=ip_address(ends[0]),
        destination=ip_address(ends[1]),
        selector=selector,
        encryption_key=Secret(keys[:encryption]),
        integrity_key=Secret(keys[encryption:]),
        inbound=inbound,
        replay=ReplayWindow(64, esn=suite.esn) if inbound else None,
    )


def name(suite: QuickSuite) -> str:
    """What a test with a suite is called."""
    return f"{suite.protocol.value} {suite} {suite.encryption.name if suite.encryption else ''} {suite.esn}"


@dataclass
class Host:
    """An engine, its pair and what it told its owner."""

    engine: SoftwareEngine
    pair: SaPair
    flow: Flow
    notices: list[Notice]


def hosts(
    suite: QuickSuite = GCM,
    mode: Mode = Mode.TUNNEL,
    *,
    outer: int = 4,
    udp: bool = False,
    local: tuple[TrafficSelector, ...] | None = None,
    remote: tuple[TrafficSelector, ...] | None = None,
    lifetime: Lifetime | None = None,
    install: bool = True,
    **options: int,
) -> tuple[Host, Host]:
    """Two hosts with one pair of SAs. Selectors default to everything the mode lets between them pass."""
    if mode is Mode.TRANSPORT:
        ends = HOSTS[outer]
        width = 32 if outer == 4 else 128
        near, far = covering(f"{ends[0]}/{width}"), covering(f"{ends[1]}/{width}")
    else:
        ends = GATEWAYS[outer]
        near, far = covering(NETS[4][0], NETS[6][0]), covering(NETS[4][1], NETS[6][1])
    here = Selector(local or near, remote or far)
    there = Selector(here.remote, here.local)
    made = []
    for number, (selector, (mine, theirs), (spi_in, spi_out)) in enumerate(
        ((here, ends, (1001, 2002)), (there, ends[::-1], (2002, 1001)))
    ):
        inbound = association(suite, spi_in, mode, (theirs, mine), selector, True)
        outbound = association(suite, spi_out, mode, (mine, theirs), selector, False)
        if udp:
            inbound.encapsulation = outbound.encapsulation = (4500, 4500)
        if lifetime:
            inbound.lifetime = outbound.lifetime = lifetime
        pair = SaPair(inbound, outbound, selector, mode, "rule", owner=7 + number)
        engine = ENGINES[chosen](entropy(bytes([number])), **options)
        notices: list[Notice] = []
        engine.notify = notices.append
        flow = Flow("rule", selector, Action.SECURE, mode=mode)
        engine.route((flow,))
        if install:
            engine.install(pair)
        made.append(Host(engine, pair, flow, notices))
    return made[0], made[1]


def another(pair: SaPair, spi: int) -> SaPair:
    """A later pair for the same traffic, with this SPI in both directions."""
    suite, ends = pair.outbound.suite, (str(pair.outbound.source), str(pair.outbound.destination))
    outbound = association(suite, spi, pair.mode, ends, pair.selector, False)
    inbound = association(suite, spi, pair.mode, ends[::-1], pair.selector, True)
    return SaPair(inbound, outbound, pair.selector, pair.mode, pair.rule, pair.owner, pair.created + 1)


def arrived(outgoing: Iterable[Outgoing], *, traffic_class: int | None = None) -> list[Arrived]:
    """What the other host's sockets show of packets that left: fragments put together, IPv6 headers gone.
    `traffic_class` is what the network made of it."""
    found = []
    joins = Reassembler({"fragments": 0}, 1 << 24)
    for one in outgoing:
        if one.path is not None:
            local, peer = one.path.local, one.path.peer
            traffic = one.traffic_class if traffic_class is None else traffic_class
            found.append(
                Arrived(
                    ip.ESP,
                    local.address,
                    peer.address,
                    one.data,
                    traffic,
                    path=Path(peer, local),
                    segment=one.segment,
                )
            )
            continue
        packet: bytes | None = one.data
        if is_fragment(one.data):
            packet = joins.add(one.data, 0.0)
        if packet is not None:
            found.append(off_the_wire(packet, traffic_class))
    return found


def trains(arrived: Iterable[Arrived]) -> list[Arrived]:
    """Datagrams put together as UDP_GRO does it: of equal length, but for a shorter one at the end."""
    found: list[Arrived] = []
    room = False
    for one in arrived:
        last = found[-1] if room else None
        if (
            last is not None
            and (one.path, one.traffic_class) == (last.path, last.traffic_class)
            and len(one.data) <= last.segment
            and len(last.data) + len(one.data) <= LARGEST_TRAIN
        ):
            found[-1] = last = replace(last, data=last.data + one.data)
        else:
            last = replace(one, segment=len(one.data) if one.path is not None else 0)
            found.append(last)
        room = len(one.data) == last.segment
    return found


def datagrams(arrived: Iterable[Arrived]) -> list[Arrived]:
    """Trains taken apart."""
    return [
        replace(one, data=one.data[at : at + (one.segment or len(one.data))], segment=0)
        for one in arrived
        for at in range(0, len(one.data), one.segment or len(one.data))
    ]


def off_the_wire(packet: bytes, traffic_class: int | None = None) -> Arrived:
    """A whole IP packet as a raw socket hands it over."""
    tos = ip.traffic_class(packet) if traffic_class is None else traffic_class
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        return Arrived(
            packet[9], ip_address(packet[12:16]), ip_address(packet[16:20]), packet[size:], tos, packet[:size]
        )
    at, _, protocol = ip.insertion(packet)
    return Arrived(protocol, ip_address(packet[8:24]), ip_address(packet[24:40]), packet[at:], tos)


def datagram(
    source: str,
    destination: str,
    payload: bytes = b"payload",
    *,
    ports: tuple[int, int] = (1024, 53),
    traffic: int = 0,
    flags: int = 0,
    ident: int = 99,
) -> bytes:
    """An IP packet with a UDP datagram whose checksum is right."""
    outer = ip.Outer(ip_address(source), ip_address(destination), UDP)
    body = pack(">HHHH", *ports, 8 + len(payload), 1) + payload
    packet = outer.header(traffic, len(body), ident, flags) + body
    return ip.with_transport_checksum(packet, outer.size, UDP)


def between(version: int, payload: bytes = b"payload", *, back: bool = False, **more: object) -> bytes:
    """A datagram from the first host's side to the second's, or back."""
    ends = HOSTS[version][::-1] if back else HOSTS[version]
    return datagram(*ends, payload, **more)  # type: ignore[arg-type]


def segments(version: int, sizes: list[int], *, protocol: int = TCP, start: int = 1) -> list[bytes]:
    """Packets of one flow as the stack would have made them."""
    source, destination = HOSTS[version]
    outer, made, sequence = ip.Outer(ip_address(source), ip_address(destination), protocol), [], 7
    for number, size in enumerate(sizes, start):
        text = bytes((number + at) % 256 for at in range(size))
        if protocol == TCP:
            body = pack(">HHIIBBHHH", 5000, 80, sequence, 1, 0x50, 0x10, 512, 0, 0) + text
        else:
            body = pack(">HHHH", 5000, 80, 8 + size, 1) + text
        head = outer.header(0, len(body), number)
        made.append(ip.with_transport_checksum(head + body, len(head), protocol))
        sequence += size
    return made


def echo(source: str, destination: str, size: int, flags: int = 0) -> bytes:
    """An ICMP echo request over IPv4."""
    body = b"\x08\0\0\0\0\1\0\1" + bytes(size)
    body = body[:2] + ip.checksum(body + b"\0" * (len(body) % 2)).to_bytes(2, "big") + body[4:]
    return ip.Outer(ip_address(source), ip_address(destination), ICMP).header(0, len(body), 5, flags) + body
