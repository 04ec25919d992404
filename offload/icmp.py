"""The one ICMP error the engine sends: a packet was too big for its path (RFC 1191, RFC 4443 section 3.2).

It goes to the sender through the TUN device, in the name of the packet's destination: an address the sender's
side routes back this way, and which the host's own source checks let in.
"""

from __future__ import annotations

from offload.ip import Outer, ones_complement
from sadb.address import Address
from sadb.selector import ICMP, ICMPV6, fields_of

_LONGEST = {4: 576, 6: 1280}  # octets of the error itself (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4)
_QUERIES4 = frozenset((0, 8, 13, 14, 15, 16, 17, 18))  # ICMP that is no error


def too_big(packet: bytes, mtu: int) -> bytes | None:
    """Fragmentation needed, or packet too big, about `packet`; None where no error may be sent (RFC 1122
    section 3.2.2, RFC 4443 section 2.4)."""
    fields = fields_of(packet)
    if fields is None or not _may_hear(fields.source) or fields.destination.is_multicast:
        return None
    kind = fields.source_port >> 8 if fields.source_port is not None else None
    if fields.source.version == 4:
        if packet[6] & 0x1F or packet[7] or (fields.protocol == ICMP and kind not in _QUERIES4):
            return None
        outer = Outer(fields.destination, fields.source, ICMP)
        quoted = packet[: _LONGEST[4] - outer.size - 8]
        body = b"\3\4\0\0\0\0" + min(mtu, 0xFFFF).to_bytes(2, "big") + quoted
        seed = 0
    else:
        if fields.protocol == ICMPV6 and (kind is None or kind < 128):
            return None
        outer = Outer(fields.destination, fields.source, ICMPV6)
        quoted = packet[: _LONGEST[6] - outer.size - 8]
        body = b"\2\0\0\0" + mtu.to_bytes(4, "big") + quoted
        seed = ones_complement(packet[8:40]) + ICMPV6 + len(body)
    total = seed + ones_complement(body + b"\0" if len(body) % 2 else body)
    check = 0xFFFF - (total % 0xFFFF or 0xFFFF)
    return outer.header(0, len(body)) + body[:2] + check.to_bytes(2, "big") + body[4:]


def _may_hear(source: Address) -> bool:
    return not (source.is_multicast or source.is_unspecified or int(source) == 0xFFFFFFFF)
