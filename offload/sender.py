"""One outbound SA at work: an inner packet and a number in, what leaves for the wire out (RFC 4301 5.1).

A sender decides nothing: which SA, which number and whether the packet fits its path is settled before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from offload import ip
from offload.ah import Authenticator, Unsigned
from offload.esp import Framer, Sealer
from offload.fragments import split
from offload.meter import Meter
from offload.outer import Outgoing
from sadb.address import Path, SocketAddress
from sadb.algorithms import SecurityProtocol
from sadb.sa import Mode, SaPair
from sadb.selector import ANY_PORT

_UDP = 8  # octets of its header
_LARGEST_UDP = ip.LARGEST - 20 - _UDP
TRAIN = 64  # datagrams that every kernel takes at once (UDP_MAX_SEGMENTS)


class Sender:
    """Packets of one outbound SA. `ident` gives IPv4 identifications, never 0: the kernel replaces that."""

    __slots__ = (
        "_ah",
        "_dscp",
        "_esp",
        "_flags",
        "_how",
        "_ident",
        "_outer",
        "meter",
        "pair",
        "path",
        "portless",
        "sa",
        "tunnel",
        "version",
    )

    def __init__(
        self,
        pair: SaPair,
        random: Callable[[int], bytes],
        ident: Callable[[], int],
        meter: Meter,
        *,
        bare: bool = False,
        sealer: Sealer | None = None,
    ) -> None:
        """With `bare` packets are framed, and their encryption and check value left to an adapter. `sealer`:
        one that there is already."""
        sa = pair.outbound
        self.pair, self.sa, self.meter = pair, sa, meter
        self._ident = ident
        self._dscp = sa.dscp
        self._flags = None if sa.dont_fragment is None else ip.DONT_FRAGMENT if sa.dont_fragment else 0
        self.path: Path | None = None
        if sa.encapsulation is not None:
            source, destination = sa.encapsulation
            self.path = Path(SocketAddress(sa.source, source), SocketAddress(sa.destination, destination))
        self.version = sa.source.version
        self.tunnel = sa.mode is Mode.TUNNEL
        # whether a fragment that shows no ports is covered all the same
        self.portless = all(one.ports == ANY_PORT for one in (*pair.selector.local, *pair.selector.remote))
        self._esp: Sealer | None = None
        self._ah: Authenticator | None = None
        self._how: Callable[[Sender, bytes, int], Outgoing]
        if sa.suite.protocol is SecurityProtocol.ESP:
            self._esp = sealer or (Framer(sa, random) if bare else Sealer(sa, random))
            self._outer = ip.Outer(sa.source, sa.destination, ip.ESP)
            self._how = Sender._esp_tunnel if self.tunnel else Sender._esp_transport
        else:
            self._ah = Unsigned(sa) if bare else Authenticator(sa)
            self._outer = ip.Outer(sa.source, sa.destination, ip.AH)
            self._how = Sender._ah_tunnel if self.tunnel else Sender._ah_transport

    def protect(self, packet: bytes, number: int) -> Outgoing:
        """One packet that leaves. (Were this the bound method itself, it would refer to its own object, which
        has the key, and keep it until the collector comes.)"""
        return self._how(self, packet, number)

    def fits(self, mtu: int, packet: bytes) -> int:
        """The longest packet, with a header like this one's, that leaves in one piece of `mtu` octets."""
        head = self._outer.size if self.tunnel or self.path else ip.insertion(packet)[0]
        if self._esp is not None:
            most = self._esp.most(mtu - head - (_UDP if self.path else 0))
        else:
            assert self._ah is not None
            most = mtu - head - self._ah.size(self.version)
        return most if self.tunnel else most + ip.insertion(packet)[0]

    def protect_train(self, packets: Sequence[bytes], number: int) -> list[Outgoing]:
        """Packets of one flow, equally long but for the last, and numbered from `number` on."""
        if self._esp is None or self.path is None or not self.tunnel:
            return [self.protect(packet, at) for at, packet in enumerate(packets, number)]
        first = packets[0]
        four = first[0] >> 4 == 4
        sealed = self._esp.seal_train(number, packets, ip.IPV4 if four else ip.IPV6)
        return in_trains(sealed, self.path, self._traffic(first, four), self.whole(first, four))

    # One function for each protocol and mode; `packet` is as long as its header says --------------------

    def _esp_tunnel(self, packet: bytes, number: int) -> Outgoing:
        assert self._esp is not None
        four = packet[0] >> 4 == 4
        sealed = self._esp.seal(number, packet, ip.IPV4 if four else ip.IPV6)
        if self.path is not None:
            return _in_udp(sealed, self.path, self._traffic(packet, four), self.whole(packet, four))
        return Outgoing(self._header(packet, four, len(sealed)) + sealed)

    def _ah_tunnel(self, packet: bytes, number: int) -> Outgoing:
        assert self._ah is not None
        four = packet[0] >> 4 == 4
        header = self._header(packet, four, self._ah.size(self.version) + len(packet))
        field = ip.last_field(header)
        return Outgoing(self._ah.sign(number, header, field, ip.IPV4 if four else ip.IPV6, packet))

    def _header(self, packet: bytes, four: bool, payload: int) -> bytes:
        """The outer header: ECN is the inner packet's (RFC 6040 section 4.1), DSCP and DF are it or the
        SA's."""
        traffic = self._traffic(packet, four)
        if self.version == 6:
            return self._outer.header(traffic, payload)
        flags = ip.DONT_FRAGMENT if self.whole(packet, four) else 0
        return self._outer.header(traffic, payload, self._ident(), flags)

    def whole(self, packet: bytes, four: bool) -> bool:
        """Whether the outer packet has DF. What must not be fragmented on the way in IPv6 must not be in IPv4
        either."""
        if self._flags is not None:
            return self._flags > 0
        return not four or packet[6] & 0x40 > 0

    def _traffic(self, packet: bytes, four: bool) -> int:
        traffic = packet[1] if four else (packet[0] & 15) << 4 | packet[1] >> 4
        return traffic if self._dscp is None else self._dscp << 2 | traffic & 3

    def _esp_transport(self, packet: bytes, number: int) -> Outgoing:
        assert self._esp is not None
        at, field, protocol = ip.insertion(packet)
        sealed = self._esp.seal(number, packet[at:], protocol)
        if self.path is not None:
            return _in_udp(
                sealed, self.path, ip.traffic_class(packet), self.whole(packet, packet[0] >> 4 == 4)
            )
        return Outgoing(ip.addressed(self._own(packet[:at]), field, ip.ESP, len(sealed)) + sealed)

    def _ah_transport(self, packet: bytes, number: int) -> Outgoing:
        assert self._ah is not None
        at, field, protocol = ip.insertion(packet)
        return Outgoing(self._ah.sign(number, self._own(packet[:at]), field, protocol, packet[at:]))

    def _own(self, header: bytes) -> bytes:
        """The packet's own header as it is to be on the wire; checksum and lengths come later. The kernel
        replaces an identification of 0, which AH would notice."""
        if header[0] >> 4 == 6 or (self._flags is None and header[4:6] != b"\0\0"):
            return header
        head = bytearray(header)
        if head[4:6] == b"\0\0":
            head[4:6] = self._ident().to_bytes(2, "big")
        if self._flags is not None:
            head[6] = head[6] & 0xBF | self._flags >> 8
        return bytes(head)


def in_trains(sealed: Sequence[bytes], path: Path, traffic: int, whole: bool) -> list[Outgoing]:
    """ESP packets, equally long but for the last, as the trains of datagrams that a system call takes."""
    size = len(sealed[0])
    if size > _LARGEST_UDP:
        raise ip.Dropped("too-big")
    most = min(_LARGEST_UDP // size, TRAIN)
    trains = [sealed[at : at + most] for at in range(0, len(sealed), most)]
    return [Outgoing(b"".join(train), path, traffic, size, whole) for train in trains]


def in_pieces(outgoing: Outgoing, mtu: int, ident: int) -> list[Outgoing]:
    """A packet as fragments of at most `mtu` octets; in UDP for IP to make them."""
    if outgoing.path is not None:
        return [replace(outgoing, dont_fragment=False)]
    return [Outgoing(part) for part in split(outgoing.data, mtu, ident)]


def _in_udp(sealed: bytes, path: Path, traffic: int, whole: bool) -> Outgoing:
    if len(sealed) > _LARGEST_UDP:
        raise ip.Dropped("too-big")
    return Outgoing(sealed, path, traffic, dont_fragment=whole)
