"""Two hosts that speak IKEv1 with Kerberos of a realm that is made up: its sides prove what they are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from support.link import (
    BOTH,
    POSIX,
    SECRET,
    Flight,
    Link,
    agree,
    tunnel_hosts,
)

from ikd.auth import Authenticated, Declined, Identity, Step, Token
from ikd.auth.credentials import Credentials, Material
from ikd.auth.identity import IdKind
from ikd.auth.keytab import Keytab, KeytabEntry
from ikd.auth.principal import Principal
from ikd.auth.psk import PskEntry
from ikd.isakmp.payloads import PAYLOADS, VendorId
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


def nothing(link: Link) -> None:
    """No SA on either side, and nobody was believed."""
    agree(link, ikes=0, pairs=0)


def useless(link: Link) -> None:
    """No SA for traffic; a responder may believe in an ISAKMP SA until its peer is found to be gone, because
    its message is the last one."""
    assert not link.left.pairs
    assert not link.right.pairs
    assert not link.left.ikes


def heard(link: Link, number: int) -> list[bytes]:
    """The vendor IDs of a message, counted from 1."""
    flight = link.flights[number - 1]
    payloads, _ = chain(flight.header.next_payload, flight.data[HEADER_SIZE:], PAYLOADS)
    return [one.data for one in payloads if isinstance(one, VendorId)]
