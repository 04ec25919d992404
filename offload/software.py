"""The software engine: finds each packet's flow and SA and applies ESP or AH to it, in batches (RFC 4301).

Outbound: flow, newest pair of its rule, size, number, ESP or AH. The host's routing leads only packets of
secured flows here, so what turns out permitted or uncovered is dropped and counted: putting it back into the
TUN device would send it round again, and nothing else leads out. A packet without a pair waits, and an
`Acquire` is raised once. `install` and `route` set waiting packets free: `released` hands them out.

A packet that, once protected, would exceed the path MTU (learned with `path_mtu`, else the link's) is treated
as its sender wishes. With DF, or in IPv6, it is answered with ICMP through the TUN device. Otherwise it is
cut up: before ESP or AH in tunnel mode if the SA covers fragments, which show no ports; else behind it. UDP
datagrams leave without DF then, for IP to cut up. Fragments from the TUN device are put together first.

Inbound: SPI, then `Receiver`. `Twins` keeps clients behind one NAT apart, both ways. Notices go out when a
batch is done, so that their owner may call back.

Large packets of the host and trains of datagrams are taken apart packet by packet here, and looked at once.
Where the native loop runs, `Accounts` tells it of SAs and flows, and only what it hands up comes here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from offload import icmp, ip, vnet
from offload.accounts import Accounts
from offload.fragments import Reassembler, is_fragment, split
from offload.ip import Dropped
from offload.meter import Bucket, Meter
from offload.outer import Arrived, Outgoing
from offload.queue import Held
from offload.receiver import Receiver
from offload.sender import Sender, in_pieces
from offload.twins import Twins
from sadb.address import Address
from sadb.algorithms import Kind, SecurityProtocol
from sadb.backend import Notice, Unavailable
from sadb.database import RESERVED_SPI
from sadb.flows import FlowTable
from sadb.pairs import USABLE, PairIndex
from sadb.sa import Acquire, Action, Expire, Flow, Level, SaPair, SecurityAssociation, UnknownSpi, Usage
from sadb.selector import Fields, fields_of

REASONS = (
    "blocked",  # a flow says so
    "permitted",  # a flow lets it pass, but not through here
    "no-flow",  # no flow covers it
    "no-sa",  # held for want of an SA; counted when it is asked for
    "queue-full",  # an older packet made room for a newer one
    "expired",  # a held packet whose SA did not come in time
    "too-big",  # for the path, and not to be fragmented
    "fragments",  # parts of a datagram that never became whole
    "used-up",  # the SA met a hard limit
    "sequence-exhausted",  # the SA has no numbers left
    "malformed",  # no packet at all, or wrong padding, next header, lengths
    "unknown-spi",
    "replayed",
    "late",  # before the replay window
    "unverified",  # the check value is wrong
    "stale-handle",  # an adapter says it opened it, and does not have the SA
    "selector-mismatch",  # authentic, but not what the SA is for
    "other-rule",  # authentic, and another rule than the SA's decides it, which lets in nothing but its own
    "congestion",  # RFC 6040: marked outside, and the sender knows no ECN
    "dummy",  # RFC 4303 section 2.6
)

ROUTES = 8192  # flows whose sender is remembered
MTU_SECONDS = 600.0  # RFC 1191 section 6.3: after this a larger path is tried again
_ICMP_RATE, _UNKNOWN_RATE = (50.0, 50.0), (5.0, 5.0)


class Frame(bytes):
    """Several packets put together already, as `offload.vnet` has them."""


@dataclass(slots=True)
class Batch:
    """What a batch came to: `wire` goes to the network, `local` into the TUN device."""

    wire: list[Outgoing] = field(default_factory=list)
    local: list[bytes | Frame] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.wire or self.local)


def _ignore(notice: Notice) -> None:
    """Until an owner sets `notify`."""


class SoftwareEngine:
    """`sadb.backend.Backend` in pure Python; `random(n)` gives n unpredictable octets."""

    def __init__(
        self,
        random: Callable[[int], bytes],
        *,
        queue_packets: int = 32,
        queue_flows: int = 1024,
        link_mtu: int = 1500,
        accounts: Accounts | None = None,
    ) -> None:
        self.notify: Callable[[Notice], None] = _ignore
        self._accounts = accounts or Accounts()
        self._random = random
        self._link_mtu = link_mtu
        self._counters = dict.fromkeys(REASONS, 0)
        self._flows = FlowTable()
        self._pairs = PairIndex()
        self._spis: dict[int, SaPair] = {}
        # made when first used: of 100 000 pairs few are busy
        self._senders: dict[SaPair, Sender] = {}
        self._receivers: dict[int, Receiver] = {}
        # SPIs of senders by destination and UDP ports
        self._busy: dict[tuple[Address, tuple[int, int] | None], set[int]] = {}
        # flow key -> sender, longest packet that fits, port it goes to if that is another than it shows
        self._routes: dict[bytes, tuple[Sender, int, bytes]] = {}
        self._twins = Twins(random, self._covered, self._reroute)
        self._held = Held(self._counters, queue_packets, queue_flows)
        self._due: set[str] | None = set()  # rules whose held packets are free; None: all
        self._fragments = Reassembler(self._counters)
        self._mtus: dict[Address, tuple[int, float]] = {}
        self._icmp, self._unknown = Bucket(*_ICMP_RATE), Bucket(*_UNKNOWN_RATE)
        self._notices: list[Notice] = []
        self._identification = int.from_bytes(random(2), "big")

    # Observation -----------------------------------------------------------------------------------------

    @property
    def counters(self) -> Mapping[str, int]:
        """Packets that came to nothing, by reason; see `REASONS`."""
        return MappingProxyType(self._counters)

    @property
    def held(self) -> int:
        """Packets that wait for a pair."""
        return self._held.packets

    # Backend ---------------------------------------------------------------------------------------------

    def install(self, pair: SaPair) -> None:
        """Receive on the pair, and send on it when it is the newest of its rule for a packet."""
        spi = pair.inbound.spi
        if self._spis.get(spi) is pair:
            return
        check(pair)
        if spi in self._spis:
            raise Unavailable(f"SPI {spi:08x} is in use")
        self._accounts.install(pair)
        self._spis[spi] = pair
        self._pairs.add(pair)
        self._twins.add(pair)
        self.update(pair)

    def update(self, pair: SaPair) -> None:
        """The pair's state or standby is another one, or it is new: look for the best one again."""
        self._reroute(None)
        if self._due is not None and pair.outbound.state in USABLE:
            self._due.add(pair.rule)

    def remove(self, pair: SaPair) -> None:
        """Forget both directions."""
        if self._spis.get(pair.inbound.spi) is not pair:
            return
        del self._spis[pair.inbound.spi]
        self._receivers.pop(pair.inbound.spi, None)
        self._retire(pair)
        self._twins.remove(pair)
        self._accounts.remove(pair)

    def route(self, flows: tuple[Flow, ...]) -> None:
        """Replace all flows; held packets are looked at again."""
        self._flows.build(flows)
        self._reroute(None)
        for receiver in self._receivers.values():
            receiver.forget()
        self._accounts.forget_admitted()
        self._due = None

    def moved(
        self, pair: SaPair, local: Address, peer: Address, encapsulation: tuple[int, int] | None
    ) -> None:
        """Send to the peer's new address from now on; `encapsulation` is that of the outbound direction."""
        self._forget(pair)
        pair.move(local, peer, encapsulation)
        if self._spis.get(pair.inbound.spi) is pair:
            self._accounts.install(pair)
            self._twins.moved(pair)

    def usage(self, pair: SaPair) -> tuple[Usage, Usage]:
        """What went in and out so far."""
        return pair.inbound.usage, pair.outbound.usage

    # Outbound --------------------------------------------------------------------------------------------

    def outbound(self, packets: Sequence[bytes], now: float) -> Batch:
        """Protect packets read from the TUN device."""
        batch = Batch()
        self._release(batch, now)
        self._held.expire(now)
        for packet in packets:
            self._send(packet, now, batch)
        self._report()
        return batch

    def frames(self, frames: Sequence[bytes], now: float) -> Batch:
        """Protect what stands in frames of a TUN device with `offload.vnet` headers."""
        batch = Batch()
        self._release(batch, now)
        self._held.expire(now)
        for frame in frames:
            self._send_frame(frame, now, batch)
        self._report()
        return batch

    def _send_frame(self, frame: bytes, now: float, batch: Batch) -> None:
        try:
            packets = vnet.packets(frame)
        except Dropped as dropped:
            self._counters[dropped.reason] += 1
            return
        if len(packets) == 1 or not self._send_train(packets, now, batch):
            for packet in packets:
                self._send(packet, now, batch)

    def _send(self, packet: bytes, now: float, batch: Batch) -> None:
        try:
            packet = ip.whole(packet)
            key = ip.flow_key(packet)
            route = self._routes.get(key) if key is not None else None
            if route is None:
                self._look_up(packet, now, batch)
            elif len(packet) <= route[1]:
                self._put(route[0], packet, route[2], now, batch)
            else:
                self._send_large(route, packet, ip.may_fragment(packet), now, batch)
        except Dropped as dropped:
            self._counters[dropped.reason] += 1

    def _send_train(self, packets: Sequence[bytes], now: float, batch: Batch) -> bool:
        """Send the segments of one large packet at once; False when they have to be looked at one by one."""
        key = ip.flow_key(packets[0])
        sender, fits, port = (self._routes.get(key) if key is not None else None) or (None, 0, b"")
        if sender is None or len(packets[0]) > fits or port:
            return False
        number = sender.meter.take_train(sum(map(len, packets)), len(packets), now)
        if number:
            try:
                batch.wire += sender.protect_train(packets, number)
            except Dropped as dropped:
                self._counters[dropped.reason] += len(packets)
        return number > 0

    def released(self, now: float) -> Batch:
        """Packets that `install` or `route` set free; to be called, and sent, after either of them."""
        batch = Batch()
        self._release(batch, now)
        self._report()
        return batch

    def _release(self, batch: Batch, now: float) -> None:
        if self._due is not None and not self._due:
            return
        rules = None if self._due is None else frozenset(self._due)
        self._due = set()
        for packet, cut in self._held.take(rules):
            try:
                self._classify(packet, cut, now, batch)
            except Dropped as dropped:
                self._counters[dropped.reason] += 1

    def _look_up(self, packet: bytes, now: float, batch: Batch) -> None:
        """A packet of a flow that is not remembered, or a part of a packet."""
        if not is_fragment(packet):
            self._classify(packet, ip.may_fragment(packet), now, batch)
            return
        joined = self._fragments.add(packet, now)
        if joined is not None:
            self._classify(joined, True, now, batch)

    def _classify(self, packet: bytes, cut: bool, now: float, batch: Batch) -> None:
        """Find a packet's flow and pair, and send or hold it; `cut` says that it may be fragmented."""
        fields = fields_of(packet)
        if fields is None:
            raise Dropped("malformed")
        flow = self._flows.lookup(fields, True)
        if flow is None:
            raise Dropped("no-flow")
        if flow.action is not Action.SECURE:
            raise Dropped("blocked" if flow.action is Action.BLOCK else "permitted")
        pair, port = self._pairs.newest(flow.rule, fields), b""
        if self._twins:
            pair, port = self._twins.outbound(flow.rule, packet, fields, pair, now)
        # the peer may have dropped what is on standby; better wait for what is about to be usable
        if pair is None or (pair.standby and self._pairs.awaited(flow.rule, fields)):
            self._hold(flow, fields, packet, cut, now)
            return
        sender = self._senders.get(pair)
        if sender is None:
            sender = self._senders[pair] = Sender(
                pair, self._random, self._ident, self._accounts.meter(pair, False)
            )
            self._busy.setdefault(_place(pair), set()).add(pair.outbound.spi)
        fits = sender.fits(self._mtu(pair.outbound), packet)
        route = sender, fits, port
        key = ip.flow_key(packet)
        if key is not None:
            if len(self._routes) >= ROUTES:
                self._reroute(None)
            self._routes[key] = route
            if not port:
                self._accounts.route(key, pair, fits)
        if len(packet) <= fits:
            self._put(sender, packet, port, now, batch)
        else:
            self._send_large(route, packet, cut, now, batch)

    def _hold(self, flow: Flow, fields: Fields, packet: bytes, cut: bool, now: float) -> None:
        if (
            flow.outbound is Level.NONE
        ):  # nothing is asked of this direction; see the module's first paragraph
            raise Dropped("permitted")
        # behind a pair that is about to be usable it waits without asking; if that takes too long, the next
        # asks
        if self._held.hold(flow, fields, packet, cut, now) and not self._pairs.awaited(flow.rule, fields):
            self._counters["no-sa"] += 1
            source, destination, protocol, source_port, destination_port = fields
            self._notices.append(
                Acquire(flow.rule, source, destination, protocol, source_port, destination_port)
            )

    def _reroute(self, key: bytes | None) -> None:
        """Look this flow up again when it next shows, or all."""
        if key is None:
            self._routes.clear()
        else:
            self._routes.pop(key, None)
        self._accounts.forget(key)

    def _covered(self, rule: str, fields: Fields) -> bool:
        """Whether an outbound packet comes under a rule."""
        flow = self._flows.lookup(fields, True)
        return flow is not None and flow.rule == rule

    def _decides(self, rule: str, fields: Fields) -> bool:
        """Whether an inbound packet may come by an SA of a rule: it decides the packet itself, or what does
        would let it in without protection. SAs are made from flows that overlap (RFC 4301 section 4.4.1
        parts them first), and who is admitted by a wide rule is nobody to a narrower one."""
        flow = self._flows.lookup(fields, False)
        if flow is None or flow.rule == rule:
            return True
        return flow.action is Action.PERMIT or (
            flow.action is Action.SECURE and flow.inbound is not Level.REQUIRE
        )

    def _put(self, sender: Sender, packet: bytes, port: bytes, now: float, batch: Batch) -> None:
        """One packet that fits its path."""
        batch.wire.append(self._protect(sender, packet, port, now))

    def _protect(self, sender: Sender, packet: bytes, port: bytes, now: float) -> Outgoing:
        """Count, number and protect one packet, with another port to go to unless that is empty."""
        number = self._numbered(sender, len(packet), now, sender.meter.number)
        return sender.protect(ip.with_port(packet, port, source=False) if port else packet, number)

    def _numbered(self, sender: Sender, size: int, now: float, number: Callable[[], int | None]) -> int:
        """Count a packet, and what `number` says is its number; raises `Dropped`."""
        found = number() if sender.meter.take(size, now) else 0
        if sender.meter.crossed:
            self._crossed(sender.meter, sender.pair, inbound=False)
        if not found:
            # met a hard limit; the next packet finds another pair, or waits for one
            self._retire(sender.pair)
            raise Dropped("sequence-exhausted" if found is None else "used-up")
        return found

    def _send_large(
        self, route: tuple[Sender, int, bytes], packet: bytes, cut: bool, now: float, batch: Batch
    ) -> None:
        """Cut a packet up, or tell its sender to make smaller ones."""
        sender, fits, port = route
        least = ip.SMALLEST_MTU[6] if packet[0] >> 4 == 6 else 68
        # no IPv6 sender needs to go lower than 1280, so such packets go out in pieces (RFC 2473 section 7.1)
        if not cut and len(packet) > least:
            self._counters["too-big"] += 1
            error = icmp.too_big(packet, max(fits, least)) if self._icmp.take(now) else None
            if error is not None:
                batch.local.append(error)
            return
        pieces = split(packet, fits, self._ident()) if cut and sender.tunnel and sender.portless else [packet]
        self._put_pieces(sender, packet, pieces, port, now, batch)

    def _put_pieces(
        self, sender: Sender, packet: bytes, pieces: Sequence[bytes], port: bytes, now: float, batch: Batch
    ) -> None:
        """A packet in pieces; in one when it is to be cut up behind its protection."""
        for piece in pieces:
            outgoing = self._protect(sender, piece, port, now)
            cut = piece is packet
            batch.wire += in_pieces(outgoing, self._mtu(sender.sa), self._ident()) if cut else [outgoing]

    # Inbound ---------------------------------------------------------------------------------------------

    def inbound(self, arrived: Sequence[Arrived], now: float) -> Batch:
        """Open packets that came off the wire."""
        batch = Batch()
        for one in arrived:
            self._open_all(one, now, batch)
        self._report()
        return batch

    def _open_all(self, arrived: Arrived, now: float, batch: Batch) -> None:
        data, size = arrived.data, arrived.segment
        if not size or len(data) <= size:
            self._open(arrived, data, now, batch)
            return
        for at in range(0, len(data), size):
            self._open(arrived, data[at : at + size], now, batch)

    def admitted(self, spi: int, packet: bytes, now: float) -> Batch:
        """A packet that the native loop opened, if its SA is for it and no limit was met: then the loop
        passes more of its flow."""
        batch = Batch()
        pair = self._spis.get(spi)
        try:
            if pair is None:
                raise Dropped("unknown-spi")
            receiver = self._receivers.get(spi) or self._new_receiver(pair)
            try:
                receiver.admit(packet, now)
            finally:
                self._look_at(receiver)
            key = ip.flow_key(packet)
            if key is not None:  # also when it was admitted before, for the loop forgets sooner
                self._accounts.admit(key, pair)
            batch.local.append(packet)
        except Dropped as dropped:
            self._counters[dropped.reason] += 1
        self._report()
        return batch

    def _open(self, arrived: Arrived, data: bytes, now: float, batch: Batch) -> None:
        try:
            receiver = self._receiver(arrived, data, now)
            try:
                packet = receiver.open(arrived, data, now)
                batch.local.append(self._twins.inbound(receiver.pair, packet) if self._twins else packet)
            finally:
                self._look_at(receiver)
        except Dropped as dropped:
            self._counters[dropped.reason] += 1

    def _look_at(self, receiver: Receiver) -> None:
        if receiver.meter.crossed:
            self._crossed(receiver.meter, receiver.pair, inbound=True)

    def _new_receiver(self, pair: SaPair) -> Receiver:
        receiver = self._receivers[pair.inbound.spi] = Receiver(pair, self._accounts, self._decides)
        return receiver

    def _receiver(self, arrived: Arrived, data: bytes, now: float) -> Receiver:
        if len(data) < 12:
            raise Dropped("malformed")
        spi = int.from_bytes(data[:4] if arrived.protocol == ip.ESP else data[4:8], "big")
        receiver = self._receivers.get(spi)
        if receiver is None:
            pair = self._spis.get(spi)
            if pair is None:
                if spi > RESERVED_SPI and self._unknown.take(now):
                    source = arrived.source if arrived.path is None else arrived.path.peer
                    self._notices.append(UnknownSpi(spi, source))
                raise Dropped("unknown-spi")
            receiver = self._new_receiver(pair)
        if receiver.protocol != arrived.protocol:
            raise Dropped("malformed")
        return receiver

    def knows(self, spi: int) -> bool:
        """Whether packets of an SPI can be opened."""
        return spi in self._spis

    # Paths and time --------------------------------------------------------------------------------------

    def path_mtu(
        self,
        destination: Address,
        mtu: int,
        now: float,
        spi: int | None = None,
        ports: tuple[int, int] | None = None,
    ) -> None:
        """The network told that packets to an outer address may have at most `mtu` octets. Anybody can say
        so: only smaller values are believed, none below what IP guarantees, and only for addresses, and
        `ports` of UDP, packets are sent to; `spi` is that of the packet quoted, which must then be one of
        theirs."""
        mtu = max(mtu, ip.SMALLEST_MTU[destination.version])
        spis = self._busy.get((destination, ports), ())
        known = self._mtus.get(destination)
        if (known is None or mtu < known[0]) and (spi in spis if spi is not None else spis):
            self._mtus[destination] = mtu, now + MTU_SECONDS
            self._reroute(None)

    def deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        whens = [
            self._held.deadline(),
            self._fragments.deadline(),
            *(when for _, when in self._mtus.values()),
        ]
        return min((when for when in whens if when is not None), default=None)

    def tick(self, now: float) -> None:
        """Drop held packets and fragments whose time is over, and try larger paths again."""
        self._held.expire(now)
        self._fragments.expire(now)
        for destination in [one for one, (_, when) in self._mtus.items() if when <= now]:
            del self._mtus[destination]
            self._reroute(None)

    # Inside ----------------------------------------------------------------------------------------------

    def _mtu(self, sa: SecurityAssociation) -> int:
        known = self._mtus.get(sa.destination) if self._mtus else None
        link = sa.mtu or self._link_mtu
        return min(known[0], link) if known else link

    def _ident(self) -> int:
        """An IPv4 identification or the like, never 0."""
        self._identification = self._identification % 0xFFFF + 1
        return self._identification

    def _retire(self, pair: SaPair) -> None:
        """Send on this pair no more."""
        self._pairs.discard(pair)
        self._twins.retire(pair)
        self._forget(pair)

    def _forget(self, pair: SaPair) -> None:
        """Make the pair's sender anew when it is next used."""
        self._reroute(None)
        if self._senders.pop(pair, None) is None:
            return
        spis = self._busy[_place(pair)]
        spis.discard(pair.outbound.spi)
        if not spis:
            del self._busy[_place(pair)]

    def _crossed(self, meter: Meter, pair: SaPair, *, inbound: bool) -> None:
        spi = pair.inbound.spi if inbound else pair.outbound.spi
        self._notices += (Expire(spi, inbound, hard, reason, pair.owner) for hard, reason in meter.crossed)
        meter.crossed.clear()

    def _report(self) -> None:
        """Hand notices to the owner, who may call back."""
        if self._notices:
            notices, self._notices = self._notices, []
            for notice in notices:
                self.notify(notice)


def _place(pair: SaPair) -> tuple[Address, tuple[int, int] | None]:
    """Where a pair's packets go: the address, and both ports if that is by UDP."""
    return pair.outbound.destination, pair.outbound.encapsulation


def check(pair: SaPair) -> None:
    """Refuse a pair that could not be used; better now than at its first packet."""
    for sa in (pair.inbound, pair.outbound):
        suite = sa.suite
        kind = suite.encryption.kind if suite.encryption is not None else None
        esp = suite.protocol is SecurityProtocol.ESP
        for wrong, why in (
            ((len(sa.encryption_key), len(sa.integrity_key)) != suite.keys, "its keys have wrong lengths"),
            (sa.source.version != sa.destination.version, "one address is IPv4, the other IPv6"),
            (not esp and sa.encapsulation is not None, "AH does not pass a NAT"),
            (esp and kind is None, "ESP needs an encryption algorithm"),
            (suite.integrity is None and kind not in (Kind.GMAC, Kind.AEAD), "it has no integrity"),
            (suite.integrity is None and kind is Kind.AEAD and not esp, "AH does not encrypt"),
            (sa.replay is not None and sa.replay.esn != suite.esn, "its replay window counts otherwise"),
        ):
            if wrong:
                raise Unavailable(f"SPI {sa.spi:08x} ({suite}) cannot be used: {why}")
