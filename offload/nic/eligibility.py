"""Why an SA, or one packet of it, is not the adapter's.

`Reason` is in the order in which reasons are checked, and the first that holds is told: what the
administrator said, then what the SA is, then what the table has room for. Its values are the labels of
counters. What depends on the SA alone is checked by `ineligible`, what depends on the packet by `unfit`; the
reasons in between, from `cold` to `refused`, are `offload.switch.placement`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from offload.ip import FRAGMENT, insertion, whole
from offload.nic.capabilities import Capabilities, Direction, Transform, UdpShape
from sadb.address import Address, unspecified
from sadb.sa import Mode, SecurityAssociation, State

_DESTINATION_OPTIONS: Final = 60


class Reason(Enum):
    """Why something is left to software; `text` is the sentence for operators."""

    text: str

    OFF = "off", "Offload is off: in the rule, on the adapter, or by a limit of 0 on the port."
    LINK = "link", "The adapter's link is down, or the adapter is resetting."
    TRUST = "trust", "The port is not trusted to program outbound SAs."
    PROTOCOL = "protocol", "The adapter does not carry this protocol."
    TRANSFORM = "transform", "The adapter does not know the algorithm or its key length; AES-128-GCM it does."
    ICV = "icv", "The adapter knows the algorithm, but not with an integrity check value of this length."
    MODE = "mode", "The adapter does not carry this mode; transport mode it does."
    ENCAP = "encap", "The SA is encapsulated in UDP (NAT traversal), which the adapter does not understand."
    ESN = "esn", "The SA has extended sequence numbers, which the adapter does not understand."
    FAMILY = "family", "The adapter does not carry IPv6."
    ADDRESS = "address", "The inbound destination is a wildcard, a multicast or a management address."
    AGEING = "ageing", "The SA is about to be replaced; its successor is placed instead."
    COLD = "cold", "The table is full and the SA has too little traffic to contend for a slot."
    PORT_LIMIT = "port_limit", "The port has as many SAs offloaded as its limit allows."
    ADDRESSES_FULL = (
        "addresses_full",
        "The adapter has no free entry for another inbound destination address.",
    )
    SLOTS_FULL = "slots_full", "The table is full, and no SA in it has to make room for this one."
    REFUSED = "refused", "The adapter refused the SA, or asked to be relieved of it; it is tried again later."
    OPTIONS = "options", "The packet has IPv4 options."
    EXTENSIONS = "extensions", "The packet has IPv6 extension headers."
    FRAGMENT = "fragment", "The packet is a fragment."
    OVERSIZE = "oversize", "The packet is larger than the link takes, and the adapter does not segment it."

    def __new__(cls, label: str, text: str) -> Reason:
        """The label is the value; the sentence an attribute."""
        one = object.__new__(cls)
        one._value_ = label
        one.text = text
        return one


# SAs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What, besides the SA, decides about it. `wished`: the rule's `offload`; `enabled`: adapter, switch
    and the limit of its port; `trusted`: the port; `up`: the link; `managed`: addresses that a management
    controller filters on."""

    capabilities: Capabilities
    wished: bool = True
    enabled: bool = True
    trusted: bool = True
    up: bool = True
    managed: frozenset[Address] = frozenset()


def direction(sa: SecurityAssociation) -> Direction:
    """Which way an SA carries."""
    return Direction.INBOUND if sa.inbound else Direction.OUTBOUND


def ineligible(sa: SecurityAssociation, at: Circumstances) -> Reason | None:
    """The first reason that holds, whatever room there is in the table; None for an SA that may be placed.
    SAs nested in each other, which the adapter would have to take together, are not in the SADB."""
    return next((reason for reason, holds in _STATIC if holds(sa, at)), None)


def _transform(sa: SecurityAssociation, at: Circumstances) -> bool:
    """Neither at this nor at any other length of the ICV."""
    wanted = Transform.of(sa.suite)
    known = {(one.algorithm, one.key_bits) for one in at.capabilities.transforms}
    return wanted is None or (wanted.algorithm, wanted.key_bits) not in known


def _mode(sa: SecurityAssociation, at: Circumstances) -> bool:
    able = {Mode.TRANSPORT: at.capabilities.transport, Mode.TUNNEL: at.capabilities.tunnel}
    return not able[sa.mode]


def _encap(sa: SecurityAssociation, at: Circumstances) -> bool:
    shape = UdpShape.TUNNEL if sa.mode is Mode.TUNNEL else UdpShape.TRANSPORT
    return sa.encapsulation is not None and shape not in at.capabilities.udp_encap


def _address(sa: SecurityAssociation, at: Circumstances) -> bool:
    to = sa.destination
    return sa.inbound and (unspecified(to) or to.is_multicast or to in at.managed)


_STATIC: Final[tuple[tuple[Reason, Callable[[SecurityAssociation, Circumstances], bool]], ...]] = (
    (Reason.OFF, lambda sa, at: not (at.wished and at.enabled)),
    (Reason.LINK, lambda sa, at: not at.up),
    (Reason.TRUST, lambda sa, at: not (sa.inbound or at.trusted)),
    (Reason.PROTOCOL, lambda sa, at: sa.suite.protocol not in at.capabilities.protocols),
    (Reason.TRANSFORM, _transform),
    (Reason.ICV, lambda sa, at: Transform.of(sa.suite) not in at.capabilities.transforms),
    (Reason.MODE, _mode),
    (Reason.ENCAP, _encap),
    (Reason.ESN, lambda sa, at: sa.suite.esn and not at.capabilities.esn),
    (Reason.FAMILY, lambda sa, at: sa.destination.version == 6 and not at.capabilities.ipv6),
    (Reason.ADDRESS, _address),
    (Reason.AGEING, lambda sa, at: sa.state is not State.MATURE),
)


# Packets ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a packet's outer IP header matters: its length in octets with all that follows, and what it
    has besides the plain header."""

    octets: int
    options: bool = False
    extensions: bool = False
    fragment: bool = False

    @classmethod
    def of(cls, packet: bytes) -> Shape:
        """The shape of an IP packet; raises `Dropped` for what is none."""
        packet = whole(packet)
        at, _, protocol = insertion(packet)
        if packet[0] >> 4 == 4:
            return cls(len(packet), options=at > 20, fragment=bool(packet[6] & 0x3F or packet[7]))
        extended = at > 40 or protocol in (FRAGMENT, _DESTINATION_OPTIONS)
        return cls(len(packet), extensions=extended, fragment=protocol == FRAGMENT)


def unfit(shape: Shape, mode: Mode, mtu: int, capabilities: Capabilities) -> Reason | None:
    """Why one packet of a placed SA goes to software all the same, None when it need not. `mtu`: octets that
    the link takes in one IP packet; tunnel packets are never segmented by the adapter."""
    segments = capabilities.lso and mode is Mode.TRANSPORT
    checks = (
        (Reason.OPTIONS, shape.options and not capabilities.ipv4_options),
        (Reason.EXTENSIONS, shape.extensions and not capabilities.ipv6_extensions),
        (Reason.FRAGMENT, shape.fragment),
        (Reason.OVERSIZE, shape.octets > mtu and not segments),
    )
    return next((reason for reason, holds in checks if holds), None)
