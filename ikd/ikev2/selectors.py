"""Traffic selectors in TS payloads: RFC 7296 sections 2.9, 2.23.1 and 3.13."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ikd.ikev2.payloads import SelectorRange
from ikd.wire.codec import Malformed
from policy.rules import Rule
from sadb.address import Address, Path
from sadb.sa import Acquire
from sadb.selector import ANY_PORT, Selector, TrafficSelector, narrow

MOST = 255  # the count in a TS payload is one octet


def encode(selectors: Sequence[TrafficSelector]) -> tuple[SelectorRange, ...]:
    """As they go into a payload."""
    return tuple(map(SelectorRange.of, selectors[:MOST]))


def decode(ranges: Iterable[SelectorRange]) -> tuple[TrafficSelector, ...]:
    """Out of a payload; types we do not know are left out. Raises `Malformed`, also when nothing is left."""
    found = tuple(selector for one in ranges if (selector := one.selector()) is not None)
    if not found:
        raise Malformed("no traffic selector that we know")
    return found


def narrowed(
    offered: Sequence[TrafficSelector], allowed: Sequence[TrafficSelector]
) -> tuple[TrafficSelector, ...]:
    """What of the offered selectors is allowed, without those that another one covers."""
    found = narrow(offered, allowed)
    return tuple(
        one
        for n, one in enumerate(found)
        if not any(other.covers(one) and (other != one or m < n) for m, other in enumerate(found) if m != n)
    )


def narrowed_to_rule(rule: Rule, selector: Selector) -> Selector:
    """A pair's selectors within its rule, which may have changed since; the rule's own when nothing is
    left."""
    local = narrowed(selector.local, rule.selector.local)
    remote = narrowed(selector.remote, rule.selector.remote)
    return Selector(local, remote) if local and remote else rule.selector


def wanted(rule: Rule, path: Path, acquire: Acquire | None) -> Selector:
    """What we ask for: the rule's selectors and in front of them those of the packet that started it, by
    which the responder sees which part matters when it has to narrow (section 2.9)."""
    whole = rule.between(path.local.address, path.peer.address)
    if acquire is None:
        return whole
    ends = (
        (acquire.source, acquire.source_port, whole.local),
        (acquire.destination, acquire.destination_port, whole.remote),
    )
    made = []
    for address, port, allowed in ends:
        ports = ANY_PORT if port is None else (port, port)
        packet = narrow([TrafficSelector.of(address, acquire.protocol, ports)], allowed)
        made.append(tuple(dict.fromkeys((*packet[:1], *allowed))))
    return Selector(*made)


def moved(selectors: Sequence[TrafficSelector], address: Address) -> tuple[TrafficSelector, ...]:
    """The same with another address, in transport mode through a NAT; only single addresses of its version
    are moved."""
    return tuple(
        replace(one, low=address, high=address) if one.single and one.version == address.version else one
        for one in selectors
    )


def shown(local: Sequence[TrafficSelector], remote: Sequence[TrafficSelector]) -> str:
    """Both sides for people."""
    return str(Selector(tuple(local), tuple(remote)))
