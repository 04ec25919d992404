"""Identities of quick mode: which traffic an SA is for, RFC 2407 section 4.6.2 and RFC 3947 section 5.2.

A quick mode speaks of one selector at each end: an address, a prefix or a range, a protocol and a port or
none.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address

from ikd.isakmp.message import Refused
from ikd.isakmp.numbers import IdType, N
from ikd.isakmp.payloads import Identification
from ikd.wire.codec import Malformed
from sadb.address import Address
from sadb.sa import Acquire
from sadb.selector import ANY_PORT, Selector, TrafficSelector

_SIZES = {
    IdType.IPV4_ADDR: 4,
    IdType.IPV4_ADDR_SUBNET: 8,
    IdType.IPV4_ADDR_RANGE: 8,
    IdType.IPV6_ADDR: 16,
    IdType.IPV6_ADDR_SUBNET: 32,
    IdType.IPV6_ADDR_RANGE: 32,
}
_SUBNETS = (IdType.IPV4_ADDR_SUBNET, IdType.IPV6_ADDR_SUBNET)


def encode(selector: TrafficSelector) -> Identification:
    """A selector as an identity; one of several ports cannot be said, and becomes all of them."""
    four = selector.version == 4
    networks = list(selector.networks())
    data = selector.low.packed + selector.high.packed
    kind = IdType.IPV4_ADDR_RANGE if four else IdType.IPV6_ADDR_RANGE
    if selector.single:
        kind, data = (IdType.IPV4_ADDR if four else IdType.IPV6_ADDR), selector.low.packed
    elif len(networks) == 1:
        kind = IdType.IPV4_ADDR_SUBNET if four else IdType.IPV6_ADDR_SUBNET
        data = networks[0].network_address.packed + networks[0].netmask.packed
    first, last = selector.ports
    return Identification(
        type=kind, protocol=selector.protocol, port=first if first == last else 0, data=data
    )


def decode(payload: Identification) -> TrafficSelector:
    """A selector out of an identity. Raises `Malformed`, and `Refused` for a type that is no address."""
    size = _SIZES.get(payload.type)  # type: ignore[call-overload]
    if size is None:
        raise Refused(
            N.INVALID_ID_INFORMATION, f"the peer names traffic by an identity of type {payload.type}"
        )
    if len(payload.data) != size:
        raise Malformed(f"an identity of {len(payload.data)} octets")
    ports = (payload.port, payload.port) if payload.port else ANY_PORT
    if payload.type in (IdType.IPV4_ADDR, IdType.IPV6_ADDR):
        return TrafficSelector.of(ip_address(payload.data), payload.protocol, ports)
    one, other = ip_address(payload.data[: size // 2]), ip_address(payload.data[size // 2 :])
    if payload.type in _SUBNETS:
        make = IPv4Network if one.version == 4 else IPv6Network
        try:
            return TrafficSelector.of(make(f"{one}/{_length(other)}", strict=False), payload.protocol, ports)
        except ValueError as error:
            raise Malformed(f"no prefix: {one} with {other}") from error
    if int(one) > int(other):
        raise Malformed("a range that ends before it starts")
    return TrafficSelector(one, other, payload.protocol, ports)


def _length(mask: Address) -> int:
    """Bits of a prefix by its mask; raises `ValueError` for a mask with holes."""
    width = mask.max_prefixlen
    length = width - (~int(mask) & ((1 << width) - 1)).bit_length()
    if int(mask) != ((1 << length) - 1) << (width - length):
        raise ValueError("a mask with holes")
    return length


def wanted(selector: Selector, acquire: Acquire | None) -> tuple[TrafficSelector, TrafficSelector]:
    """What we ask for: of a rule's selectors those that cover the packet, else the first. A range of ports
    cannot be asked for, but the packet's port can."""
    local, remote = selector.local, selector.remote
    ends: list[tuple[TrafficSelector, int | None]] = [(local[0], None), (remote[0], None)]
    if acquire is not None:
        ends = [
            (_covering(local, acquire.source, acquire.protocol, acquire.source_port), acquire.source_port),
            (
                _covering(remote, acquire.destination, acquire.protocol, acquire.destination_port),
                acquire.destination_port,
            ),
        ]
    made = []
    for one, port in ends:
        first, last = one.ports
        if one.ports != ANY_PORT and first != last:
            if port is None:
                raise Refused(
                    0,
                    f"IKEv1 cannot ask for the ports {first} to {last} at once",
                    "a packet starts a negotiation for its own port; or give the rule one port",
                )
            one = replace(one, ports=(port, port))
        made.append(one)
    return made[0], made[1]


def _covering(
    selectors: tuple[TrafficSelector, ...], address: Address, protocol: int, port: int | None
) -> TrafficSelector:
    """The first that covers one end of a packet, else the first."""
    return next((one for one in selectors if one.matches(address, protocol, port)), selectors[0])


def fitting(own: Selector, local: TrafficSelector, remote: TrafficSelector) -> Selector | None:
    """The selector when a rule covers all that the peer asks for: quick mode cannot narrow."""
    inside = any(one.covers(local) for one in own.local) and any(one.covers(remote) for one in own.remote)
    return Selector((local,), (remote,)) if inside else None
