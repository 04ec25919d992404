"""What quick modes of IKEv1 and AuthIP have in common: what a rule offers, what a peer may have, original
addresses behind a NAT (RFC 2407 section 4.5, RFC 3947 section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ikd.isakmp import identities
from ikd.isakmp.message import Contents, Refused
from ikd.isakmp.numbers import IdType, N, Traversal
from ikd.isakmp.payloads import (
    Identification,
    KeyExchange,
    NatOriginalAddress,
    NatOriginalAddressDraft,
    SecurityAssociation,
)
from ikd.isakmp.proposals import Life, QuickChoice, choose_quick, compare_quick, together
from ikd.isakmp.session import IsakmpSession
from ikd.keying import SOFT
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Payload
from policy.rules import Rule
from sadb.address import Address
from sadb.algorithms import Group, QuickSuite
from sadb.crypto import BadPublic
from sadb.crypto import KeyExchange as DiffieHellman
from sadb.sa import Lifetime, Mode, SaPair
from sadb.selector import Selector, TrafficSelector

LEAST_SECONDS = 10
LEAST_KILOBYTES = 1024
_ORIGINAL = {
    Traversal.RFC_3947: NatOriginalAddress,
    Traversal.DRAFT_02: NatOriginalAddressDraft,
}


def agree(exchange: DiffieHellman, public: bytes) -> bytes:
    """The shared secret; raises `Malformed` for a value that is not in the group, or is our own: HASH_I would
    be HASH_R in phase 1 of IKEv1."""
    if public == exchange.public:
        raise Malformed("our own public value, sent back")
    try:
        return exchange.agree(public)
    except BadPublic as error:
        raise Malformed(str(error)) from error


def suites_of(rule: Rule) -> tuple[QuickSuite, ...]:
    """What one quick mode can offer of a rule; with guaranteed encryption what encrypts."""
    suites = rule.crypto.quick if rule.crypto else ()
    if rule.encrypt:
        suites = tuple(one for one in suites if one.encryption and one.encryption.encrypts)
    return together(replace(one, esn=False) for one in suites)


def _groups(rule: Rule) -> tuple[Group, ...]:
    return tuple(dict.fromkeys(suite.group for suite in rule.crypto.main)) if rule.crypto else ()


def life_of(rule: Rule) -> Life:
    """Seconds and kilobytes of a rule's quick-mode SAs."""
    life = rule.crypto.lifetime if rule.crypto else None
    if life is None:
        return Life()
    seconds = None if life.quick_seconds is None else int(life.quick_seconds)
    return Life(seconds, None if life.quick_octets is None else life.quick_octets // 1024)


def shorter(own: Life, theirs: Life) -> Life:
    """What of our limits is below what the other end proposes; None where it is not."""
    seconds = kilobytes = None
    if own.seconds and (theirs.seconds is None or own.seconds < theirs.seconds):
        seconds = own.seconds
    if own.kilobytes and (theirs.kilobytes is None or own.kilobytes < theirs.kilobytes):
        kilobytes = own.kilobytes
    return Life(seconds, kilobytes)


def limit(pair: SaPair, life: Life) -> None:
    """Set the limits of a pair when the other end wants shorter ones, but not less than `LEAST_SECONDS` and
    `LEAST_KILOBYTES`: it would have us negotiate without a pause, and may do so itself."""
    lifetime: Lifetime = pair.inbound.lifetime
    if life.seconds is not None:
        seconds = float(max(life.seconds, LEAST_SECONDS))
        if lifetime.hard_seconds is None or seconds < lifetime.hard_seconds:
            lifetime = replace(lifetime, hard_seconds=seconds, soft_seconds=seconds * SOFT)
    if life.kilobytes is not None:
        octets = max(life.kilobytes, LEAST_KILOBYTES) * 1024
        if lifetime.hard_octets is None or octets < lifetime.hard_octets:
            lifetime = replace(lifetime, hard_octets=octets, soft_octets=int(octets * SOFT))
    pair.inbound.lifetime = pair.outbound.lifetime = lifetime


def original_addresses(session: IsakmpSession, mode: Mode) -> list[Payload]:
    """NAT-OA of both ends in transport mode: what the checksums of packets were computed with (RFC 3947
    section 5.2; MS-IKEE has it sent whenever the sender is behind a NAT)."""
    made = _ORIGINAL.get(session.traversal)
    if made is None or mode is Mode.TUNNEL or not session.nat:
        return []
    path = session.path
    ends = (path.local.address, path.peer.address)
    initiator_first = ends if session.initiator else ends[::-1]
    return [made(type=_address_type(one), address=one.packed) for one in initiator_first]


def _address_type(address: Address) -> int:
    return IdType.IPV4_ADDR if address.version == 4 else IdType.IPV6_ADDR


def same(session: IsakmpSession, reply: Contents, asked: tuple[TrafficSelector, TrafficSelector]) -> None:
    """The responder has to say the same identities (RFC 2409 section 5.5); behind a NAT addresses may
    differ. Raises `Refused`."""
    found = list(reply.every(Identification))
    answered = tuple(identities.decode(one) for one in found[:2])
    if answered and answered != asked and not session.nat:
        raise Refused(
            N.INVALID_ID_INFORMATION,
            f"the peer answered with {_listed(answered)}, we asked for {_listed(asked)}",
            "`local` and `remote` of both hosts' rules must mirror each other",
        )


def _listed(selectors: Iterable[TrafficSelector]) -> str:
    return " and ".join(map(str, selectors))


def asked_for(session: IsakmpSession, request: Contents) -> tuple[TrafficSelector, TrafficSelector]:
    """Our traffic and the peer's that a request is about; without identities the hosts themselves."""
    found = list(request.every(Identification))
    if len(found) == 2:
        return identities.decode(found[1]), identities.decode(found[0])
    path = session.ends
    return TrafficSelector.of(path.local.address), TrafficSelector.of(path.peer.address)


def covering(
    session: IsakmpSession, rule: Rule, asked: tuple[TrafficSelector, TrafficSelector]
) -> Selector | None:
    """The selector that a rule grants for what is asked for, None when it does not cover that."""
    path = session.ends
    local, remote = asked
    if rule.mode is Mode.TRANSPORT and session.nat:  # the addresses packets really have (RFC 3947 section 5)
        if session.nat_peer and remote.single:
            remote = replace(remote, low=path.peer.address, high=path.peer.address)
        if session.nat_local and local.single:
            local = replace(local, low=path.local.address, high=path.local.address)
    return identities.fitting(rule.between(path.local.address, path.peer.address), local, remote)


def accept(
    session: IsakmpSession,
    request: Contents,
    admitted: Callable[[Rule], bool],
    suites: Callable[[Rule], tuple[QuickSuite, ...]] = suites_of,
) -> tuple[Rule, QuickChoice, Selector, Mode]:
    """Which rule, suite and selector a request gets; raises `Refused`. `admitted` tells which rules the peer
    may use, `suites` what may be chosen for a rule."""
    asked = asked_for(session, request)
    rules = [one for one in session.rules() if session.serves(one) and admitted(one)]
    payload = request.one(SecurityAssociation)
    pfs = request.maybe(KeyExchange) is not None
    covered = []
    for rule in rules:
        selector = covering(session, rule, asked)
        if selector is None:
            continue
        covered.append(rule)
        encapsulation = session.encapsulation(rule.mode)
        choice = choose_quick(payload, suites(rule), (encapsulation,), _groups(rule), pfs=pfs)
        if choice is not None:
            return rule, choice, selector, rule.mode
    if covered:
        rule = covered[0]
        encapsulation = session.encapsulation(rule.mode)
        raise Refused(
            N.NO_PROPOSAL_CHOSEN,
            f'no quick-mode proposal is one of rule "{rule.name}"',
            "compare `crypto` of both rules, PFS, and whether both say tunnel or transport",
            comparison=compare_quick(payload, suites(rule), (encapsulation,), sent=False),
        )
    known = "; ".join(str(rule.selector) for rule in rules) or "nothing for this peer"
    raise Refused(
        N.INVALID_ID_INFORMATION,
        f"the peer asks for {asked[1]} === {asked[0]}, our rules protect {known}",
        "`local` and `remote` of both hosts' rules must mirror each other",
    )


def replaced(pairs: list[SaPair], rule: Rule, selector: Selector) -> SaPair | None:
    """The pair for the same traffic that is due to be replaced, which is what a rekeying peer is about."""
    found = [one for one in pairs if one.rule == rule.name and one.selector == selector and not one.standby]
    return found[-1] if found else None
