"""Kerberos in IKEv1 main mode with a real KDC and two endpoints: it works, and for whatever goes wrong both
administrators are told what to do.

If one of these fails, hosts of a realm do not come together, or nobody learns why."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.kerberos import ALPHA, BETA, CLOCKS, REALM, Kdc, refusal_at
from support.link import BOTH, Flight, Host, Link, agree, losing, tunnel_hosts

from ikd.auth import Authenticate, Declined
from ikd.auth.credentials import Credentials, Material
from ikd.auth.kerberos import KerberosAcceptor
from ikd.auth.keytab import Keytab
from ikd.events import Broken, PeerAuthenticated
from ikd.isakmp.payloads import PAYLOADS, GssToken
from ikd.wire.isakmp import HEADER, HEADER_SIZE, Header, chain, encode_chain

_caches = itertools.count()
NAMES = {"left": "alpha.example.test", "right": "beta.example.test"}
SETS = """
[crypto.old]
main  = ["p256 aes128 sha256"]
quick = ["aes128 sha256"]
esn   = false

[auth.kerberos]
first = ["kerberos"]
"""


def keytab_of(kdc: Kdc, name: str) -> Keytab:
    """A keytab with no tickets yet."""
    return fresh(kdc.load(kdc.base / name))


def fresh(keytab: Keytab) -> Keytab:
    return replace(keytab, cache=f"MEMORY:scenario-{next(_caches)}")


def realm(
    kdc: Kdc, *, left: Keytab | None = None, right: Keytab | None = None, peer: str = NAMES["right"]
) -> Link:
    """alpha on the left, beta on the right; the left rule expects `peer`."""
    keytabs = {
        "left": left or keytab_of(kdc, "alpha.keytab"),
        "right": right or keytab_of(kdc, "beta.keytab"),
    }
    materials = {name: Material(keytab=keytab) for name, keytab in keytabs.items()}
    rule = 'keying = ["ikev1"]\ncrypto = "old"\npeer = "{}"\n'
    hosts = tunnel_hosts(
        left_rule=rule.format(peer),
        right_rule=rule.format(NAMES["left"]),
        sets=SETS,
        auth="kerberos",
        **materials,
    )
    for one in hosts:
        one.endpoint.env.credentials = Credentials(materials[one.name], time.time)
    return Link(*hosts)


def failed(one: Host, reason: str, remedy: str) -> None:
    """How the one negotiation of a host came to nothing: what `ikctl why` tells."""
    (found,) = one.failures
    assert reason in found.reason
    assert remedy in found.remedy, found.remedy
    assert "{" not in found.reason + found.remedy
    assert found.rule == "net"
    assert not one.pairs
    assert not one.of(Broken)


@pytest.mark.parametrize("first", BOTH)
def test_hosts_of_a_realm(kdc: Kdc, first: str) -> None:
    """Without a key or a certificate: tickets in both directions, also for the next ISAKMP SA."""
    link = realm(kdc)
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    for one, other in ((link.left, BETA), (link.right, ALPHA)):
        (proven,) = one.of(PeerAuthenticated)
        assert proven.identity == f"principal:{other}@{REALM}"
        peer = one.ikes[0].session.peer
        assert peer is not None
        assert peer.expires is not None
        assert 35_000 < peer.expires - time.time() <= 36_000
    link.rekey(link.left)
    link.run(20)
    agree(link, ikes=1, pairs=1)


def test_names_that_the_rule_leaves_open(kdc: Kdc) -> None:
    """The ticket is then for the name in the peer's SA payload."""
    link = realm(kdc, peer="*.example.test")
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("lost", range(6))
def test_any_message_may_be_lost(kdc: Kdc, lost: int) -> None:
    """Repeated messages are answered from memory: an AP-REQ given to Kerberos twice is a replay."""
    link = realm(kdc)
    link.fate = losing(lost, lost + 3)
    link.up()
    link.run(60)
    agree(link, ikes=1, pairs=1)


# What goes wrong --------------------------------------------------------------------------------------------


def test_wrong_realm(kdc: Kdc) -> None:
    """A peer of a realm that ours knows no way to."""
    link = realm(kdc, peer="host/beta.example.test@ELSEWHERE.TEST")
    link.up()
    link.run(5)
    failed(
        link.left, "knows no way to the realm of host/beta.example.test@ELSEWHERE.TEST", "trust each other"
    )


def test_unknown_peer(kdc: Kdc) -> None:
    """A name that the KDC does not know."""
    link = realm(kdc, peer="nobody.example.test")
    link.up()
    link.run(5)
    failed(link.left, "does not know the service host/nobody.example.test", "addprinc")


def test_peer_is_somebody_else(kdc: Kdc) -> None:
    """The rule expects a host whose key the other end does not have: both learn it, and at once."""
    name = "host/gamma.example.test"
    kdc.principal(name)
    try:
        link = realm(kdc, peer="gamma.example.test")
        link.up()
        link.run(1)
        failed(link.right, "has no key for the name the peer's ticket is for", "into the keytab")
        failed(link.left, f"the peer has no key for {name}", "peer's keytab")
    finally:
        kdc.admin(f"delprinc -force {name}")


@pytest.fixture
def stale(kdc: Kdc) -> Iterator[Keytab]:
    """beta's keytab, after its key in the KDC has changed."""
    old = kdc.base / "beta-old.keytab"
    kdc.keytab(old.name, BETA)
    kdc.keytab("beta-new.keytab", BETA, fresh=True)
    yield fresh(kdc.load(old))
    (kdc.base / "beta.keytab").unlink()
    kdc.keytab("beta.keytab", BETA)
    for name in ("beta-old.keytab", "beta-new.keytab"):
        os.unlink(kdc.base / name)


def test_stale_keytab_of_the_responder(kdc: Kdc, stale: Keytab) -> None:
    """The commonest mistake of administrators; the initiator learns whose keytab it is."""
    link = realm(kdc, right=stale)
    link.up()
    link.run(1)
    failed(link.right, "beta-old.keytab is out of date", "ktadd -k")
    failed(link.left, "the peer's keytab is out of date", "peer's keytab anew")


def test_stale_keytab_of_the_initiator(kdc: Kdc, stale: Keytab) -> None:
    """It gets no ticket; the peer is not bothered with it."""
    link = realm(kdc, right=stale)
    link.up("net", "right")
    link.run(5)
    failed(link.right, "beta-old.keytab is out of date", f"ktadd -k {stale.path} {BETA}")


def test_kdc_that_is_down(kdc: Kdc) -> None:
    """The initiator says which service is missing; with tickets in hand it does not need it."""
    link = realm(kdc)
    link.up()
    link.run(5)
    cold = realm(kdc)
    kdc.stop()
    try:
        link.rekey(link.left)
        link.run(20)
        agree(link, ikes=1, pairs=1)
        cold.up()
        cold.run(5)
        failed(cold.left, "no KDC answers", "[realms] of krb5.conf")
    finally:
        kdc.start()
    cold.up()
    cold.run(5)
    assert cold.left.pairs


@CLOCKS
def test_responder_with_another_clock(kdc: Kdc, clock: str, reason: str, remedy: str, told: str) -> None:
    """Clocks are the commonest trouble with Kerberos; both administrators are led there."""
    link = realm(kdc)
    keytab = link.right.endpoint.env.credentials.material.keytab
    assert keytab is not None

    def elsewhere(question: Any) -> Any:
        if not isinstance(question, Authenticate):
            return None
        assert isinstance(question.side, KerberosAcceptor)
        assert question.token is not None
        return refusal_at(kdc, clock, keytab, question.token.data)

    link.right.asked = elsewhere
    link.up()
    link.run(1)
    failed(link.right, reason, remedy)
    failed(link.left, told, "NTP")


INITIATE = """
import json, sys, time
from pathlib import Path
from ikd.auth import Declined
from ikd.auth.files import load_material
from ikd.auth.kerberos import KerberosInitiator
from ikd.settings import IdentitySettings
path = Path(sys.argv[1])
keytab = load_material(path.parent, IdentitySettings(keytab=path.name), time.time()).keytab
try:
    KerberosInitiator(sys.argv[2], keytab, time.time).step(None)
except Declined as error:
    print(json.dumps([str(error), error.remedy]))
"""


def test_initiator_with_another_clock(kdc: Kdc) -> None:
    """The KDC refuses then."""
    link = realm(kdc)

    def elsewhere(question: Any) -> Any:
        if isinstance(question, Authenticate):
            path = str(kdc.base / "alpha.keytab")
            return Declined(*json.loads(kdc.python(INITIATE, path, BETA, clock="+600s")))
        return None

    link.left.asked = elsewhere
    link.up()
    link.run(5)
    failed(link.left, "the KDC's clock is another", "NTP")


def test_replayed_request(kdc: Kdc) -> None:
    """Somebody has recorded a negotiation and sends its token in one of his own."""
    link = realm(kdc)
    link.up()
    link.run(5)
    recorded = _token(link.flights[2].data)
    other = realm(kdc)

    def fate(flight: Flight) -> None:
        if flight.number == 2:
            flight.data = _with_token(flight.data, recorded)

    other.fate = fate
    other.up()
    other.run(1)
    failed(other.right, "was used before: a replay", "repeats")
    failed(other.left, "the peer says that our token is a replay", "are two hosts one principal")


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize(
    "data", [b"", b"\x60", b"NTLMSSP\x00", bytes(3000)], ids=["empty", "dot", "ntlm", "zero"]
)
def test_tokens_that_are_none(kdc: Kdc, number: int, data: bytes) -> None:
    """A stranger's octets never reach a traceback, and prove nothing."""
    link = realm(kdc)

    def fate(flight: Flight) -> None:
        if flight.number == number:
            flight.data = _with_token(flight.data, data)

    link.fate = fate
    link.up()
    link.run(60)
    for one in (link.left, link.right):
        assert not one.of(Broken)
        assert not one.of(PeerAuthenticated)
        assert not one.pairs
    (refused,) = link.named("right" if number == 2 else "left").failures
    assert "the peer sent" in refused.reason or "the peer's reply was altered" in refused.reason


def _token(data: bytes) -> bytes:
    payloads, _ = chain(Header.decode(data).next_payload, data[HEADER_SIZE:], PAYLOADS)
    (found,) = [one for one in payloads if isinstance(one, GssToken)]
    return found.token


def _with_token(data: bytes, token: bytes) -> bytes:
    payloads, _ = chain(Header.decode(data).next_payload, data[HEADER_SIZE:], PAYLOADS)
    changed = [GssToken(token=token) if isinstance(one, GssToken) else one for one in payloads]
    kind, octets = encode_chain(changed)
    fields = list(HEADER.unpack(data[:HEADER_SIZE]))
    fields[2], fields[-1] = kind, HEADER_SIZE + len(octets)
    return HEADER.pack(*fields) + octets
