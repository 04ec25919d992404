"""ikd.auth.credentials: which certificates and methods of a rule TLS gets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.certificates import (
    CERTIFICATE,
    DAY,
    NOW,
    PSK,
    key,
    own,
    rule,
)
from support.tls import HEALTH, MINE, ROOT, SUB, THEIRS, clock, refusal, talk

from ikd import pki
from ikd.auth import ANONYMOUS, Declined
from ikd.auth.certificate import HostCertificate
from ikd.auth.credentials import Credentials, Material
from policy.rules import AuthMethod

RULE = rule(CERTIFICATE)
ALICE = pki.issue(
    SUB, "alice@corp.example", ["alice@corp.example"], now=NOW - DAY, key=key(number=2), eku=["client"]
)
WELL = pki.issue(SUB, "i.example", ["i.example"], now=NOW, days=1, key=key(number=3), eku=["health"])
LONG = pki.issue(SUB, "long.example", ["long.example"], now=NOW, days=900, key=key(number=4))
USER = AuthMethod("user-certificate")


def credentials(*hosts: HostCertificate, user: HostCertificate | None = None) -> Credentials:
    """What a host has."""
    return Credentials(Material(hosts=hosts, user=user, anchors=(ROOT.certificate,)), clock)


HERE = credentials(own(WELL, SUB), own(MINE, SUB), own(LONG, SUB), user=own(ALICE, SUB))
THERE = credentials(own(THEIRS, SUB))


def test_certificates_in_the_order_in_which_to_try_them() -> None:
    """A retry would show the same certificate again, or one that does not fit."""
    assert [h.leaf for h in HERE.tls_hosts((CERTIFICATE,))] == [
        LONG.certificate,
        MINE.certificate,
        WELL.certificate,
    ]
    assert [h.leaf for h in HERE.tls_hosts((HEALTH,))] == [WELL.certificate]
    assert [h.leaf for h in HERE.tls_hosts((HEALTH, CERTIFICATE))] == [
        WELL.certificate, LONG.certificate, MINE.certificate]  # fmt: skip
    assert [h.leaf for h in HERE.tls_hosts((USER,), user=True)] == [ALICE.certificate]
    assert THERE.tls_hosts((USER,), user=True) == ()
    assert THERE.tls_hosts((HEALTH,)) == ()


def test_machines_by_a_rule() -> None:
    """The first certificate that fits is used, or the one that the caller chose."""
    for chosen, name in ((None, "long.example"), (HERE.tls_hosts((CERTIFICATE,))[1], "i.example")):
        initiator = HERE.tls_initiator(RULE, (CERTIFICATE,), host=chosen, secret="master-secret")
        acceptor = THERE.tls_acceptor(RULE, (CERTIFICATE,), secret="master-secret")
        first, second, _ = talk((initiator, acceptor))
        assert first.peer is not None
        assert second.peer is not None
        assert (str(first.peer.identity), str(second.peer.identity)) == ("a.example", name)
        assert len(second.key) == 48


def test_user_to_a_machine() -> None:
    """A user proves itself to the machine; its rule says what the user's certificate must be, not the
    machine's."""
    narrow = replace(USER, eku=("1.3.6.1.5.5.7.3.2",))
    initiator = HERE.tls_initiator(RULE, (narrow,), user=True)
    acceptor = THERE.tls_acceptor(RULE, (narrow,), user=True)
    first, second, _ = talk((initiator, acceptor))
    assert first.peer is not None
    assert second.peer is not None
    assert str(first.peer.identity) == "a.example"
    assert str(second.peer.identity) == "alice@corp.example"
    assert second.peer.description.startswith("user cert CN=alice@corp.example")
    machine = HERE.tls_initiator(RULE, (CERTIFICATE,))
    assert "lacks the extended key usage" in str(
        refusal((machine, THERE.tls_acceptor(RULE, (narrow,), user=True)))
    )


def test_health_of_both() -> None:
    """A host without a health certificate would pass, or one that has one show another."""
    with pytest.raises(Declined, match=r"our certificate CN=a\.example lacks .* \(system health\)") as caught:
        THERE.tls_acceptor(RULE, (HEALTH,))
    assert "identity.certificate" in caught.value.remedy
    second = talk((HERE.tls_initiator(RULE, (HEALTH,)), HERE.tls_acceptor(RULE, (HEALTH,))))[1]
    assert second.peer is not None
    assert second.peer.health
    assert second.peer.expires == WELL.certificate.not_valid_after_utc.timestamp()
    peer = THERE.tls_initiator(RULE, (CERTIFICATE,))
    assert "system health" in str(refusal((peer, HERE.tls_acceptor(RULE, (HEALTH,)))))


def test_one_way_needs_no_certificate_of_the_initiator() -> None:
    """A host without certificates could not use a server's."""
    initiator = credentials().tls_initiator(RULE, (CERTIFICATE,), mutual=False)
    first, second, _ = talk((initiator, THERE.tls_acceptor(RULE, (CERTIFICATE,), mutual=False)))
    assert first.peer is not None
    assert second.peer == ANONYMOUS


def test_nothing_to_prove_oneself_with() -> None:
    """The administrator would not know which key of which file is missing."""
    for call, said, remedy in (
        (
            lambda: credentials().tls_initiator(RULE, (CERTIFICATE,)),
            "this host has no cert",
            "identity.certificate",
        ),
        (
            lambda: credentials().tls_acceptor(RULE, (CERTIFICATE,)),
            "this host has no cert",
            "identity.certificate",
        ),
        (
            lambda: THERE.tls_initiator(RULE, (USER,), user=True),
            "the user of this host",
            "identity.user_key",
        ),
    ):
        with pytest.raises(Declined, match=said) as caught:
            call()
        assert remedy in caught.value.remedy
    late = Credentials(HERE.material, lambda: NOW + 2000 * DAY)
    with pytest.raises(Declined, match="not valid now"):
        late.tls_initiator(RULE, (USER,), user=True)


@pytest.mark.parametrize("methods", [(), (PSK,), (CERTIFICATE, AuthMethod("kerberos"))])
def test_other_methods_narrow_nothing(methods: tuple[AuthMethod, ...]) -> None:
    """A rule that wants Kerberos would take any certificate."""
    for make in (HERE.tls_initiator, THERE.tls_acceptor):
        with pytest.raises(Declined, match='rule "office" does not'):
            make(RULE, methods)
