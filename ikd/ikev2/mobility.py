"""What an IKE SA knows about moving (MOBIKE, RFC 4555), and which paths there are.

One `Mobility` per IKE SA and its successors; without one the peer cannot move, or we do not want to. The
exchanges are in `ikd.ikev2.mobike`; `ikd.ikev2.moves` decides when they begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ikd.keying import MainMode
from ikd.wire.codec import Malformed
from sadb.address import Address, Path, SocketAddress

MOST_TOLD: Final = 8  # addresses of ours that a peer is told
MOST_HEARD: Final = 16  # addresses of a peer that are remembered
MOST_REFUSED: Final = 64  # paths that a peer does not want, until there is no sense in it any more
SEARCH: Final = 3  # the transmission from which on a request goes every way there is
PATIENCE: Final = 300.0  # seconds for which a peer that only it can call is asked (section 3.11)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the Child SAs go, and whether a NAT is on that path."""

    path: Path
    nat_local: bool
    nat_peer: bool


@dataclass(slots=True)
class Mobility:
    """The state of an IKE SA that may move. `initiator` tells who began the first of its line: that side
    decides on the path, whoever rekeys (section 2.1)."""

    initiator: bool
    trusted: Place  # the path that Child SAs take: the peer has answered there, or our own end alone is new
    agreed: Path  # the last path that the peer has agreed to
    addresses: tuple[Address, ...] = ()  # where the peer can be reached, too, by its own word
    ways: Mapping[Address, Address] = field(default_factory=dict)  # to all of its addresses, when last asked
    told: tuple[Address, ...] | None = None  # what the peer knows of our addresses; None: nothing yet
    seen: bytes = b""  # how the peer saw us when it last told: a digest that names no address
    refused: set[Path] = field(default_factory=set)  # paths the peer does not want
    pending: bool = False  # the peer has to hear of our path (the RFC's pending_update)
    stale: bool = False  # the peer has other addresses than those that `ways` lead to
    asking: bool = False  # an exchange about addresses is under way
    spread: bool = False  # its request went to several addresses, so that who answers may be at any of them


def usable(address: Address) -> bool:
    """Whether an address may be that of a peer somewhere else."""
    return not (
        address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local
    )


def additional(session: MainMode) -> tuple[Address, ...]:
    """Our addresses besides the one in use, for the peer to try (section 3.4). Those inside the tunnel are no
    end of it, unless it takes in all."""
    network, here = session.env.network, session.path.local.address
    inside = session.rule.selector.local if session.rule else ()
    if any(one.has_address(here) for one in inside):
        inside = ()
    known = sorted(network.addresses if network else (), key=lambda one: (one.version, int(one)))
    found = (
        one
        for one in known
        if one != here and usable(one) and not any(selector.has_address(one) for selector in inside)
    )
    return tuple(one for _, one in zip(range(MOST_TOLD), found, strict=False))


def unpacked(data: bytes, size: int) -> Address:
    """The address in an ADDITIONAL_*_ADDRESS notify of a family with addresses of `size` octets; raises
    `Malformed`."""
    if len(data) != size:
        raise Malformed(f"an additional address of {len(data)} octets")
    return IPv4Address(data) if size == 4 else IPv6Address(data)


def candidates(session: MainMode, mobility: Mobility) -> Iterator[Path]:
    """The paths there are now, the one to be preferred first. Who decides on the path has all combinations of
    a way out and an address of the peer; the other side goes where it was told and where it was before, and
    has the others for when there is no way there."""
    network, path = session.env.network, session.path
    if network is None:
        yield path
        return
    known = [path.peer.address, mobility.trusted.path.peer.address]
    if mobility.initiator:
        known = [mobility.agreed.peer.address, *known, *mobility.addresses]
    found = list(_to(session, mobility, known)) or list(_to(session, mobility, mobility.addresses))
    yield from (one for one in found if one not in mobility.refused)
    for former in (mobility.trusted.path, mobility.agreed):
        reached = network.ways.get(former.peer.address, former.local.address) is not None
        if reached and former.local.address in network.addresses and former not in mobility.refused:
            yield former


def _to(session: MainMode, mobility: Mobility, peers: Iterable[Address]) -> Iterator[Path]:
    """The ways to some addresses."""
    for peer in dict.fromkeys(peers):
        local = _local(session, mobility, peer)
        if local is not None:
            yield _between(session, local, peer)


def waits(session: MainMode, mobility: Mobility) -> bool:
    """Whether nothing has come of leaving the path that the peer has agreed to, because there is no way to
    that address of its any more: it may come back."""
    astray = mobility.initiator and session.path != mobility.agreed
    return astray and bool(mobility.ways) and mobility.agreed.peer.address not in mobility.ways


def _local(session: MainMode, mobility: Mobility, peer: Address) -> Address | None:
    """From where to speak to an address of the peer: from the end that the rule names, if we have it; as the
    side that does not decide, from where we are; else from where the route leads."""
    network, path = session.env.network, session.path
    assert network is not None
    here = path.local.address if peer == path.peer.address else None  # it has moved there since we asked
    way = network.ways.get(peer, mobility.ways.get(peer, here))
    if way is None:
        return None
    wanted = session.own_end
    if wanted is None and not mobility.initiator:
        wanted = path.local.address
    return wanted if wanted in network.addresses and wanted.version == peer.version else way


def _between(session: MainMode, local: Address, peer: Address) -> Path:
    """The path between two addresses, with the ports that are known or usual."""
    path, settings = session.path, session.env.settings
    port = path.peer.port
    if peer != path.peer.address and path.local.port == settings.nat_port:
        port = settings.nat_port
    return Path(SocketAddress(local, path.local.port), SocketAddress(peer, port))
