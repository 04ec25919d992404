"""Kerberos in IKEv1 main mode, with sides that need no KDC: rounds, what the hash binds, who is believed, and
what a slow KDC must not do (draft-ietf-ipsec-isakmp-gss-auth-07).

If one of these fails, hosts of a realm do not come together, or a peer gets an SA that Kerberos did not
prove. The same with a real KDC is in test_ikev1_kdc."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
from support.link import (
    BOTH,
    POSIX,
    SECRET,
    Flight,
    Host,
    Link,
    agree,
    losing,
    story,
    tunnel_hosts,
    tunnel_rules,
)

from ikd.auth import Authenticated, Declined, Identity, Step, Token
from ikd.auth.credentials import Credentials, Material
from ikd.auth.identity import IdKind
from ikd.auth.keytab import Keytab, KeytabEntry
from ikd.auth.principal import Principal
from ikd.auth.psk import PskEntry
from ikd.events import AuthenticationFailed, MessageSent, PeerAuthenticated
from ikd.ikev1 import proofs
from ikd.isakmp import proposals
from ikd.isakmp.numbers import MainAttribute
from ikd.isakmp.payloads import PAYLOADS, GssToken, Identification, SecurityAssociation, VendorId
from ikd.riders.vendor import Known
from ikd.wire.isakmp import HEADER, HEADER_SIZE, Header, Payload, chain, encode_chain
from policy.rules import Rule
from sadb.secret import Secret

REALM = "EXAMPLE"
RULE = 'keying = ["ikev1"]\ncrypto = "old"\n'
SETS = """
[crypto.old]
main  = ["p256 aes128 sha256"]
quick = ["aes128 sha256"]
esn   = false

[auth.kerberos]
first = ["kerberos"]
"""


@dataclass
class Realm:
    """A realm whose tokens are texts: how many each side sends, and what goes wrong."""

    initiator: int = 1
    responder: int = 1
    refuses: Declined | None = None  # the acceptor, at its first token
    asked: list[str] = field(default_factory=list)  # whom tickets were asked for

    def principal(self, name: str) -> str:
        return f"host/{name}.example@{REALM}"


@dataclass
class Side:
    """One side of an exchange of texts; the last token of either is the one with its full count."""

    realm: Realm
    ours: str
    peer: str
    begins: bool
    blocking: ClassVar[bool] = True
    sent: int = 0
    heard: list[bytes] = field(default_factory=list)
    opened: set[bytes] = field(default_factory=set)

    def step(self, token: Token | None) -> Step:
        """The next token of ours, and the peer when both have sent theirs."""
        realm = self.realm
        if token is not None:
            self.heard.append(token.data)
            if token.data.startswith(b"error"):
                raise Declined("the peer says that its keytab is out of date", "write it anew")
            if realm.refuses and not self.begins:
                raise realm.refuses
        mine, theirs = realm.initiator, realm.responder
        if not self.begins:
            mine, theirs = theirs, mine
        answer = None
        if self.sent < mine:
            self.sent += 1
            answer = Token(f"{self.ours} token {self.sent}".encode())
        if self.sent < mine or len([one for one in self.heard if one]) < theirs:
            return Step(answer)
        peer = Principal.parse(self.peer)
        proven = Authenticated(
            Identity(IdKind.PRINCIPAL, self.peer.encode()),
            "kerberos",
            f"{peer} (kerberos)",
            POSIX + 36_000,
            peer.names(REALM),
        )
        return Step(answer, proven)

    def wrap(self, data: bytes) -> bytes:
        """Something longer than the hash, as real ones are."""
        return b"wrapped by " + self.ours.encode() + b":" + data

    def unwrap(self, data: bytes) -> bytes:
        """The reverse; what another one wrapped is not genuine."""
        start = b"wrapped by " + self.peer.encode() + b":"
        if not data.startswith(start) or data in self.opened:
            raise Declined("the peer's wrapped message was altered")
        self.opened.add(data)
        return data[len(start) :]


class Stubbed(Credentials):
    """Credentials whose Kerberos is a `Realm`."""

    __slots__ = ("ours", "peer", "realm")

    def __init__(self, material: Material, realm: Realm, ours: str, peer: str) -> None:
        Credentials.__init__(self, material, lambda: POSIX)
        self.realm, self.ours, self.peer = realm, realm.principal(ours), realm.principal(peer)

    def kerberos_initiator(self, rule: Rule, claimed: str | None = None) -> Side:  # type: ignore[override]
        self.realm.asked.append(str(super().kerberos_initiator(rule, claimed)._target))
        return Side(self.realm, self.ours, self.peer, begins=True)

    def kerberos_acceptor(self, rule: Rule, *, users: bool = False) -> Side:  # type: ignore[override]
        super().kerberos_acceptor(rule)
        return Side(self.realm, self.ours, self.peer, begins=False)


def material(name: str, *, keytab: bool = True, key: bool = False) -> Material:
    """A host with a keytab, perhaps with a pre-shared key for the other one."""
    other = "right" if name == "left" else "left"
    entry = KeytabEntry(Principal(("host", f"{name}.example"), REALM), 1, 18)
    return Material(
        Identity.parse(f"{name}.ids.example"),
        (PskEntry(Secret(SECRET), (f"{other}.ids.example",)),) if key else (),
        keytab=Keytab(f"/nowhere/{name}.keytab", (entry,)) if keytab else None,
    )


def pair(
    realm: Realm | None = None,
    *,
    left: Material | None = None,
    right: Material | None = None,
    left_rule: str = 'peer = "right.example"\n',
    right_rule: str = 'peer = "left.example"\n',
    sets: str = SETS,
    auth: str = "kerberos",
    nat: str = "",
) -> Link:
    """Two hosts of a realm."""
    realm = realm or Realm()
    own = {"left": left or material("left"), "right": right or material("right")}
    hosts = tunnel_hosts(
        left_rule=RULE + left_rule, right_rule=RULE + right_rule, sets=sets, auth=auth, nat=nat, **own
    )
    for one, other in zip(hosts, BOTH[::-1], strict=True):
        one.endpoint.env.credentials = Stubbed(own[one.name], realm, one.name, other)
    return Link(*hosts, nat=nat)


def realm_of(link: Link) -> Realm:
    credentials = link.left.endpoint.env.credentials
    assert isinstance(credentials, Stubbed)
    return credentials.realm


Change = Callable[[list[Payload]], list[Payload]]


def changing(number: int, change: Change) -> Callable[[Flight], None]:
    """Somebody on the way who changes the payloads of one datagram, counted from 1; it is in the clear."""

    def fate(flight: Flight) -> None:
        if flight.number == number - 1:
            header = Header.decode(flight.data)
            payloads, _ = chain(header.next_payload, flight.data[HEADER_SIZE:], PAYLOADS)
            kind, octets = encode_chain(change(list(payloads)))  # type: ignore[arg-type]
            fields = list(HEADER.unpack(flight.data[:HEADER_SIZE]))
            fields[2], fields[-1] = kind, HEADER_SIZE + len(octets)
            flight.data = HEADER.pack(*fields) + octets

    return fate


def without_vendors(*left_out: Known, more: tuple[bytes, ...] = ()) -> Change:
    """Leave out some vendor IDs and add others."""

    def change(payloads: list[Payload]) -> list[Payload]:
        known = [one.value for one in left_out]
        kept = [one for one in payloads if not (isinstance(one, VendorId) and one.data in known)]
        return [*kept, *(VendorId(data=one) for one in more)]

    return change


def nothing(link: Link) -> None:
    """No SA on either side, and nobody was believed."""
    agree(link, ikes=0, pairs=0)


def useless(link: Link) -> None:
    """No SA for traffic; a responder may believe in an ISAKMP SA until its peer is found to be gone, because
    its message is the last one."""
    assert not link.left.pairs
    assert not link.right.pairs
    assert not link.left.ikes


def messages(one: Host) -> list[tuple[str, ...]]:
    """The payloads of the main-mode messages a host sent, vendor IDs and NAT-D left out."""
    return [
        tuple(name for name in event.payloads if name not in ("VID", "NAT-D"))
        for event in one.of(MessageSent)
        if event.exchange == "IDENTITY_PROTECTION" or "MAIN" in event.exchange.upper()
    ]


# What must work ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", BOTH)
def test_two_tokens(first: str) -> None:
    """The ordinary case: six messages, tokens in the third and fourth, the peer is a principal and its
    identity payload, another name altogether, plays no part."""
    link = pair()
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    initiator = link.named(first)
    assert messages(initiator) == [("SA",), ("KE", "NONCE", "GSS"), ("ID", "HASH", "N(INITIAL_CONTACT)")]
    assert messages(link.other(initiator)) == [("SA",), ("KE", "NONCE", "GSS"), ("ID", "HASH")]
    for one, other in zip((link.left, link.right), BOTH[::-1], strict=True):
        (proven,) = one.of(PeerAuthenticated)
        assert proven.method == "kerberos"
        assert proven.identity == f"principal:host/{other}.example@{REALM}"
        (session,) = [found.session for found in one.ikes]
        assert str(session.claimed) == f"{other}.ids.example"


@pytest.mark.parametrize(
    ("initiator", "responder", "pairs"), [(1, 0, 0), (1, 1, 0), (2, 1, 1), (2, 2, 1), (3, 3, 2), (4, 3, 3)]
)
def test_more_tokens(initiator: int, responder: int, pairs: int) -> None:
    """Mechanisms with more rounds take additional pairs of messages, and the last two keep their meaning."""
    link = pair(Realm(initiator, responder))
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert messages(link.left)[2:-1] == pairs * [("GSS",)]
    assert messages(link.right)[2:-1] == pairs * [("GSS",)]


@pytest.mark.parametrize("lost", range(10))
def test_any_message_may_be_lost(lost: int) -> None:
    """Also one of an additional pair; a token is given to its side once, however often it comes."""
    link = pair(Realm(3, 3))
    link.fate = losing(lost)
    link.up()
    link.run(60)
    agree(link, ikes=1, pairs=1)


def test_every_message_comes_twice() -> None:
    """A side that is given a token again would call it a replay."""

    def twice(flight: Flight) -> None:
        flight.copies = 1

    link = pair(Realm(2, 2))
    link.fate = twice
    link.up()
    link.run(60)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("slow", BOTH)
def test_slow_kdc(slow: str) -> None:
    """While a host waits for its KDC, what is repeated is ignored: neither given to Kerberos twice nor
    answered by repeating the message before, which would have both repeat themselves at the speed of the
    link."""
    link = pair()
    link.named(slow).slow = 9.0
    link.up()
    link.run(60)
    agree(link, ikes=1, pairs=1)
    assert len(link.flights) < 40, story(link)


def test_kdc_slower_than_the_peer_is_patient() -> None:
    """An answer that comes when the exchange is over starts nothing."""
    link = pair()
    link.right.slow = 300.0
    link.up()
    link.run(400)
    nothing(link)
    assert "does not answer" in link.left.failures[0].reason


@pytest.mark.parametrize("nat", BOTH)
def test_behind_a_nat(nat: str) -> None:
    """Port 4500 from the fifth message on, as with the other methods."""
    link = pair(nat=nat)
    link.up("net", nat)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert link.left.pairs[0].outbound.encapsulation


def test_rekeying_proves_anew() -> None:
    """Every ISAKMP SA has a context of its own."""
    link = pair()
    link.up()
    link.run(5)
    link.rekey(link.left)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert len(link.right.of(PeerAuthenticated)) == 2
    assert len(link.left.of(PeerAuthenticated)) == 2


def test_end_of_the_ticket_ends_the_sa() -> None:
    """Who is no longer known to the KDC must prove itself again within the life of its ticket."""
    link = pair()
    link.up()
    link.run(5)
    for one in (link.left, link.right):
        assert one.ikes[0].session.peer is not None
        assert one.ikes[0].session.peer.expires == POSIX + 36_000


# Names and numbers ------------------------------------------------------------------------------------------


def name_in(flight: Flight) -> tuple[int, bytes]:
    """The GSS name in an SA payload."""
    header = flight.header
    payloads, _ = chain(header.next_payload, flight.data[HEADER_SIZE:], PAYLOADS)
    (found,) = [one for one in payloads if isinstance(one, SecurityAssociation)]
    attributes = found.proposals[0].transforms[0].attributes
    (name,) = [(kind, value) for kind, value in attributes if kind in (16384, 32001)]
    assert isinstance(name[1], bytes)
    return name[0], name[1]


def test_names_on_the_wire() -> None:
    """Attribute 16384 in UTF-16LE, as Windows has it; each side says its own."""
    link = pair()
    link.up()
    link.run(5)
    for flight, name in zip(link.flights[:2], BOTH, strict=True):
        assert name_in(flight) == (16384, f"host/{name}.example@{REALM}".encode("utf-16-le"))


@pytest.mark.parametrize("codec", ["utf-16-le", "latin-1"])
@pytest.mark.parametrize("number", [MainAttribute.GSS_NAME, MainAttribute.GSS_NAME_OLD])
def test_other_forms_of_the_name(monkeypatch: pytest.MonkeyPatch, codec: str, number: int) -> None:
    """Older peers write Latin-1, and Windows 2000 another attribute; where the rule leaves the peer's name
    open it is the one that a ticket is asked for."""
    monkeypatch.setattr("ikd.ikev1.main_mode.encode_name", lambda name: name.encode(codec))
    attributes = proposals._main_attributes

    def renumbered(*how: Any) -> Any:
        return tuple((number if kind == 16384 else kind, value) for kind, value in attributes(*how))

    monkeypatch.setattr(proposals, "_main_attributes", renumbered)
    link = pair(left_rule="")
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert realm_of(link).asked == [f"host/right.example@{REALM}"]


def test_rule_decides_whom_a_ticket_is_asked_for() -> None:
    """A peer that could choose would choose a name it has the key of."""
    link = pair(left_rule='peer = "third.example"\n')
    link.up()
    link.run(60)
    assert realm_of(link).asked == ["host/third.example"]
    useless(link)
    assert "expects" in link.left.failures[0].reason


def test_peer_of_another_name() -> None:
    """A principal the responder's rule does not expect; the identity payload says what the rule wants."""
    link = pair(right_rule='peer = "left.ids.example"\n')
    link.up()
    link.run(60)
    nothing(link)
    assert f"host/left.example@{REALM}" in link.right.failures[0].reason
    assert "`peer`" in link.right.failures[0].remedy
    assert link.left.failures[0].notify == "AUTHENTICATION_FAILED"


def test_rule_is_found_by_principal() -> None:
    """Two rules for one address: that of the peer's principal counts."""
    rules = 'peer = "left.example"\n'
    link = pair(right_rule=rules)
    other = """
[[rule]]
name     = "aaa"
local    = "10.2.7.0/24"
remote   = "10.1.7.0/24"
tunnel   = { local = "192.0.2.2", remote = "192.0.2.1" }
security = "require"
auth     = "kerberos"
keying   = ["ikev1"]
crypto   = "old"
peer     = "somebody.example"
"""
    text = other + tunnel_rules("right", auth="kerberos", extra=RULE + rules) + SETS
    link.reload(link.right, text)
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert link.right.of(PeerAuthenticated)[0].rule == "net"


# Kerberos or XAUTH ------------------------------------------------------------------------------------------


def heard(link: Link, number: int) -> list[bytes]:
    """The vendor IDs of a message, counted from 1."""
    flight = link.flights[number - 1]
    payloads, _ = chain(flight.header.next_payload, flight.data[HEADER_SIZE:], PAYLOADS)
    return [one.data for one in payloads if isinstance(one, VendorId)]


def test_vendor_id_is_announced_with_the_method_only() -> None:
    """To announce Kerberos and offer none would send peers the wrong way."""
    link = pair()
    link.up()
    link.run(5)
    assert Known.GSSAPI.value in heard(link, 1)
    assert Known.GSSAPI.value in heard(link, 2)
    sets = SETS + '[auth.key]\nfirst = ["psk"]\n'
    left, right = (material(name, keytab=False, key=True) for name in BOTH)
    link = pair(sets=sets, auth="key", left_rule="", right_rule="", left=left, right=right)
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert Known.GSSAPI.value not in heard(link, 1) + heard(link, 2)


@pytest.mark.parametrize(
    "instead", [(Known.GSSAPI_DRAFT.value,), (Known.MICROSOFT.value + b"\0\0\0\x09",)], ids=["draft", "ms"]
)
@pytest.mark.parametrize("message", [1, 2])
def test_other_vendor_ids_mean_kerberos(instead: tuple[bytes, ...], message: int) -> None:
    """The draft's own, and Microsoft's of any version."""
    link = pair()
    link.fate = changing(message, without_vendors(Known.GSSAPI, more=instead))
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize(
    "instead",
    [(), (Known.XAUTH.value,), (Known.XAUTH.value, Known.MICROSOFT.value + b"\0\0\0\x09")],
    ids=["none", "xauth", "xauth-of-microsoft"],
)
def test_65001_without_kerberos_is_xauth(instead: tuple[bytes, ...]) -> None:
    """A client that means XAUTH would otherwise be told to send a token, and nobody would know why that
    fails."""
    link = pair()
    link.fate = changing(1, without_vendors(Known.GSSAPI, more=instead))
    link.up()
    link.run(120)
    nothing(link)
    (failed,) = link.right.failures
    assert failed.reason == "the peer means XAUTH by authentication method 65001, which is Kerberos here"
    assert failed.notify == "NO_PROPOSAL_CHOSEN"


def test_responder_that_means_xauth() -> None:
    """The initiator is told when nothing better comes."""
    link = pair()
    link.fate = lambda flight: (
        changing(flight.number + 1, without_vendors(Known.GSSAPI))(flight)
        if (flight.sender is link.right)
        else None
    )
    link.up()
    link.run(120)
    nothing(link)
    assert "means XAUTH" in link.left.failures[0].reason
    assert "GSSAPI" in link.left.failures[0].remedy


def test_method_that_both_have_is_taken() -> None:
    """Kerberos first, but the peer has no keytab: the key does it."""
    sets = SETS + '[auth.both]\nfirst = ["kerberos", "psk"]\n'
    link = pair(
        sets=sets,
        auth="both",
        left=material("left", key=True),
        right=material("right", keytab=False, key=True),
        left_rule="",
        right_rule="",
    )
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert link.left.of(PeerAuthenticated)[0].method == "psk"


def test_not_in_aggressive_mode() -> None:
    """There the tokens would have to be there before anything is agreed on; it is said, not tried."""
    link = pair(left_rule='peer = "right.example"\naggressive = true\n')
    link.up()
    link.run(5)
    nothing(link)
    assert "in main mode and with vendor IDs, Kerberos" in link.left.failures[0].remedy


# What must not ----------------------------------------------------------------------------------------------


def with_token(data: bytes) -> Change:
    return lambda payloads: [GssToken(token=data) if isinstance(one, GssToken) else one for one in payloads]


@pytest.mark.parametrize(("message", "victim"), [(3, "right"), (4, "left")])
def test_changed_token_breaks_the_hash(message: int, victim: str) -> None:
    """These sides do not notice: the hash that covers the tokens must."""
    link = pair()
    link.fate = changing(message, with_token(b"another token"))
    link.up()
    link.run(20)
    useless(link)
    assert "has not seen the same exchange" in link.named(victim).failures[0].reason
    assert not link.named(victim).of(PeerAuthenticated)


@pytest.mark.parametrize("message", [3, 4])
def test_message_without_a_token(message: int) -> None:
    """It is no message of this method, and waits for a better one."""
    link = pair()
    link.fate = changing(message, lambda found: [one for one in found if not isinstance(one, GssToken)])
    link.up()
    link.run(60)
    agree(link, ikes=1, pairs=1)  # the next one is whole


@pytest.mark.parametrize(("message", "victim"), [(1, "right"), (2, "left")])
def test_name_is_bound_by_the_hash(message: int, victim: str) -> None:
    """Who changes a name on the way is found out, whichever name it is."""

    def renamed(payloads: list[Payload]) -> list[Payload]:
        (sa,) = [one for one in payloads if isinstance(one, SecurityAssociation)]
        (proposal,) = sa.proposals
        (transform,) = proposal.transforms
        name = proofs.encode_name("host/other.example")
        attributes = tuple((k, name if k == MainAttribute.GSS_NAME else v) for k, v in transform.attributes)
        changed = replace(proposal, transforms=(replace(transform, attributes=attributes),))
        return [replace(one, proposals=(changed,)) if one is sa else one for one in payloads]

    link = pair()
    link.fate = changing(message, renamed)
    link.up()
    link.run(20)
    useless(link)
    assert link.named(victim).of(AuthenticationFailed)
    assert not link.named(victim).of(PeerAuthenticated)


@pytest.mark.parametrize("liar", BOTH)
def test_hash_that_somebody_else_wrapped(monkeypatch: pytest.MonkeyPatch, liar: str) -> None:
    """A hash without the context proves nothing, nor does a wrap of something else."""
    link = pair()
    wrap = Side.wrap
    monkeypatch.setattr(
        Side, "wrap", lambda self, data: data if self.ours.startswith(f"host/{liar}") else wrap(self, data)
    )
    link.up()
    link.run(120)
    assert not link.left.pairs
    assert not link.right.pairs
    victim = link.right if liar == "left" else link.left
    assert victim.of(AuthenticationFailed)[0].reason == "the peer's wrapped message was altered"
    assert not victim.of(PeerAuthenticated)


@pytest.mark.parametrize("token", [b"", b"error: keytab"])
def test_acceptor_refuses(token: bytes) -> None:
    """The acceptor's host says why; with a token for the peer its host learns it, too, and at once."""
    link = pair(Realm(refuses=Declined("our keytab is out of date", "write the keytab anew", token)))
    link.up()
    link.run(1 if token else 60)
    nothing(link)
    (ours,) = link.right.failures
    assert (ours.reason, ours.remedy, ours.rule) == (
        "our keytab is out of date",
        "write the keytab anew",
        "net",
    )
    (theirs,) = link.left.failures
    if token:
        assert theirs.reason == "the peer says that its keytab is out of date"
        assert theirs.remedy == "write it anew"
    else:
        assert theirs.notify == "AUTHENTICATION_FAILED"


def test_host_without_a_keytab() -> None:
    """Nothing is sent that could not be answered for."""
    link = pair(left=material("left", keytab=False))
    link.up()
    link.run(5)
    nothing(link)
    assert not link.flights
    assert link.left.failures[0].reason == "this host has no Kerberos credential"
    assert "identity.keytab" in link.left.failures[0].remedy


def test_keytab_without_a_machine() -> None:
    """Other methods go on; with none it is said what the keytab lacks."""
    empty = replace(material("left", key=True), keytab=Keytab("/nowhere/left.keytab", ()))
    sets = SETS + '[auth.both]\nfirst = ["kerberos", "psk"]\n'
    right = material("right", key=True)
    link = pair(sets=sets, auth="both", left=empty, right=right, left_rule="", right_rule="")
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    link = pair(left=empty)
    link.up()
    link.run(5)
    nothing(link)
    assert "has no key of a machine" in link.left.failures[0].reason


def test_without_vendor_ids() -> None:
    """Kerberos is not offered where nothing may say that it is meant."""
    link = pair()
    link.left.endpoint.env.settings = replace(link.left.endpoint.env.settings, vendor_ids="none")
    link.up()
    link.run(5)
    nothing(link)
    assert not link.flights
    assert "with vendor IDs, Kerberos" in link.left.failures[0].remedy


def test_peer_without_kerberos() -> None:
    """Both logs name the method."""
    link = pair(right=material("right", keytab=False, key=True), sets=SETS)
    link.up()
    link.run(60)
    nothing(link)
    assert link.right.failures


def test_names_and_hash_cover_what_racoon_covers() -> None:
    """Name before tokens, and the name in Latin-1 however it was sent."""
    assert proofs.covered("host/a@R", [b"one", b"two"]) == b"host/a@Ronetwo"
    assert proofs.covered("", [b"one"]) == b"one"
    assert proofs.decode_name("host/a@R".encode("utf-16-le")) == "host/a@R"
    assert proofs.decode_name(b"host/a@R") == "host/a@R"
    assert proofs.decode_name(b"\x00\xd8") != ""  # half a character is no exception


def test_nobody_claims_a_principal_in_an_identity_payload() -> None:
    """The kind that stands for a proven principal is none of the wire's."""
    assert IdKind.PRINCIPAL > 255
    with pytest.raises(struct.error):
        Identification(type=int(IdKind.PRINCIPAL), data=b"host/a").encode()
