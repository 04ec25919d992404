"""What main mode offers and accepts: suites, the one group whose public value goes along, authentication
methods, vendor IDs, NAT discovery (MS-AIPS sections 3.2.4 and 3.3.5.1)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from ikd.authip import methods
from ikd.authip.message import Message
from ikd.authip.numbers import NEEDS_DH
from ikd.authip.session import Session
from ikd.events import PeerAnnounced
from ikd.isakmp.message import Refused
from ikd.isakmp.numbers import N, Traversal
from ikd.isakmp.payloads import NatDiscovery, SecurityAssociation, VendorId
from ikd.isakmp.proposals import (
    NO_GROUP,
    NO_METHODS,
    Life,
    MainChoice,
    choose_main,
    compare_main,
    main_chosen,
    offer_main,
    speaks,
)
from ikd.riders import vendor
from ikd.riders.vendor import Known
from ikd.wire.isakmp import Payload
from policy.rules import Rule
from sadb.address import SocketAddress
from sadb.algorithms import Group, MainSuite

_MODULE = 1  # AuthIP, in the vendor ID of supported keying modules
_GROUPS = {"none": 0, "modp1024": 2, "modp2048": 3, "p256": 4, "p384": 5}  # as the vendor ID numbers them
_HASHES = ("sha1", "sha256", "md5")
_REMEDY = (
    "AuthIP needs a cipher with a hash (aes256 sha256) and a MODP or NIST group; give both rules the same "
    "`crypto` set, and hosts the credentials their `auth` asks for"
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What we offer or accept; `suites` are as they go out, with no group where there is no DH."""

    suites: tuple[MainSuite, ...]
    methods: tuple[int, ...]
    life: Life

    @property
    def group(self) -> Group | None:
        """The group of an offer, which is the same in all of its suites."""
        group = self.suites[0].group
        return None if group == NO_GROUP else group


def terms(session: Session, rules: tuple[Rule, ...], *, initiator: bool) -> Terms:
    """The terms of some rules, for an offer or an answer; raises `Refused` when there are none."""
    settings, profile = session.env.settings, session.profile
    suites = tuple(
        dict.fromkeys(one for rule in rules if rule.crypto for one in rule.crypto.main if speaks(one))
    )
    able = tuple(
        dict.fromkeys(
            one
            for rule in rules
            for one in methods.usable(session.env, rule, profile, second=False, initiator=initiator)
        )
    )
    if not suites or not able:
        lacking = "main-mode suite" if not suites else "authentication method"
        peer = session.path.peer.address
        raise Refused(N.NO_PROPOSAL_CHOSEN, f"no {lacking} of AuthIP for traffic with {peer}", _REMEDY)
    without = tuple(dict.fromkeys(replace(one, group=NO_GROUP) for one in suites))
    optional = settings.authip_dh == "when-needed"
    if not initiator:
        suites += without if optional and not set(able) <= NEEDS_DH else ()
    elif optional and not methods.needs_dh(able):
        suites = without
    else:  # the public value is sent at once
        suites = tuple(one for one in suites if one.group == suites[0].group)
    seconds = min((rule.crypto.lifetime.main_seconds for rule in rules if rule.crypto), default=28800.0)
    return Terms(suites, able, Life(seconds=int(seconds)))


def offer(session: Session, terms: Terms) -> SecurityAssociation:
    """Our SA payload."""
    method = session.profile.method_attribute
    return offer_main(terms.suites, (method or 0,), terms.life)


def chosen(payload: SecurityAssociation, terms: Terms) -> MainChoice | None:
    """Which of our transforms the peer chose; None when it made something up."""
    return main_chosen(payload, terms.suites, NO_METHODS)


def choose(payload: SecurityAssociation, terms: Terms) -> MainChoice:
    """The first of our suites that the peer offers; raises `Refused`."""
    found = choose_main(payload, terms.suites, NO_METHODS)
    if found is None:
        raise Refused(
            N.NO_PROPOSAL_CHOSEN,
            "the peer offered nothing that our rules accept",
            "make `crypto` of both rules meet; AuthIP proposes one group only, the first of the set",
            comparison=compare_main(payload, terms.suites, NO_METHODS, sent=False),
        )
    return found


def of_rule(suite: MainSuite, rules: tuple[Rule, ...]) -> MainSuite:
    """A suite as a rule has it: without DH, the first that differs in nothing else."""
    every = [one for rule in rules if rule.crypto for one in rule.crypto.main]
    return next((one for one in every if suite in (one, replace(one, group=NO_GROUP))), suite)


# Vendor IDs and NAT ----------------------------------------------------------------------------------------


def announcements(session: Session, group: Group | None, *, initiator: bool) -> list[Payload]:
    """Our vendor IDs. NAT traversal is for IPv4 (section 3.2.4)."""
    profile, announced = session.profile, session.announced
    first = session.hooks.first_contact()
    session.had_another = initiator and not first
    four = session.path.peer.address.version == 4

    def common(one: Known) -> bool:
        """What both sides have to know is not said to somebody who has not: a forged first message shall not
        be worth much."""
        return announced.knows(one) and (initiator or one in session.vendors)

    pairs = (
        (Known.KEYING_MODULES, _word(_MODULE), profile.announces_modules),
        (Known.MICROSOFT, _word(profile.vendor_version or 0), profile.vendor_version is not None),
        (Known.GSSAPI, b"", announced.knows(Known.GSSAPI)),
        (Known.RFC_3947, b"", four and common(Known.RFC_3947)),
        (Known.FRAGMENTATION, b"", session.env.settings.fragmentation and common(Known.FRAGMENTATION)),
        (Known.INITIAL_CONTACT, b"", initiator and first and announced.knows(Known.INITIAL_CONTACT)),
        (
            Known.INITIATOR_GROUP,
            _word(_GROUPS.get(group.name, 0) if group else 0),
            initiator and profile.announces_group and group is not None and group.name in _GROUPS,
        ),
    )
    return [VendorId(data=known.value + following) for known, following, wanted in pairs if wanted]


def _word(number: int) -> bytes:
    return number.to_bytes(4, "big")


def hear(session: Session, message: Message) -> None:
    """What the peer says it knows."""
    session.vendors = vendor.heard(one.data for one in message.every(VendorId))
    if session.vendors:
        session.emit(PeerAnnounced(ike=session.number, vendor_ids=vendor.names(session.vendors)))
    if session.path.peer.address.version == 4 and session.both(Known.RFC_3947):
        session.traversal = Traversal.RFC_3947


def _fingerprint(session: Session, name: str, cookie_r: bytes, where: SocketAddress) -> bytes:
    """hash(CKY-I | CKY-R | IP | port), RFC 3947 section 3.2, with the cookies of the message's header."""
    data = session.channel.cookie_i + cookie_r + where.address.packed + where.port.to_bytes(2, "big")
    return hashlib.new(name, data, usedforsecurity=False).digest()


def discovery(session: Session) -> list[Payload]:
    """NAT-D for the other end, then for ours."""
    path = session.path
    known = session.announced.knows if session.initiator else session.both
    if path.peer.address.version == 6 or not known(Known.RFC_3947):
        return []
    name, cookie_r = session.profile.natd_hash, session.channel.cookie_r
    return [NatDiscovery(hash=_fingerprint(session, name, cookie_r, one)) for one in (path.peer, path.local)]


def find_nat(session: Session, message: Message, cookie_r: bytes) -> None:
    """Whether addresses or ports changed on the way; any of the hashes will do that the peer may have used.
    `cookie_r` is that of the message's header."""
    found = [one.hash for one in message.every(NatDiscovery)]
    if len(found) < 2 or session.traversal is Traversal.NONE:
        return

    def fits(one: bytes, where: SocketAddress) -> bool:
        return any(one == _fingerprint(session, name, cookie_r, where) for name in _HASHES)

    session.nat_local = not fits(found[0], session.path.local)
    session.nat_peer = not any(fits(one, session.path.peer) for one in found[1:])


def float_port(session: Session) -> None:
    """With a NAT on the way everything goes on over UDP 4500 (RFC 3947 section 4)."""
    port = session.env.settings.nat_port
    if session.nat and session.path.local.port != port:
        session.path = session.path.moved(port)
