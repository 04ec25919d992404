"""What main mode and aggressive mode have in common: vendor IDs, NAT traversal, keys, and the proofs of
either side.

RFC 2409 sections 5.1 and 5.4, RFC 3947 section 3, RFC 4754.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from ikd.auth import NOT_ADMITTED, Declined, Identity
from ikd.events import PeerAnnounced
from ikd.exchange import Steps
from ikd.ikev1.keys import derive
from ikd.ikev1.message import Message, status
from ikd.ikev1.proofs import Proof, proof_of
from ikd.ikev1.session import Session
from ikd.isakmp.message import Refused
from ikd.isakmp.numbers import Method, N, ProtocolId, Traversal
from ikd.isakmp.payloads import Identification, NatDiscovery, NatDiscoveryDraft, SecurityAssociation, VendorId
from ikd.isakmp.proposals import Life, MainChoice, choose_main, compare_main, offers_method, speaks
from ikd.keying import methods as methods_of
from ikd.riders import failover, vendor
from ikd.riders.vendor import Known
from ikd.wire.isakmp import Payload
from policy.peers import admits
from policy.rules import Rule
from sadb.address import SocketAddress
from sadb.algorithms import MainSuite

NONCE = 32
XAUTH = "the peer means XAUTH by authentication method 65001, which is Kerberos here"
_DISCOVERY = {Traversal.RFC_3947: NatDiscovery, Traversal.DRAFT_02: NatDiscoveryDraft}


# What is offered --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Terms:
    """What we offer or accept for a rule, or for all rules a peer may use; `name` is what we call ourselves
    with Kerberos, empty without it."""

    suites: tuple[MainSuite, ...]
    methods: tuple[int, ...]
    life: Life
    name: str = ""

    def understood(self, session: Session) -> tuple[int, ...]:
        """The methods whose numbers mean to the peer what they mean to us."""
        if vendor.means_kerberos(session.vendors):
            return self.methods
        return tuple(one for one in self.methods if one != Method.GSS)


def terms(session: Session, rules: tuple[Rule, ...], *, tokens: bool = True) -> Terms:
    """The terms of some rules; raises `Refused` when there are none. Kerberos only with `tokens`."""
    suites = tuple(
        dict.fromkeys(one for rule in rules if rule.crypto for one in rule.crypto.main if speaks(one))
    )
    credentials = session.env.credentials
    methods = tuple(dict.fromkeys(one for rule in rules for one in credentials.hash_methods(rule)))
    tokens = tokens and session.announced.knows(Known.GSSAPI)  # else the peer would take it for XAUTH
    if not tokens:
        methods = tuple(one for one in methods if one != Method.GSS)
    if not suites or not methods:
        if suites and tokens:
            _check_kerberos(session, rules)
        lacking = "main-mode suite" if not suites else "authentication method"
        raise Refused(
            N.NO_PROPOSAL_CHOSEN,
            f"no {lacking} of IKEv1 for traffic with {session.path.peer.address}",
            "IKEv1 needs a cipher with a hash (aes256 sha256), and a pre-shared key, a certificate or, in "
            "main mode and with vendor IDs, Kerberos",
        )
    seconds = min((rule.crypto.lifetime.main_seconds for rule in rules if rule.crypto), default=28800.0)
    kerberos = [rule for rule in rules if Method.GSS in credentials.hash_methods(rule)]
    name = credentials.kerberos_name(kerberos[0]) if Method.GSS in methods else ""
    return Terms(suites, methods, Life(seconds=int(seconds)), name)


def _check_kerberos(session: Session, rules: tuple[Rule, ...]) -> None:
    """Raise `Refused` with what Kerberos lacks, when a rule wants it."""
    for rule in rules:
        if any(one.method == "kerberos" for one in methods_of(rule)):
            try:
                session.env.credentials.kerberos_name(rule)
            except Declined as declined:
                raise Refused(N.NO_PROPOSAL_CHOSEN, str(declined), declined.remedy) from None


def why_nothing(session: Session, offered: SecurityAssociation, terms: Terms) -> str:
    """Why nothing that a peer offers will do, in words."""
    if Known.CGA in session.vendors and offers_method(offered, Method.CGA):
        return "the peer wants to prove itself by its address (CGA, method 65005), which is not spoken here"
    if choose_main(offered, terms.suites, terms.methods):
        return XAUTH
    return "the peer offered nothing that our rules accept"


def choose(session: Session, request: Message, terms: Terms) -> MainChoice:
    """What of a peer's offer is taken, and noted; raises `Refused`."""
    payload = request.one(SecurityAssociation)
    hear(session, request)
    choice = choose_main(payload, terms.suites, terms.understood(session))
    if choice is None:
        raise Refused(
            N.NO_PROPOSAL_CHOSEN,
            why_nothing(session, payload, terms),
            "make `crypto` and `auth` of the rule and the peer's proposals meet",
            comparison=compare_main(payload, terms.suites, terms.methods, sent=False),
        )
    session.sa = request.body(SecurityAssociation)
    chosen(session, choice, terms)
    return choice


def chosen(session: Session, choice: MainChoice, terms: Terms) -> None:
    """Take note of what was agreed."""
    session.suite, session.method = choice.suite, choice.method
    session.proof = proof_of(session, choice, terms.name)
    session.tried = session.proof.method


def serves(session: Session, rule: Rule) -> bool:
    """Whether a rule wants the suite and the method that were agreed."""
    credentials = session.env.credentials
    suites = rule.crypto.main if rule.crypto else ()
    return session.suite in suites and session.method in credentials.hash_methods(rule)


# Vendor IDs and NAT -----------------------------------------------------------------------------------------


def announcements(session: Session, methods: Collection[int], *, initiator: bool) -> list[Payload]:
    """Our vendor IDs, for what is offered or was agreed on. NAT traversal is for IPv4 (MS-IKEE section
    3.1.5). Windows' responders say nothing of initial contact, and nor do we."""
    first = session.hooks.first_contact()
    session.had_another = initiator and not first
    fitting = {
        Known.GSSAPI: Method.GSS in methods,
        Known.RFC_3947: session.path.peer.address.version == 4,
        Known.NAT_DRAFT_02: session.path.peer.address.version == 4,
        Known.FRAGMENTATION: session.env.settings.fragmentation,
        Known.INITIAL_CONTACT: initiator and first,
        Known.KEYING_MODULES: initiator,
    }
    left_out = {known for known, fits in fitting.items() if not fits}
    twin = [Known.AUTHIP.value] if session.has_twin else []
    return [VendorId(data=one) for one in (*twin, *session.announced.of_ikev1(left_out))]


def hear(session: Session, message: Message) -> None:
    """What the peer says it knows; of NAT traversal the newer text counts (RFC 3947, MS-IKEE section 3)."""
    session.vendors = vendor.heard(one.data for one in message.every(VendorId))
    if session.vendors:
        session.emit(PeerAnnounced(ike=session.number, vendor_ids=vendor.names(session.vendors)))
    if session.path.peer.address.version == 6:
        return
    if session.both(Known.RFC_3947):
        session.traversal = Traversal.RFC_3947
    elif session.both(Known.NAT_DRAFT_02):
        session.traversal = Traversal.DRAFT_02


def _fingerprint(session: Session, where: SocketAddress) -> bytes:
    """HASH = hash(CKY-I | CKY-R | IP | Port), RFC 3947 section 3.2."""
    channel = session.channel
    data = channel.cookie_i + channel.cookie_r + where.address.packed + where.port.to_bytes(2, "big")
    return hashlib.new(session.row.hash, data).digest()


def discovery(session: Session) -> list[Payload]:
    """NAT-D for the other end, then for ours; nothing when the peer does not know it."""
    made = _DISCOVERY.get(session.traversal)
    if made is None:
        return []
    path = session.path
    return [made(hash=_fingerprint(session, path.peer)), made(hash=_fingerprint(session, path.local))]


def find_nat(session: Session, message: Message) -> None:
    """Whether addresses or ports changed on the way."""
    found = [one.hash for one in message.every(NatDiscovery)]
    if len(found) < 2 or session.traversal is Traversal.NONE:
        return
    session.nat_local = _fingerprint(session, session.path.local) != found[0]
    session.nat_peer = _fingerprint(session, session.path.peer) not in found[1:]


def float_port(session: Session) -> None:
    """With a NAT on the way everything goes on over UDP 4500 (RFC 3947 section 4). One that is to replace
    another is there already, and the peer behind a port of the NAT's."""
    port = session.env.settings.nat_port
    if session.nat and session.path.local.port != port:
        session.path = session.path.moved(port)


# Keys -------------------------------------------------------------------------------------------------------


def make_keys(session: Session, rule: Rule, shared: bytes) -> None:
    """SKEYID by method, everything derived from it, and the cipher; raises `Declined` without a key."""
    assert session.suite is not None
    channel = session.channel
    skeyid = proof(session).skeyid(rule, shared)
    session.keys = derive(session.suite, skeyid, shared, channel.cookie_i, channel.cookie_r)
    channel.arm(session.suite, session.keys, session.public_i, session.public_r)


# Proofs -----------------------------------------------------------------------------------------------------


def proof(session: Session) -> Proof:
    """How both sides prove themselves."""
    assert isinstance(session.proof, Proof)
    return session.proof


def own_identity(session: Session, rule: Rule) -> Identification:
    """What we claim to be."""
    identity = session.env.credentials.local_identity(rule, session.path.local.address)
    session.local_identity = identity
    return Identification(type=identity.kind, data=identity.data)


def verify(session: Session, rule: Rule, message: Message, named: Message | None = None) -> Steps[None]:
    """Check the peer's proof and whether it may use the rule; raises `Declined`. `named` is the message with
    its identity when that is another one."""
    named = named or message
    payload = named.one(Identification)
    session.claimed = Identity(payload.type, payload.data)
    peer = yield from proof(session).verify(rule, named.body(Identification), message)
    verdict = admits(rule, peer.claims)
    if not verdict:
        remedy = f'if this is the right host, correct `peer` or `allow` of rule "{rule.name}"'
        raise Declined(verdict.reason, remedy, cause=NOT_ADMITTED)
    session.peer = peer


def proven(session: Session, rule: Rule, message: Message) -> None:
    """The peer is who it says and may use the rule: the ISAKMP SA is up."""
    session.rule = rule
    anew = failover.begins_anew(session.vendors, initiator=session.initiator, had_another=session.had_another)
    session.initial_contact = anew or message.notify(N.INITIAL_CONTACT) is not None
    session.tell_authenticated(rule)
    session.hooks.authenticated()


def initial_contact(session: Session) -> list[Payload]:
    """N(INITIAL-CONTACT), RFC 2407 section 4.6.3.3, when it is true."""
    if not session.hooks.first_contact():
        return []
    spi = session.channel.cookie_i + session.channel.cookie_r
    return [status(N.INITIAL_CONTACT, protocol=ProtocolId.ISAKMP, spi=spi)]


def declined_by_peer(message: Message) -> Refused | None:
    """An error the peer tells instead of going on."""
    return message.refusal()
