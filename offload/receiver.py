"""One inbound SA at work: a packet off the wire in, the packet it protects out (RFC 4301 section 5.2).

The order is that of RFC 4303 section 3.4: the replay window is asked first and moved only by what is
authentic; then padding, next header, and whether the packet is one this SA may carry.
"""

from __future__ import annotations

from collections.abc import Callable

from offload import ip, vnet
from offload.accounts import Accounts
from offload.ah import Authenticator
from offload.esp import Opener, strip
from offload.ip import Dropped
from offload.outer import Arrived, CryptoStatus, Mark
from sadb.algorithms import SecurityProtocol
from sadb.sa import Mode, SaPair
from sadb.selector import Fields, fields_of

_ADMITTED = 1024  # flows remembered as covered by the selector
_KINDS = {ip.IPV4: 4, ip.IPV6: 6}


class Receiver:
    """Packets of one inbound SA. `decides(rule, fields)` says whether a packet may come by this rule."""

    __slots__ = (
        "_accounts",
        "_admitted",
        "_ah",
        "_decides",
        "_esp",
        "_selector",
        "_tunnel",
        "meter",
        "pair",
        "protocol",
        "window",
    )

    def __init__(self, pair: SaPair, accounts: Accounts, decides: Callable[[str, Fields], bool]) -> None:
        sa = pair.inbound
        self.pair, self.meter, self.window = pair, accounts.meter(pair, True), accounts.window(pair)
        self._accounts = accounts
        self._tunnel = sa.mode is Mode.TUNNEL
        self._selector = pair.selector
        self._decides = decides
        self._admitted: set[bytes] = set()
        self._esp: Opener | None = None
        self._ah: Authenticator | None = None
        if sa.suite.protocol is SecurityProtocol.ESP:
            self._esp, self.protocol = Opener(sa), ip.ESP
        else:
            self._ah, self.protocol = Authenticator(sa), ip.AH

    def open(self, arrived: Arrived, data: bytes, now: float) -> bytes:
        """The packet in one datagram, `data`, of what arrived; raises `Dropped`. With a mark that says so,
        which the caller believes, its text is in the clear and verified already."""
        mark = arrived.mark
        high = mark.high if mark is not None and mark.status is CryptoStatus.SUCCESS else None
        if self._esp is not None:
            packet = contents(arrived, self._esp_open(data, high), tunnel=self._tunnel)
        else:
            packet = self._ah_open(arrived, data, high)
        self.admit(packet, now)
        return packet

    def open_frame(self, mark: Mark, frame: bytes, now: float) -> tuple[list[bytes] | None, list[str]]:
        """What an adapter put together from packets with the numbers of the mark: None when all of it may
        pass as it is, else the packets that may; and why the others may not. Raises `Dropped` for what is
        none."""
        size = len(frame) - vnet.HEADER
        if size <= 0:
            raise Dropped("malformed")
        head, _, count = vnet.outline(frame)
        if count != len(mark.numbers):
            raise Dropped("malformed")
        self._cover(frame[vnet.HEADER :])
        refused = ["" if mark.judged else self._refused(low, mark.high) for low in mark.numbers]
        if not any(refused) and self.meter.take_all(size + (count - 1) * head, count, now):
            return None, []
        packets, good = vnet.packets(frame), []
        if len(packets) != count:
            raise Dropped("malformed")
        for at, packet in enumerate(packets):
            if not refused[at]:
                if self.meter.take(len(packet), now):
                    good.append(packet)
                else:
                    refused[at] = "used-up"
        return good, [why for why in refused if why]

    def _refused(self, low: int, high: int) -> str:
        """Why a packet that an adapter verified is dropped, empty when it is not; then its number is used."""
        try:
            number = self._new(low)
            _check_half(number, high)
            self._accept(number)
        except Dropped as dropped:
            return dropped.reason
        return ""

    def _esp_open(self, data: bytes, high: int | None) -> bytes:
        assert self._esp is not None
        self._esp.check(data)
        number = self._new(int.from_bytes(data[4:8], "big"))
        if high is None:
            text = self._esp.decrypt(number, data)
        else:
            _check_half(number, high)
            text = self._esp.text(data)
        self._accept(number)
        return text

    def _ah_open(self, arrived: Arrived, data: bytes, high: int | None) -> bytes:
        assert self._ah is not None
        size = self._ah.check(data)
        header = shown(arrived)
        number = self._new(int.from_bytes(data[8:12], "big"))
        if high is None:
            kind, payload = self._ah.verify(number, header, data, size)
        else:
            _check_half(number, high)
            kind, payload = data[0], data[size:]
        self._accept(number)
        return unwrapped(arrived, kind, payload, header, tunnel=self._tunnel)

    def _new(self, low: int) -> int:
        """The whole sequence number; raises `Dropped` when it came before or is too old to tell."""
        number, refused = self.window.look(low)
        if refused:
            raise Dropped(refused)
        return number

    def _accept(self, number: int) -> None:
        if not self.window.accept(number):
            raise Dropped("replayed")  # another worker was faster

    def forget(self) -> None:
        """Other flows are in force: look at each once more."""
        self._admitted.clear()

    def admit(self, packet: bytes, now: float) -> None:
        """Count a packet. Refuse what is beyond a hard limit, what the selectors do not cover, however well
        it was protected (RFC 4301 section 5.2), and what another rule decides: that one may know the peer
        not at all."""
        if not self.meter.take(len(packet), now):
            raise Dropped("used-up")
        self._cover(packet)

    def _cover(self, packet: bytes) -> None:
        """Refuse what the selectors do not cover, and what comes under another rule."""
        key = ip.flow_key(packet)
        if key is not None and key in self._admitted:
            return
        fields = fields_of(packet)
        if fields is None:
            raise Dropped("malformed")
        if not self._selector.matches_inbound(fields):
            raise Dropped("selector-mismatch")
        if not self._decides(self.pair.rule, fields):
            raise Dropped("other-rule")
        if key is not None:
            if len(self._admitted) >= _ADMITTED:
                self._admitted.clear()
            self._admitted.add(key)
            self._accounts.admit(key, self.pair)


def _check_half(number: int, high: int) -> None:
    """An adapter verified the packet with this upper half of its number: is it the one that our window says?
    Else it is an old packet that comes again, to an adapter that does not know the new half."""
    if number >> 32 != high:
        raise Dropped("unverified")


def contents(arrived: Arrived, text: bytes, *, tunnel: bool) -> bytes:
    """The packet in the decrypted text of an ESP packet, with trailer; raises `Dropped`."""
    kind, payload = strip(text)
    return unwrapped(arrived, kind, payload, b"" if tunnel else shown(arrived), tunnel=tunnel)


def unwrapped(arrived: Arrived, kind: int, payload: bytes, header: bytes, *, tunnel: bool) -> bytes:
    """The packet that was protected, out of an authentic payload and what its header says it is; raises
    `Dropped`."""
    if kind == ip.NO_NEXT_HEADER:
        raise Dropped("dummy")
    return _inner(arrived, kind, payload) if tunnel else _own(arrived, kind, payload, header)


def _inner(arrived: Arrived, kind: int, payload: bytes) -> bytes:
    """The packet of tunnel mode, without traffic-flow confidentiality padding (RFC 4303 section 2.7)."""
    version = _KINDS.get(kind)
    if version is None or not payload or payload[0] >> 4 != version:
        raise Dropped("malformed")
    return ip.decapsulated(ip.whole(payload), arrived.traffic_class)


def shown(arrived: Arrived) -> bytes:
    """The IP header the packet came with. Where the socket shows none, IPv6 and UDP, it is made from what is
    known; IPv6 extension headers before ESP or AH are then lost, and AH behind such ones does not verify."""
    header = arrived.header if arrived.path is None else b""
    version = arrived.source.version
    if header:
        if header[0] >> 4 != version or not 20 <= len(header) == _length(header):
            raise Dropped("malformed")
        return header
    if arrived.path is None and version == 4 and arrived.protocol == ip.AH:
        raise Dropped("malformed")  # its identification is authenticated
    outer = ip.Outer(arrived.source, arrived.destination, arrived.protocol)
    return outer.header(arrived.traffic_class, len(arrived.data))


def _length(header: bytes) -> int:
    if header[0] >> 4 == 4:
        return (header[0] & 15) * 4
    return len(header) if len(header) >= 40 else -1


def _own(arrived: Arrived, kind: int, payload: bytes, header: bytes) -> bytes:
    """The packet of transport mode, its header naming what is inside, its checksum mended behind a NAT."""
    head = bytearray(header)
    if head[0] >> 4 == 4:
        head[6] &= 0x40  # fragments have been put together below us
        head[7] = 0
    packet = ip.addressed(bytes(head), ip.last_field(header), kind, len(payload)) + payload
    return packet if arrived.path is None else ip.with_transport_checksum(packet, len(header), kind)
