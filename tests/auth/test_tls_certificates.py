"""ikd.auth.tls: certificates that will not do, and hosts without any."""

from __future__ import annotations

import pytest
from support.certificates import (
    CERTIFICATE,
    DAY,
    NOW,
    authority,
    below,
    build,
    der,
    dns,
    host,
    key,
    own,
)
from support.tls import (
    HEALTH,
    MINE,
    ROOT,
    SUB,
    THEIRS,
    TRUST,
    Sides,
    clock,
    issued,
    refusal,
    refused_by_peer,
    sides,
    talk,
)

from ikd import pki
from ikd.auth import ANONYMOUS, Declined
from ikd.auth.certificate import HostCertificate
from ikd.auth.chain import Trust
from ikd.auth.health import SYSTEM_HEALTH
from ikd.auth.revocation import CrlCheck
from ikd.auth.tls import TlsAcceptor, TlsCredentials, TlsInitiator
from policy.rules import AuthMethod

OTHER = authority("Other", number=107)
LEAF = key(number=5)


def of(start: float, end: float) -> HostCertificate:
    """A certificate with this validity."""
    found = build(SUB, "i.example", public=LEAF, extensions=[dns("i.example")], start=start, end=end)
    return HostCertificate((found, SUB.certificate), LEAF)


REVOKED = Trust([ROOT.certificate], [pki.make_crl(SUB, [MINE.certificate], NOW)])
NO_LIST = Trust([ROOT.certificate], crl_check=CrlCheck.REQUIRE)


@pytest.mark.parametrize(
    ("bad", "trust", "method", "reason", "remedy", "told"),
    [
        (own(MINE, SUB), Trust([OTHER.certificate]), CERTIFICATE,
         "issuer CN=Root of certificate CN=Sub is not trusted; trusted are: CN=Other", "identity.trust",
         "does not trust the issuer of our certificate"),
        (own(MINE), TRUST, CERTIFICATE, "issuer CN=Sub of certificate CN=i.example is not trusted",
         "intermediate", "does not trust the issuer"),
        (own(MINE, SUB), Trust([]), CERTIFICATE, "trusts no certificate authority", "identity.trust",
         "does not trust the issuer"),
        (of(NOW - DAY, NOW - 3600), TRUST, CERTIFICATE, "certificate CN=i.example expired 2027-01-15",
         "renew it", "says that our certificate has expired"),
        (of(NOW + 3600, NOW + DAY), TRUST, CERTIFICATE, "not valid before 2027-01-15", "clocks",
         "does not accept our certificate"),
        (own(MINE, SUB), REVOKED, CERTIFICATE, "certificate CN=i.example was revoked", "new certificate",
         "does not accept our certificate"),
        (own(MINE, SUB), NO_LIST, CERTIFICATE, "no current revocation list of CN=Sub", "identity.crls",
         "does not accept our certificate"),
        (own(issued(eku=("1.3.6.1.5.5.7.3.3",)), SUB), TRUST, CERTIFICATE, "is for other uses",
         "authentication set", "does not accept our certificate"),
        (own(MINE, SUB), TRUST, HEALTH, f"lacks the extended key usage {SYSTEM_HEALTH}", "authentication set",
         "does not accept our certificate"),
        (own(MINE, SUB), TRUST, AuthMethod("certificate", ca="CN=Other"), "does not come from CN=Other",
         "authentication set", "does not accept our certificate"),
        (own(MINE, SUB), TRUST, AuthMethod("certificate", signing="rsa"), "wanted is rsa",
         "authentication set", "does not accept our certificate"),
    ],
    ids=["CA", "chain", "nobody", "expired", "early", "revoked", "list", "usage", "health", "ca=", "signing"],
)  # fmt: skip
@pytest.mark.parametrize("who", ["initiator", "acceptor"])
def test_certificate_that_will_not_do(
    bad: HostCertificate, trust: Trust, method: AuthMethod, reason: str, remedy: str, told: str, who: str
) -> None:
    """Somebody would be let in with it; or the administrator, of either host, not know what to mend."""
    proving = TlsCredentials(bad, TRUST)
    judging = TlsCredentials(own(THEIRS, SUB), trust)
    if who == "initiator":
        both: Sides = TlsInitiator(proving, (CERTIFICATE,), clock), TlsAcceptor(judging, (method,), clock)
    else:
        both = TlsInitiator(judging, (method,), clock), TlsAcceptor(proving, (CERTIFICATE,), clock)
    declined = refusal(both)
    assert reason in str(declined)
    assert remedy in declined.remedy
    assert declined.token[:5] == bytes.fromhex("1503030002")  # an alert, and no other octet
    assert len(declined.token) == 7
    other = both[0] if who == "initiator" else both[1]
    answer = refused_by_peer(other, declined.token)
    assert told in str(answer)
    assert answer.remedy


def test_certificate_the_library_does_not_like() -> None:
    """A refusal of the library alone would have no words."""
    limited = pki.make_ca("Narrow", NOW - DAY, key=key(number=105), issuer=ROOT, path_length=0)
    deep = below(limited, "Deep", number=106)
    declined = refusal(sides(own(host(deep, "i.example"), deep, limited)))
    assert str(declined) == "certificate CN=Narrow is not acceptable: path length exceeded"


def test_key_of_another_certificate_proves_nothing() -> None:
    """Certificates are public: whoever has seen one could show it."""
    root = authority("CA", "rsa-2048")  # its signatures are all of one length
    good, other = (
        build(root, "i.example", public=key(number=n), extensions=[dns("i.example")], serial=1000 + n)
        for n in (0, 13)
    )
    thief = HostCertificate((other,), key(number=13))
    both = sides(thief, trusts=(TRUST, Trust([root.certificate])))
    shown, claimed = der(other)[0], der(good)[0]
    assert len(shown) == len(claimed)
    declined = refusal(both, lambda number, data: data.replace(shown, claimed))
    assert str(declined) == "the peer's signature does not fit its certificate"
    with pytest.raises(Declined, match=r"cannot be used in TLS: key values mismatch"):
        sides(HostCertificate((good,), key(number=13)))[0].step(None)


def test_peer_without_a_certificate() -> None:
    """Who has none would pass for proven."""
    both = sides(mutual=(False, True))
    declined = refusal(both)
    assert str(declined) == "the peer has sent no certificate, and one is wanted"
    assert "[identity]" in declined.remedy
    assert "a certificate that we did not send" in str(refused_by_peer(both[0], declined.token))


def test_host_without_a_certificate() -> None:
    """Nothing to prove oneself with must be said, in both roles, and does not hinder one-way TLS."""
    nothing = TlsCredentials(None, TRUST)
    for side, token in (
        (TlsInitiator(nothing, (CERTIFICATE,), clock), None),
        (TlsAcceptor(nothing, (CERTIFICATE,), clock, mutual=False), sides()[0].step(None).token),
    ):
        with pytest.raises(Declined, match="no certificate to prove itself with") as caught:
            side.step(token)
        assert "[identity]" in caught.value.remedy
    one_way = TlsInitiator(nothing, (CERTIFICATE,), clock, mutual=False), sides(mutual=(False, False))[1]
    assert talk(one_way)[1].peer == ANONYMOUS
    assert "without certificate" in repr(nothing)


def test_certificate_is_shown_to_nobody_before_he_has_proven_himself() -> None:
    """Any responder could find out who this host is."""
    declined = refusal(sides(acceptor=own(issued("a.example", eku=("1.3.6.1.5.5.7.3.3",), number=1), SUB)))
    assert der(MINE)[0] not in declined.token
