"""What the requests answer about SAs, peers and failures, as plain JSON; rules are in `control.rule_views`.

Names and units are those of docs/control.md; `control.render` turns the same values into text. Nothing
here changes anything, and no key material comes near.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from shlex import quote
from typing import TYPE_CHECKING

from ikd import __version__
from ikd.auth import Authenticated, Identity
from ikd.control.failures import Failure
from ikd.control.protocol import Json, hyphened, plain, stamp
from ikd.events import Event, NegotiationFailed
from ikd.riders import vendor
from policy.engine import Changes
from sadb.address import Address
from sadb.sa import SaPair, Usage

if TYPE_CHECKING:
    from ikd.association import Association

RECENT = 24 * 3600.0  # how long a failure is worth a line in `ikctl status`

_DOWN = ("failed", "connecting", "closed")

UsageOf = Mapping[int, tuple[Usage, Usage]]  # by inbound SPI


def spi(number: int) -> str:
    """An SPI as people and other tools write it."""
    return f"{number:08x}"


def event_line(event: Event, posix: float) -> Json:
    """An event as a line of the control socket, with the time it happened at."""
    kind = type(event)
    line = {"event": hyphened(kind.__name__), "time": stamp(posix), "group": kind.group}
    values = {one.name: plain(getattr(event, one.name)) for one in fields(event)}
    return line | values | {"text": event.text}


# Security associations -----------------------------------------------------------------------------------


def peer_name(association: Association | None, address: Address) -> str:
    """Whom we speak to: the proven identity, else the address."""
    proven = association.peer if association else None
    return str(proven.identity) if proven and not proven.anonymous else str(address)


def _identity(peer: Authenticated | None) -> str:
    if peer is None:
        return ""
    return peer.description if peer.anonymous else str(peer.identity)


def second(peer: Authenticated | None, user: Authenticated | None) -> dict[str, Json]:
    """What the second authentication has proven: a user, or with `health` and no user the machine's own
    condition, which the certificate of the first may prove as well."""
    if user is not None and user.anonymous:  # it was optional
        user = None
    vouches = user is not None and user.health and not user.method.startswith("user-")
    return {
        "user": _bare(user.identity) if user and not vouches else "",
        "user_method": user.method if user else "",
        "user_proof": user.description if user else "",
        "groups": list(user.groups) if user else [],
        "health": any(one.health for one in (peer, user) if one),
    }


def _bare(identity: Identity) -> str:
    """A user as rules list it: nobody claims users, so that the form of the name needs no telling."""
    return str(identity).removeprefix("principal:")


def association(one: Association, pairs: Iterable[SaPair], now: float) -> Json:
    """One IKE SA."""
    rules = dict.fromkeys([one.rule] if one.rule else [])
    rules |= dict.fromkeys(pair.rule for pair in pairs)
    return {
        "id": one.number,
        "rules": list(rules),
        "peer": peer_name(one, one.path.peer.address),
        "peer_address": str(one.path.peer.address),
        "peer_port": one.path.peer.port,
        "local_address": str(one.path.local.address),
        "local_port": one.path.local.port,
        "local": str(one.local_identity) if one.local_identity else "",
        "keying": one.main.keying,
        "state": plain(one.state),
        "waiting": one.waiting,
        "role": "initiator" if one.initiator else "responder",
        "authenticated_as": _identity(one.peer),
        "method": one.peer.method if one.peer else "",
        "proof": one.peer.description if one.peer else "",
        **second(one.peer, one.main.user),
        "suite": str(one.suite) if one.suite else "",
        "age": round(now - one.created, 3),
        "rekey_in": _left(one.rekey_at, now),
        "nat": one.nat,
        "mobile": one.mobile,
        "also_at": [str(address) for address in one.also_at],
        "stranded": one.main.stranded,
        "vendor_ids": list(vendor.names(one.main.vendors)),
        "spi_i": one.spi_i.hex(),
        "spi_r": one.spi_r.hex(),
    }


def no_way(associations: Iterable[Association]) -> list[str]:
    """A sentence for each peer to which this host has no way now."""
    lost = dict.fromkeys(
        (peer_name(one, one.path.peer.address), str(one.path.peer.address))
        for one in associations
        if one.main.stranded
    )
    return [
        f"there is no way to {name} at {address}: its SAs wait until there is one" for name, address in lost
    ]


def child(pair: SaPair, owner: Association | None, usage: tuple[Usage, Usage], now: float) -> Json:
    """One Child SA."""
    into, out = usage
    inbound, outbound = pair.inbound, pair.outbound
    return {
        "spi_in": spi(inbound.spi),
        "spi_out": spi(outbound.spi),
        "rule": pair.rule,
        "ike": pair.owner,
        "peer": peer_name(owner, pair.peer),
        "peer_address": str(pair.peer),
        "local_address": str(outbound.source),
        "state": inbound.state.value,
        "mode": pair.mode.value,
        "protocol": outbound.suite.protocol.value,
        "suite": str(outbound.suite),
        "esn": outbound.suite.esn,
        "encapsulation": list(outbound.encapsulation) if outbound.encapsulation else None,
        "local": [str(one) for one in pair.selector.local],
        "remote": [str(one) for one in pair.selector.remote],
        "octets_in": into.octets,
        "octets_out": out.octets,
        "packets_in": into.packets,
        "packets_out": out.packets,
        "idle": round(now - max(into.last or pair.created, out.last or pair.created), 3),
        "age": round(now - pair.created, 3),
        "rekey_in": _left(_soonest(pair, hard=False), now),
        "expires_in": _left(_soonest(pair, hard=True), now),
    }


def _soonest(pair: SaPair, *, hard: bool) -> float | None:
    lives = (pair.inbound.lifetime, pair.outbound.lifetime)
    limits = [one.hard_seconds if hard else one.soft_seconds for one in lives]
    return min((pair.created + limit for limit in limits if limit is not None), default=None)


def _left(moment: float | None, now: float) -> float | None:
    return None if moment is None else round(max(0.0, moment - now), 3)


# Status --------------------------------------------------------------------------------------------------


def peer(
    one: Association,
    pairs: Collection[SaPair],
    usage: UsageOf,
    carrier: Callable[[Collection[SaPair]], str],
    now: float,
) -> Json:
    """A peer's line in the status: one IKE SA with its Child SAs."""
    rules = dict.fromkeys(pair.rule for pair in pairs) or dict.fromkeys([one.rule] if one.rule else [])
    used = [usage[pair.inbound.spi] for pair in pairs if pair.inbound.spi in usage]
    return {
        "id": one.number,
        "peer": peer_name(one, one.path.peer.address),
        "peer_address": str(one.path.peer.address),
        "rules": list(rules),
        "keying": one.main.keying,
        "state": plain(one.state),
        "waiting": one.waiting,
        "authenticated_as": one.peer.description if one.peer else "",
        **second(one.peer, one.main.user),
        "age": round(now - one.created, 3),
        "octets_in": sum(into.octets for into, _ in used),
        "octets_out": sum(out.octets for _, out in used),
        "quick": len(pairs),
        "plane": carrier(pairs) if pairs else "-",
        "reason": "",
    }


def failed_peer(one: Failure, now: float) -> Json:
    """The line of a peer that has no SA because negotiating with it failed."""
    event = one.event
    return {
        "id": event.ike,
        "peer": one.identity or event.peer or "-",
        "peer_address": event.peer,
        "rules": [event.rule] if event.rule else [],
        "keying": event.keying,
        "state": "failed",
        "waiting": "",
        "authenticated_as": "",
        **second(None, None),
        "age": round(now - one.last, 3),
        "octets_in": 0,
        "octets_out": 0,
        "quick": 0,
        "plane": "-",
        "reason": f"{event.reason}, see: ikctl why {quote(_whose(event))}",
    }


def wrong(failures: Iterable[Failure], now: float) -> list[str]:
    """A sentence for each failure that has not been mended and is not old."""
    recent = [one.event for one in failures if one.mended is None and now - one.last < RECENT]
    return [f"{_whose(event)}: {event.reason}; see: ikctl why {quote(_whose(event))}" for event in recent]


def _whose(event: NegotiationFailed) -> str:
    return event.rule or event.peer


def status(*, up: float, engine: str, quick: int, peers: list[Json], sentences: Iterable[str]) -> Json:
    """The whole of it."""
    return {
        "version": __version__,
        "up": round(up, 3),
        "engine": engine,
        "peers_up": len({(one["peer"], one["peer_address"]) for one in peers if one["state"] not in _DOWN}),
        "quick": quick,
        "peers": peers,
        "wrong": list(dict.fromkeys(sentences)),
    }


# Failures ------------------------------------------------------------------------------------------------


def why(failures: Iterable[Failure], name: str, now: float, under_way: Iterable[Json] = ()) -> Json:
    """What failed, the latest first, and what has no end yet."""
    return {
        "about": f" for {name}" if name else "",
        "under_way": [
            {key: one[key] for key in ("rules", "peer", "peer_address", "waiting", "age")}
            for one in under_way
        ],
        "failures": [failure(one, now) for one in failures],
    }


def failure(one: Failure, now: float) -> Json:
    """One failure with both sides' comparison."""
    event, comparison = one.event, one.event.comparison
    return {
        "rule": event.rule,
        "peer": event.peer,
        "identity": one.identity,
        "initiator": event.initiator,
        "stage": event.stage,
        "notify": event.notify,
        "reason": event.reason,
        "remedy": event.remedy,
        "ago": round(now - one.last, 3),
        "first_ago": round(now - one.first, 3),
        "times": one.times,
        "mended_ago": None if one.mended is None else round(now - one.mended, 3),
        "ours_title": comparison.ours_title if comparison else "",
        "theirs_title": comparison.theirs_title if comparison else "",
        "rows": [plain(row) for row in comparison.rows] if comparison else [],
    }


# Reload ---------------------------------------------------------------------------------------------------


def changes(
    difference: Changes, pairs: Iterable[SaPair], warnings: Iterable[str], *, rules: int, dry_run: bool
) -> Json:
    """What a reload did or would do."""
    ended = frozenset(difference.changed + difference.removed)
    return {
        "dry_run": dry_run,
        "rules": rules,
        "added": list(difference.added),
        "changed": list(difference.changed),
        "removed": list(difference.removed),
        "touched": [{"id": spi(pair.inbound.spi), "rule": pair.rule} for pair in pairs if pair.rule in ended],
        "warnings": list(warnings),
    }
