"""The language between the daemon and its workers: values of `sadb` as octets, and back.

A message is its length in four octets, network byte order, and an array in MessagePack: its kind, then its
fields (`msgspec`, which checks types and lengths). Keys are in there, so it goes through a socket pair and
nowhere else. The daemon believes of a worker, who reads what strangers send, only what these types can say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeVar

import msgspec

from sadb.address import Address, SocketAddress
from sadb.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME, QuickSuite, SecurityProtocol
from sadb.backend import Notice
from sadb.replay import ReplayWindow
from sadb.sa import (
    Acquire,
    Action,
    Expire,
    Flow,
    Level,
    Lifetime,
    Mode,
    SaPair,
    SecurityAssociation,
    State,
    UnknownSpi,
    Usage,
)
from sadb.secret import Secret
from sadb.selector import Fields, Selector, TrafficSelector

ALIVE_SECONDS: Final = 2.0  # most time between two signs of life of a process of the data plane
LONGEST_ORDER: Final = 1 << 28  # octets of a message: some 500 000 flows

Ports = tuple[int, int]
Ranges = list[tuple[bytes, bytes, int, int, int]]  # low and high address, protocol, ports


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What goes through the channel."""


class Suite(msgspec.Struct, frozen=True, array_like=True):
    """What an SA does to packets, by names; what goes over a port's socket has it too."""

    protocol: str
    encryption: str | None
    integrity: str | None
    esn: bool


class Association(msgspec.Struct, frozen=True, array_like=True):
    """One direction of a pair."""

    spi: int
    source: bytes
    destination: bytes
    encryption_key: bytes
    integrity_key: bytes
    encapsulation: Ports | None
    lifetime: tuple[float | None, float | None, int | None, int | None, int | None, int | None]
    window: int  # 0: outbound
    sequence: int
    octets: int
    packets: int
    dscp: int | None
    dont_fragment: bool | None
    mtu: int | None

    def __repr__(self) -> str:
        return f"<association {self.spi:08x}>"


class Add(_Message, frozen=True, array_like=True, tag=True):
    """Install a pair on a slot of the ledger; it is sent on from its first `Update` on. With `highest` it is
    only received on, everything up to that number having come: another worker had it, and how far that one
    counted is not for this one to know. `digest` is that of its rule (`policy.engine.Policy.digest`), for a
    daemon that comes later."""

    slot: int
    suite: Suite
    mode: str
    local: Ranges
    remote: Ranges
    rule: str
    owner: int
    created: float
    inbound: Association
    outbound: Association
    highest: int | None = None
    digest: str = ""


class Update(_Message, frozen=True, array_like=True, tag=True):
    """A pair's state or standby is another one."""

    slot: int
    state: str
    standby: bool
    owner: int


class Move(_Message, frozen=True, array_like=True, tag=True):
    """A pair's outer addresses or ports are others; `encapsulation` is that of the outbound direction."""

    slot: int
    local: bytes
    peer: bytes
    encapsulation: Ports | None
    mtu: int | None


class Remove(_Message, frozen=True, array_like=True, tag=True):
    """Forget a pair, and say so with `Removed`."""

    slot: int


class Flows(_Message, frozen=True, array_like=True, tag=True):
    """All flows, instead of those before: rule, local and remote, action, order, mode, levels inbound and
    outbound."""

    flows: list[tuple[str, Ranges, Ranges, str, int, str, str, str]]


class Place(_Message, frozen=True, array_like=True, tag=True):
    """Put directions of a pair into the adapter, or (`hard` false) take them out."""

    slot: int
    inbound: bool
    outbound: bool
    hard: bool


class Taken(_Message, frozen=True, array_like=True, tag=True):
    """What a worker has handed over is in good hands: it carries for a new daemon now, and waits that many
    seconds for the next one."""

    seconds: float


class End(_Message, frozen=True, array_like=True, tag=True):
    """Nothing more is wanted of the worker."""


class Removed(_Message, frozen=True, array_like=True, tag=True):
    """The slot's account is not written to any more."""

    slot: int


class Acquired(_Message, frozen=True, array_like=True, tag=True):
    """See `sadb.sa.Acquire`."""

    rule: str
    source: bytes
    destination: bytes
    protocol: int
    source_port: int | None
    destination_port: int | None


class Expired(_Message, frozen=True, array_like=True, tag=True):
    """See `sadb.sa.Expire`."""

    spi: int
    inbound: bool
    hard: bool
    reason: str
    owner: int


class Unknown(_Message, frozen=True, array_like=True, tag=True):
    """See `sadb.sa.UnknownSpi`; without a port it came outside of UDP."""

    spi: int
    source: bytes
    port: int | None


class Report(_Message, frozen=True, array_like=True, tag=True):
    """A sign of life: packets dropped so far, by reason, and packets that wait."""

    dropped: dict[str, int]
    held: int


class Came(_Message, frozen=True, array_like=True, tag=True):
    """What became of one direction of a pair, see `offload.nic.lanes.Report`."""

    slot: int
    inbound: bool
    what: str


class Carried(_Message, frozen=True, array_like=True, tag=True):
    """What adapters had to do with so far: slot, octets and packets in, octets and packets out; the counters
    of the driver; and in packet mode slot, next number of the adapter and end of its lease."""

    pairs: list[tuple[int, int, int, int, int]]
    counters: dict[str, int]
    leases: list[tuple[int, int, int]] = []


class Handover(_Message, frozen=True, array_like=True, tag=True):
    """What a worker has that outlived its daemon; with it come descriptors, in this order: the ledger, its
    queue, so many raw, NAT-T and hint sockets as `sockets` says, and what it kept. So many `Held` follow as
    there are `pairs`. `circumstances` are what has to be the same for a daemon that goes on with it; it is
    the worker `number` of `count`."""

    circumstances: dict[str, str]
    number: int
    count: int
    segments_udp: bool
    sockets: tuple[int, int, int]
    kept: int
    pairs: int


class Held(_Message, frozen=True, array_like=True, tag=True):
    """A pair as a worker has it, which may have been used after it was added."""

    pair: Add
    state: str
    standby: bool


class Broken(_Message, frozen=True, array_like=True, tag=True):
    """A bug in a worker: where, and the traceback."""

    where: str
    traceback: str


Order = Add | Update | Move | Remove | Flows | Place | Taken | End
Answer = Removed | Acquired | Expired | Unknown | Report | Came | Carried | Broken | Handover | Held

Message = TypeVar("Message")


class Garbled(Exception):
    """The other side does not speak this language."""


_encode = msgspec.msgpack.Encoder().encode


def framed(message: msgspec.Struct) -> bytes:
    """A message of any language as it goes through a stream: its length, then MessagePack."""
    data = _encode(message)
    return len(data).to_bytes(4, "big") + data


def encoded(message: Order | Answer) -> bytes:
    """A message as it goes through the channel."""
    return framed(message)


def forget(buffer: bytearray, count: int) -> None:
    """Take the first octets away, overwritten: keys may be among them, and a buffer keeps its memory."""
    buffer[:count] = bytes(count)
    del buffer[:count]


class Decoder:
    """Takes octets as they come, gives out the messages in them. Made with `Order` or `Answer`, and the most
    octets that one may have."""

    def __init__(self, kinds: object, longest: int) -> None:
        self._longest = longest
        self._decode = msgspec.msgpack.Decoder(kinds).decode
        self._waiting = bytearray()

    def feed(self, data: bytes) -> Iterator[object]:
        """Messages that are complete now; raises `Garbled`."""
        waiting = self._waiting
        waiting += data
        while len(waiting) >= 4:
            size = int.from_bytes(waiting[:4], "big")
            if size > self._longest:
                raise Garbled("a message is too long")
            if len(waiting) < 4 + size:
                return
            try:
                with memoryview(waiting) as whole, whole[4 : 4 + size] as part:
                    message = self._decode(part)
            except msgspec.DecodeError as error:
                raise Garbled(str(error)) from None
            forget(waiting, 4 + size)
            yield message


# Values of sadb ------------------------------------------------------------------------------------------


def suite(found: QuickSuite) -> Suite:
    """A suite as it goes through a channel."""
    encryption = found.encryption.name if found.encryption else None
    return Suite(
        found.protocol.value, encryption, found.integrity.name if found.integrity else None, found.esn
    )


def suite_of(wire: Suite) -> QuickSuite:
    """The suite that was meant; raises `ValueError` or `KeyError` when there is none."""
    return QuickSuite(
        SecurityProtocol(wire.protocol),
        ENCRYPTION_BY_NAME[wire.encryption] if wire.encryption else None,
        INTEGRITY_BY_NAME[wire.integrity] if wire.integrity else None,
        esn=wire.esn,
    )


def language() -> str:
    """What tells whether two processes speak the same language."""
    schema = msgspec.json.encode(msgspec.json.schema(Order | Answer))
    return sha256(schema).hexdigest()[:16]


def add(
    slot: int,
    pair: SaPair,
    highest: int | None = None,
    used: tuple[Usage, Usage] | None = None,
    digest: str = "",
) -> Add:
    """The message that installs a pair; `used` is what went in and out before."""
    came, went = used or (pair.inbound.usage, pair.outbound.usage)
    return Add(
        slot,
        suite(pair.outbound.suite),
        pair.mode.value,
        _ranges(pair.selector.local),
        _ranges(pair.selector.remote),
        pair.rule,
        pair.owner,
        pair.created,
        _association(pair.inbound, came),
        _association(pair.outbound, went),
        highest,
        digest,
    )


def pair_of(message: Add) -> SaPair:
    """The pair that a message installs."""
    suite = suite_of(message.suite)
    mode, selector = Mode(message.mode), _selector(message.local, message.remote)

    def one(wire: Association, inbound: bool) -> SecurityAssociation:
        return SecurityAssociation(
            spi=wire.spi,
            suite=suite,
            mode=mode,
            source=address(wire.source),
            destination=address(wire.destination),
            selector=selector,
            encryption_key=Secret(wire.encryption_key),
            integrity_key=Secret(wire.integrity_key),
            inbound=inbound,
            encapsulation=wire.encapsulation,
            lifetime=Lifetime(*wire.lifetime),
            usage=Usage(wire.octets, wire.packets),
            sequence=wire.sequence,
            replay=ReplayWindow(wire.window, esn=suite.esn) if inbound else None,
            state=State.LARVAL,
            dscp=wire.dscp,
            dont_fragment=wire.dont_fragment,
            mtu=wire.mtu,
        )

    pair = SaPair(
        one(message.inbound, True),
        one(message.outbound, False),
        selector,
        mode,
        message.rule,
        message.owner,
        message.created,
    )
    if message.highest is not None:
        pair.outbound.state = State.DEAD
        assert pair.inbound.replay is not None
        pair.inbound.replay.close(message.highest)
    return pair


def flows(found: Iterable[Flow]) -> Flows:
    """The message that replaces all flows."""
    return Flows(
        [
            (
                flow.rule,
                _ranges(flow.selector.local),
                _ranges(flow.selector.remote),
                flow.action.value,
                flow.order,
                flow.mode.value,
                flow.inbound.value,
                flow.outbound.value,
            )
            for flow in found
        ]
    )


def flows_of(message: Flows) -> tuple[Flow, ...]:
    """The flows in a message: what the engine needs of them."""
    return tuple(
        Flow(
            rule,
            _selector(local, remote),
            Action(action),
            order,
            Mode(mode),
            Level(inbound),
            Level(outbound),
        )
        for rule, local, remote, action, order, mode, inbound, outbound in message.flows
    )


def notice(found: Notice) -> Acquired | Expired | Unknown:
    """What the engine noticed, as a message."""
    match found:
        case Acquire(rule, source, destination, protocol, source_port, destination_port):
            return Acquired(rule, source.packed, destination.packed, protocol, source_port, destination_port)
        case Expire(spi, inbound, hard, reason, owner):
            return Expired(spi, inbound, hard, reason, owner)
        case UnknownSpi(spi, SocketAddress(where, port)):
            return Unknown(spi, where.packed, port)
        case UnknownSpi(spi, source):
            assert not isinstance(source, SocketAddress)
            return Unknown(spi, source.packed, None)


def notice_of(message: Acquired | Expired | Unknown) -> Notice:
    """What a worker's engine noticed; raises `ValueError` when it cannot be."""
    match message:
        case Acquired():
            source, destination = address(message.source), address(message.destination)
            fields = Fields(
                source, destination, message.protocol, message.source_port, message.destination_port
            )
            return Acquire(message.rule, *fields)
        case Expired():
            return Expire(message.spi, message.inbound, message.hard, message.reason, message.owner)
        case Unknown():
            where = address(message.source)
            return UnknownSpi(
                message.spi, where if message.port is None else SocketAddress(where, message.port)
            )


def address(packed: bytes) -> Address:
    """An address out of its octets; raises `ValueError`."""
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _association(sa: SecurityAssociation, usage: Usage) -> Association:
    life = sa.lifetime
    return Association(
        sa.spi,
        sa.source.packed,
        sa.destination.packed,
        bytes(sa.encryption_key),
        bytes(sa.integrity_key),
        sa.encapsulation,
        (
            life.soft_seconds,
            life.hard_seconds,
            life.soft_octets,
            life.hard_octets,
            life.soft_packets,
            life.hard_packets,
        ),
        (sa.replay or ReplayWindow()).size if sa.inbound else 0,
        sa.sequence,
        usage.octets,
        usage.packets,
        sa.dscp,
        sa.dont_fragment,
        sa.mtu,
    )


def _ranges(selectors: Iterable[TrafficSelector]) -> Ranges:
    return [(one.low.packed, one.high.packed, one.protocol, *one.ports) for one in selectors]


def _selector(local: Ranges, remote: Ranges) -> Selector:
    def made(ranges: Ranges) -> tuple[TrafficSelector, ...]:
        return tuple(
            TrafficSelector(address(low), address(high), protocol, (first, last))
            for low, high, protocol, first, last in ranges
        )

    return Selector(made(local), made(remote))
