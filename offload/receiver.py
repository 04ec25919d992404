"""One inbound SA at work: a packet off the wire in, the packet it protects out (RFC 4301 section 5.2).

The order is that of RFC 4303 section 3.4: the replay window is asked first and moved only by what is
authentic; then padding, next header, and whether the packet is one this SA may carry.
"""

from __future__ import annotations

from offload import ip
from offload.accounts import Accounts
from offload.ah import Authenticator
from offload.esp import Opener, strip
from offload.ip import Dropped
from offload.outer import Arrived
from sadb.algorithms import SecurityProtocol
from sadb.sa import Mode, SaPair
from sadb.selector import fields_of

_ADMITTED = 1024  # flows remembered as covered by the selector
_KINDS = {ip.IPV4: 4, ip.IPV6: 6}


class Receiver:
    """Packets of one inbound SA."""

    __slots__ = (
        "_accounts",
        "_admitted",
        "_ah",
        "_esp",
        "_selector",
        "_tunnel",
        "meter",
        "pair",
        "protocol",
        "window",
    )

    def __init__(self, pair: SaPair, accounts: Accounts) -> None:
        sa = pair.inbound
        self.pair, self.meter, self.window = pair, accounts.meter(pair, True), accounts.window(pair)
        self._accounts = accounts
        self._tunnel = sa.mode is Mode.TUNNEL
        self._selector = pair.selector
        self._admitted: set[bytes] = set()
        self._esp: Opener | None = None
        self._ah: Authenticator | None = None
        if sa.suite.protocol is SecurityProtocol.ESP:
            self._esp, self.protocol = Opener(sa), ip.ESP
        else:
            self._ah, self.protocol = Authenticator(sa), ip.AH

    def open(self, arrived: Arrived, data: bytes, now: float) -> bytes:
        """The packet in one datagram, `data`, of what arrived; raises `Dropped`."""
        kind, payload, header = self._esp_open(arrived, data) if self._esp else self._ah_open(arrived, data)
        if kind == ip.NO_NEXT_HEADER:
            raise Dropped("dummy")
        packet = self._inner(arrived, kind, payload) if self._tunnel else _own(arrived, kind, payload, header)
        if not self.meter.take(len(packet), now):
            raise Dropped("used-up")
        self.admit(packet)
        return packet

    def _esp_open(self, arrived: Arrived, data: bytes) -> tuple[int, bytes, bytes]:
        assert self._esp is not None
        self._esp.check(data)
        number = self._new(data[4:8])
        text = self._esp.decrypt(number, data)
        self._accept(number)
        kind, payload = strip(text)
        return kind, payload, b"" if self._tunnel else _shown(arrived)

    def _ah_open(self, arrived: Arrived, data: bytes) -> tuple[int, bytes, bytes]:
        assert self._ah is not None
        size = self._ah.check(data)
        header = _shown(arrived)
        number = self._new(data[8:12])
        kind, payload = self._ah.verify(number, header, data, size)
        self._accept(number)
        return kind, payload, header

    def _new(self, low: bytes) -> int:
        """The whole sequence number; raises `Dropped` when it came before or is too old to tell."""
        number, refused = self.window.look(int.from_bytes(low, "big"))
        if refused:
            raise Dropped(refused)
        return number

    def _accept(self, number: int) -> None:
        if not self.window.accept(number):
            raise Dropped("replayed")  # another worker was faster

    def _inner(self, arrived: Arrived, kind: int, payload: bytes) -> bytes:
        """The packet of tunnel mode, without traffic-flow confidentiality padding (RFC 4303 section 2.7)."""
        version = _KINDS.get(kind)
        if version is None or not payload or payload[0] >> 4 != version:
            raise Dropped("malformed")
        return ip.decapsulated(ip.whole(payload), arrived.traffic_class)

    def admit(self, packet: bytes) -> None:
        """Refuse what the selectors do not cover, however well it was protected (RFC 4301 section 5.2)."""
        key = ip.flow_key(packet)
        if key is not None and key in self._admitted:
            return
        fields = fields_of(packet)
        if fields is None:
            raise Dropped("malformed")
        if not self._selector.matches_inbound(fields):
            raise Dropped("selector-mismatch")
        if key is not None:
            if len(self._admitted) >= _ADMITTED:
                self._admitted.clear()
            self._admitted.add(key)
            self._accounts.admit(key, self.pair)


def _shown(arrived: Arrived) -> bytes:
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
