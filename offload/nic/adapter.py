"""A simulated network adapter with an SA table: IPsec task offload v2, as the Intel 82576 does it. Pure.

What a driver of Windows would ask of a card comes as values of `offload.nic.requests` and
`offload.nic.descriptors`; frames to and from the wire are those of `offload.outer`. The transform is the
software engine's own code. The adapter keeps no lifetime and drops nothing it finds wrong: what it cannot do
goes up as it came, what it found wrong goes up with a mark that says so. It numbers nothing and keeps no
replay window but for SAs that were added in packet mode, see `offload.nic.packet_mode`. `offload.nic.process`
is the process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from offload import ip, vnet
from offload.esp import HEADER
from offload.ip import Dropped
from offload.nic.capabilities import Capabilities
from offload.nic.descriptors import LONGEST, MOST_PACKETS, Completion, Task, Transmit
from offload.nic.eligibility import Circumstances, direction, ineligible
from offload.nic.faults import Faults, Lie
from offload.nic.management import Quota
from offload.nic.requests import (
    HALF,
    Added,
    AddSa,
    Deleted,
    DeleteSa,
    Refused,
    TakeWindow,
    UpdateSa,
    association,
)
from offload.nic.sa_table import Entry, MakeCipher, SaTable, slot_of
from offload.outer import Arrived, CryptoStatus, Mark, Outgoing
from offload.receiver import contents, shown, unwrapped
from offload.sender import TRAIN, in_pieces, in_trains
from sadb.address import Address
from sadb.crypto import Unverified, cipher

ICV = 16
_IV = 8
_AH = 12 + _IV + ICV
_PLAIN = bytes(vnet.HEADER)  # before a packet that stands for itself alone
_REFUSED = {"dummy": CryptoStatus.DUMMY, "congestion": CryptoStatus.CONGESTION}  # else: syntax

_Done = tuple[Transmit, list[Outgoing], Completion]


class Adapter:
    """One adapter and its table. `random(n)` gives octets for the faults; `address(octets)` an address
    object."""

    def __init__(
        self,
        capabilities: Capabilities,
        random: Callable[[int], bytes],
        address: Callable[[bytes], Address],
        make_cipher: MakeCipher = cipher,
    ) -> None:
        self.capabilities, self.faults = capabilities, Faults()
        self.table = SaTable(capabilities, make_cipher)
        self.up = True
        self.quotas: dict[str, Quota] = {}  # of ports; what is not here may have all
        self.counters: Counter[str] = Counter()
        self._random, self._address = random, address

    # Requests --------------------------------------------------------------------------------------------

    def request(
        self, port: str, message: AddSa | UpdateSa | TakeWindow | DeleteSa
    ) -> Added | Refused | Deleted | None:
        """Do what a port asks."""
        match message:
            case AddSa():
                answer = self._add(port, message)
                self.counters["adds" if isinstance(answer, Added) else f"refused: {answer.reason}"] += 1
                return answer
            case UpdateSa(handle, high):
                entry = self._own(port, handle)
                if entry is not None and 0 <= high <= HALF and not self.faults.esn_lag:
                    entry.high = high
                    self.counters["updates"] += 1
                return None
            case TakeWindow(handle, highest):
                entry = self._own(port, handle)
                if entry is not None and entry.judge is not None:
                    entry.judge.take(highest)
                    self.counters["windows taken"] += 1
                return None
            case DeleteSa(handle):
                entry = self._own(port, handle)
                if entry is None:
                    return Deleted(handle)
                self.table.delete(handle)
                self.counters["deletes"] += 1
                return Deleted(handle, *entry.judge.home()) if entry.judge is not None else Deleted(handle)

    def detach(self, port: str) -> None:
        """The port is gone, and everything it had."""
        for entry in self.table.entries():
            if entry.port == port:
                self.table.delete(entry.handle)

    def reset(self) -> None:
        """Forget all SAs."""
        self.counters["resets"] += 1
        self.table.clear()

    def used(self, port: str) -> int:
        """Slots of a port."""
        return sum(self.table.used(port, pool) for pool in range(len(self.capabilities.pools)))

    def _own(self, port: str, handle: int) -> Entry | None:
        entry = self.table.get(handle)
        return entry if entry is not None and entry.port == port else None

    def _add(self, port: str, message: AddSa) -> Added | Refused:
        try:
            source, destination = self._address(message.source), self._address(message.destination)
            sa = association(message, source, destination)
        except ValueError:
            return Refused(message.ident, "transform")
        quota = self.quotas.get(port)
        at = Circumstances(self.capabilities, up=self.up, trusted=quota is None or quota.outbound)
        unable = ineligible(sa, at)
        reason = unable.value if unable else self._refusal(port, self.capabilities.pool(direction(sa)))
        if message.packets is not None and not self.capabilities.packet_mode:
            reason = reason or "refused"
        if not reason:
            entry = self.table.add(port, sa, message.high, packets=message.packets is not None)
            if isinstance(entry, Entry):
                return Added(message.ident, entry.handle)
            reason = entry
        return Refused(message.ident, reason)

    def _refusal(self, port: str, pool: int) -> str:
        faults = self.faults
        if faults.refuse_once:
            faults.refuse_once = False
            return "refused"
        if faults.full:
            return "slots_full"
        quota = self.quotas.get(port)
        if quota is not None and self.used(port) >= quota.limit:
            return "port_limit"
        return "slots_full" if 0 < self._owed(port, pool) >= self.table.free(pool) else ""

    def _owed(self, port: str, pool: int) -> int:
        """Slots that are kept for other ports and that they do not have yet. Who places SAs keeps to this by
        himself; a guest's daemon that adds what it was not told to does not."""
        kept = ((one.port, one.kept[pool]) for one in self.quotas.values() if pool < len(one.kept))
        return sum(max(0, count - self.table.used(name, pool)) for name, count in kept if name != port)

    # Transmit --------------------------------------------------------------------------------------------

    def transmit(self, port: str, descriptors: Sequence[Transmit]) -> tuple[list[Outgoing], list[Completion]]:
        """Protect and send what a port's ring held: what goes to the wire, and what is done with. A handle
        that is not the port's current one fails, and nothing leaves."""
        ready = [(one, *self._done(port, one)) for one in descriptors]
        if self.faults.stuck:
            return [], []
        if self.faults.reorder > 1:
            ready = self._shuffled(ready)
        wire, done = [], []
        for _, packets, completion in ready:
            if packets and self._happens(self.faults.drop_tx):
                continue
            wire += packets
            done.append(completion)
        return wire, done

    def _done(self, port: str, one: Transmit) -> tuple[list[Outgoing], Completion]:
        """Do what one descriptor asks for."""
        if one.task is Task.FENCE:
            entry = self._own(port, one.handle)
            numbers = entry.numbers if entry is not None else None
            unused = numbers.stop() if numbers is not None else 0
            return [], Completion(one.ident, True, unused % 2**64)  # behind the last number of all: none
        if one.task is Task.LEASE:
            entry = self._own(port, one.handle)
            numbers = entry.numbers if entry is not None else None
            granted = numbers is not None and numbers.grant(one.number, one.segment)
            self.counters["leases" if granted else "leases refused"] += 1
            return [], Completion(one.ident, granted)
        packets = self._protected(port, one)
        return packets, Completion(one.ident, bool(packets))

    def _protected(self, port: str, one: Transmit) -> list[Outgoing]:
        if self.faults.swap:
            self._swap(one.handle)
        entry = self._own(port, one.handle)
        if entry is None or entry.sa.inbound or not self.up:
            self.counters["unknown-handle"] += 1
            return []
        try:
            if len(one.data) > LONGEST:
                raise Dropped("malformed")
            packets = _MAKE[one.task](self, entry, one)
        except Dropped:
            self.counters["malformed-descriptor"] += 1
            return []
        return [self._spoilt(packet) for packet in packets] if self.faults.bad_icv else packets

    def _packets(self, entry: Entry, one: Transmit) -> list[Outgoing]:
        """Packet mode: cut a large packet up, number what it comes to, and make whole packets of it."""
        sender, numbers = entry.sender, entry.numbers
        if sender is None or numbers is None:
            raise Dropped("malformed")
        packets = [ip.whole(packet) for packet in vnet.packets(one.data, MOST_PACKETS)]
        number = numbers.take(len(packets))
        if not number:
            self.counters["lease-used-up"] += 1
            raise Dropped("malformed")
        if len(packets) > 1:
            made = sender.protect_train(packets, number)
        else:
            made = [sender.protect(packets[0], number)]
        if not one.segment:
            return made
        mtu = max(one.segment, ip.SMALLEST_MTU[sender.version])
        return [piece for packet in made for piece in in_pieces(packet, mtu, self.table.ident())]

    def _secured(self, entry: Entry, one: Transmit) -> list[Outgoing]:
        """Packets that the host framed, for this SA and no other: else two would share an IV."""
        if entry.numbers is not None:
            raise Dropped("malformed")  # the numbers of this SA are ours
        data, size = one.data, one.segment or len(one.data)
        if (
            size <= 0
            or one.at < 0
            or (one.segment and (one.path is None or one.at or len(data) > TRAIN * size))
        ):
            raise Dropped("malformed")
        if entry.cipher is None:
            return [Outgoing(self._signed(entry, data, one.at))]
        sealed = b"".join(
            self._sealed(entry, data[at : at + size], one.at) for at in range(0, len(data), size)
        )
        return [Outgoing(sealed, one.path, one.traffic_class, one.segment, one.dont_fragment)]

    def _sealed(self, entry: Entry, packet: bytes, at: int) -> bytes:
        start = at + HEADER + _IV
        header = packet[at : at + HEADER]
        if len(packet) < start + 2 + ICV or header[:4] != entry.spi:
            raise Dropped("malformed")
        assert entry.cipher is not None
        aad = _aad(entry, header, entry.high)
        text = entry.cipher.seal(packet[at + HEADER : start], aad, packet[start:-ICV])
        return packet[:start] + text

    def _signed(self, entry: Entry, packet: bytes, at: int) -> bytes:
        assert entry.signer is not None
        if len(packet) < at + _AH or at < 20 or packet[at + 4 : at + 8] != entry.spi:
            raise Dropped("malformed")
        size = (packet[at + 1] + 2) * 4
        number = entry.number(int.from_bytes(packet[at + 8 : at + 12], "big"))
        head = packet[:at]
        return entry.signer.sign(number, head, ip.last_field(head), packet[at], packet[at + size :])

    def _large(self, entry: Entry, one: Transmit) -> list[Outgoing]:
        """Cut a large packet up, frame its segments as the host would, and seal them: transport mode only
        (LsoSupported)."""
        if entry.sealer is None or entry.tunnel or entry.numbers is not None or not self.capabilities.lso:
            raise Dropped("malformed")
        packets = vnet.packets(one.data, MOST_PACKETS)
        if not 1 < len(packets) == vnet.outline(one.data)[2]:  # so many numbers were taken
            raise Dropped("malformed")
        at, field, protocol = ip.insertion(packets[0])
        number = entry.number(one.number & 0xFFFFFFFF)
        sealed = entry.sealer.seal_train(number, [packet[at:] for packet in packets], protocol)
        if one.path is not None:
            return in_trains(sealed, one.path, one.traffic_class, one.dont_fragment)
        return [
            Outgoing(ip.addressed(packet[:at], field, ip.ESP, len(text)) + text)
            for packet, text in zip(packets, sealed, strict=True)
        ]

    # Receive ---------------------------------------------------------------------------------------------

    def receive(self, port: str, arrived: Sequence[Arrived]) -> list[Arrived]:
        """What came off the wire to a port: opened and marked where an SA of that port is in the table, else
        as it came."""
        found: list[tuple[Entry | None, Arrived]] = []
        for one in arrived:
            rows = [(self._row(port, piece), piece) for piece in _pieces(one)] if self._able(one) else []
            if any(entry for entry, _ in rows):
                found += ((entry, self._opened(entry, piece) if entry else piece) for entry, piece in rows)
            else:
                found.append((None, one))  # a train for nobody stays one
        if not self.capabilities.lro:
            return [one for _, one in found]
        made: list[Arrived] = []
        for (entry, _), group in groupby(found, key=lambda pair: (pair[0], _kind(pair[1]))):
            run = [one for _, one in group]
            made += run if entry is None else self._coalesced(entry, run)
        return made

    def _row(self, port: str, one: Arrived) -> Entry | None:
        return self.table.find(port, one.spi, one.destination) if len(one.data) >= HEADER else None

    def _able(self, arrived: Arrived) -> bool:
        """IPv4 options, and UDP where the adapter knows none: software does the work."""
        return len(arrived.header) <= 20 or self.capabilities.ipv4_options

    def _opened(self, entry: Entry, arrived: Arrived) -> Arrived:
        status, data, number, judged = self._crypto(entry, arrived)
        if self._happens(self.faults.bad_icv) and status is CryptoStatus.SUCCESS:
            status, data = self._failure(entry), arrived.data
        if status is CryptoStatus.SUCCESS and entry.judge is not None:
            if judged:
                entry.judge.accept(number)
                status, data = self._plain(entry, arrived, data)
            else:
                entry.judge.marked(number)
        self.counters[f"received: {status.name.lower()}"] += 1
        handle, evict = entry.handle, self.faults.evict
        if evict:
            self.faults.evict = False
            self.counters["evict requests"] += 1
        if self.faults.lie is not None:
            handle, data, status = self._lie(entry), arrived.data, CryptoStatus.SUCCESS
        numbers = (number & HALF,) if judged and status is CryptoStatus.SUCCESS else ()
        return replace(arrived, data=data, mark=Mark(handle, status, numbers, evict, number >> 32, judged))

    def _crypto(self, entry: Entry, arrived: Arrived) -> tuple[CryptoStatus, bytes, int, bool]:
        """Check and decrypt one packet; header, trailer and check value stay. With its number, and whether
        that was judged here."""
        data = arrived.data
        esp = entry.cipher is not None
        if esp != (arrived.protocol == ip.ESP):
            return CryptoStatus.INVALID_PROTOCOL, data, 0, False
        if len(data) < (HEADER + _IV + 2 + ICV if esp else _AH):
            return CryptoStatus.INVALID_SYNTAX, data, 0, False
        low = int.from_bytes(data[4:8] if esp else data[8:12], "big")
        number, refused, judged = entry.number(low), None, False
        if entry.judge is not None:
            number, refused, judged = entry.judge.look(low)
        if refused is not None:
            return refused, data, number, judged
        try:
            if entry.cipher is None:
                return *self._verified(entry, arrived, number), number, judged
            start, aad = HEADER + _IV, _aad(entry, data[:HEADER], number >> 32)
            text = entry.cipher.open(data[HEADER:start], aad, data[start:])
            return CryptoStatus.SUCCESS, data[:start] + text + data[-ICV:], number, judged
        except Unverified:
            return self._failure(entry), data, number, judged

    def _verified(self, entry: Entry, arrived: Arrived, number: int) -> tuple[CryptoStatus, bytes]:
        data = arrived.data
        assert entry.signer is not None
        try:
            entry.signer.verify(number, shown(arrived), data, entry.signer.check(data))
        except Dropped as dropped:
            bad = dropped.reason == "unverified"
            return self._failure(entry) if bad else CryptoStatus.INVALID_SYNTAX, data
        return CryptoStatus.SUCCESS, data

    def _plain(self, entry: Entry, arrived: Arrived, data: bytes) -> tuple[CryptoStatus, bytes]:
        """Packet mode: the packet inside, as a frame behind the first octets of what it came in."""
        try:
            if entry.cipher is not None:
                packet = contents(arrived, data[HEADER + _IV : -ICV], tunnel=entry.tunnel)
            else:
                size = (data[1] + 2) * 4
                packet = unwrapped(arrived, data[0], data[size:], shown(arrived), tunnel=entry.tunnel)
        except Dropped as dropped:
            return _REFUSED.get(dropped.reason, CryptoStatus.INVALID_SYNTAX), arrived.data
        return CryptoStatus.SUCCESS, data[:HEADER] + _PLAIN + packet

    def _failure(self, entry: Entry) -> CryptoStatus:
        if entry.cipher is None:
            return CryptoStatus.TUNNEL_AH_FAILED if entry.tunnel else CryptoStatus.TRANSPORT_AH_FAILED
        return CryptoStatus.TUNNEL_ESP_FAILED if entry.tunnel else CryptoStatus.TRANSPORT_ESP_FAILED

    def _coalesced(self, entry: Entry, opened: Sequence[Arrived]) -> list[Arrived]:
        """Put successive segments of one flow together. Numbers go with them, for the host's window, and the
        ESP header of the first."""
        made: list[Arrived] = []
        rows = [(one, self._inner(entry, one)) for one in opened]
        for key, group in groupby(rows, key=lambda row: row[1] and ip.flow_key(row[1])):
            run = list(group)
            at = 0
            for frame in vnet.frames([packet for _, packet in run]) if key else ():
                count = vnet.outline(frame)[2]
                parts = [one for one, _ in run[at : at + count]]
                made += parts if count == 1 else [_joined(entry, parts, frame)]
                at += count
            made += (one for one, _ in run[at:])
        return made

    def _inner(self, entry: Entry, one: Arrived) -> bytes:
        """The packet in an opened one, if nothing about it wants a second look."""
        if one.mark is None or one.mark.status is not CryptoStatus.SUCCESS:
            return b""
        if one.mark.judged:
            return one.data[HEADER + vnet.HEADER :]
        if entry.cipher is None:
            return b""
        try:
            return contents(one, one.data[HEADER + _IV : -ICV], tunnel=entry.tunnel)
        except Dropped:
            return b""

    # Faults ----------------------------------------------------------------------------------------------

    def _happens(self, probability: float) -> bool:
        return probability > 0 and int.from_bytes(self._random(4), "big") < probability * 2**32

    def _spoilt(self, packet: Outgoing) -> Outgoing:
        if not self._happens(self.faults.bad_icv):
            return packet
        return replace(packet, data=packet.data[:-1] + bytes((packet.data[-1] ^ 1,)))

    def _swap(self, handle: int) -> None:
        """Give the slot of an SA away, as if deleted and added again."""
        entry = self.table.get(handle)
        if entry is not None:
            self.faults.swap = False
            self.table.delete(handle)
            self.table.add(entry.port, entry.sa, entry.high, packets=entry.sender is not None)

    def _lie(self, entry: Entry) -> int:
        if self.faults.lie is Lie.RAW:
            return 0
        if self.faults.lie is Lie.STALE:
            return entry.handle - (1 << 16)
        others = [one.handle for one in self.table.entries() if one is not entry]
        return others[0] if others else slot_of(entry.handle)

    def _shuffled(self, ready: list[_Done]) -> list[_Done]:
        """Out of order within the fault's bound of packets, fences where they are."""
        made: list[_Done] = []
        window: list[_Done] = []
        held = 0
        for one in ready:
            fence = one[0].task is Task.FENCE
            count = sum(-(-len(packet.data) // (packet.segment or len(packet.data))) for packet in one[1])
            if fence or held + count > self.faults.reorder:
                made += self._mixed(window)
                window, held = [], 0
            window.append(one)
            held += self.faults.reorder if fence else count
        return made + self._mixed(window)

    def _mixed(self, window: list[_Done]) -> list[_Done]:
        return [one for _, _, one in sorted((self._random(4), at, one) for at, one in enumerate(window))]


def _pieces(arrived: Arrived) -> list[Arrived]:
    """The datagrams of a train, which may be of different SAs."""
    data, size = arrived.data, arrived.segment
    if not 0 < size < len(data):
        return [arrived]
    return [replace(arrived, data=data[at : at + size], segment=0) for at in range(0, len(data), size)]


_MAKE: dict[Task, Callable[[Adapter, Entry, Transmit], list[Outgoing]]] = {
    Task.SECURE: Adapter._secured,
    Task.LARGE: Adapter._large,
    Task.PACKETS: Adapter._packets,
}


def _kind(arrived: Arrived) -> tuple[bool, int]:
    """What packets put together have in common: who judges them, and the upper half of their numbers."""
    return (arrived.mark.judged, arrived.mark.high) if arrived.mark is not None else (False, 0)


def _aad(entry: Entry, header: bytes, high: int) -> bytes:
    """Associated data of an ESP packet (RFC 4106 section 5)."""
    return header[:4] + high.to_bytes(4, "big") + header[4:] if entry.sa.suite.esn else header


def _joined(entry: Entry, parts: Sequence[Arrived], frame: bytes) -> Arrived:
    numbers = tuple(int.from_bytes(one.data[4:8], "big") for one in parts)
    evict = any(one.mark is not None and one.mark.evict for one in parts)
    first = parts[0].mark
    assert first is not None
    mark = Mark(entry.handle, CryptoStatus.SUCCESS, numbers, evict, first.high, first.judged)
    return replace(parts[0], data=parts[0].data[:HEADER] + frame, mark=mark)
