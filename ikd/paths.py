"""Between which addresses to negotiate for a rule, and why that may not be possible."""

from __future__ import annotations

from collections.abc import Callable

from ikd.events import NegotiationFailed
from policy.rules import Rule
from sadb.address import Address, Path, SocketAddress
from sadb.sa import Acquire, Mode

SourceFor = Callable[[Address], Address | None]


class NoPath(Exception):
    """There is nobody to negotiate with, or no way there; `remedy` says what to do."""

    def __init__(self, reason: str, remedy: str, peer: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.peer = peer

    def event(self, rule: Rule) -> NegotiationFailed:
        """For the log and `ikctl why`."""
        return NegotiationFailed(
            ike=0,
            rule=rule.name,
            peer=self.peer,
            initiator=True,
            stage="",
            notify="",
            reason=str(self),
            remedy=self.remedy,
        )


def path_for(rule: Rule, acquire: Acquire | None, port: int, source_for: SourceFor) -> Path:
    """The path of a rule's main mode: a tunnel's ends, or those of the packet or of the only peer it covers.
    Raises `NoPath`."""
    tunnel = rule.tunnel if rule.mode is Mode.TUNNEL else None
    if tunnel is not None:
        local, peer = tunnel.local, tunnel.remote
        if tunnel.unresolved:
            raise NoPath(
                f"the name {tunnel.remote_host} has no address",
                "correct tunnel.remote, or find out why the name server does not know it",
            )
        if peer is None:
            raise NoPath("the rule's tunnel has any remote end: it only answers", "start it at the other end")
    elif acquire is not None:
        local, peer = acquire.source, acquire.destination
    else:
        local, peer = _only(rule, local=True), _only(rule, local=False)
        if peer is None:
            raise NoPath(
                "the rule covers more than one peer",
                "send a packet to the one that is meant: it starts the negotiation",
            )
    local = local or source_for(peer)
    if local is None:
        raise NoPath(f"there is no route to {peer}", "look at the routing table", str(peer))
    if local.version != peer.version:
        raise NoPath(f"{local} and {peer} are of different IP versions", "correct the rule", str(peer))
    return Path(SocketAddress(local, port), SocketAddress(peer, port))


def _only(rule: Rule, *, local: bool) -> Address | None:
    """The one address a side of the rule has, None when it has more."""
    side = rule.selector.local if local else rule.selector.remote
    addresses = {one.low for one in side}
    return addresses.pop() if len(addresses) == 1 and all(one.single for one in side) else None
