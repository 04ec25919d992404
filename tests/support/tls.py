"""Both ends of a TLS handshake in tokens, with certificates of one authority."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.certificates import (
    CERTIFICATE,
    DAY,
    NOW,
    authority,
    below,
    host,
    key,
    own,
)

from ikd import pki
from ikd.auth import Authenticator, Declined, Step, Token
from ikd.auth.certificate import HostCertificate
from ikd.auth.chain import Trust
from ikd.auth.tls import SecretKind, TlsAcceptor, TlsCredentials, TlsInitiator
from ikd.pki import Pair
from policy.rules import AuthMethod

ROOT = authority()
SUB = below(ROOT, "Sub")
MINE, THEIRS = host(SUB, "i.example"), host(SUB, "a.example", number=1)
TRUST = Trust([ROOT.certificate])
HEALTH = AuthMethod("certificate", health=True)
Sides = tuple[Authenticator, Authenticator]


def clock() -> float:
    """The tests' time, which is not the machine's."""
    return NOW


def issued(
    name: str = "i.example", *, eku: tuple[str, ...] = ("ike",), ca: Pair = SUB, number: int = 0
) -> Pair:
    """A host certificate with these usages."""
    return pki.issue(ca, name, [name], now=NOW - DAY, key=key(number=number), eku=eku)


def sides(
    initiator: HostCertificate | None = None,
    acceptor: HostCertificate | None = None,
    *,
    trusts: tuple[Trust, Trust] = (TRUST, TRUST),
    methods: tuple[AuthMethod, ...] = (CERTIFICATE,),
    mutual: tuple[bool, bool] = (True, True),
    secrets: tuple[SecretKind, SecretKind] = ("exporter", "exporter"),
    old: bool = False,
) -> Sides:
    """Both ends. `trusts`, `mutual` and `secrets` are the initiator's and the acceptor's; `methods` the
    acceptor's."""
    one = TlsCredentials(initiator or own(MINE, SUB), trusts[0], old=old)
    other = TlsCredentials(acceptor or own(THEIRS, SUB), trusts[1], old=old)
    return (
        TlsInitiator(one, (CERTIFICATE,), clock, mutual=mutual[0], secret=secrets[0]),
        TlsAcceptor(other, methods, clock, mutual=mutual[1], secret=secrets[1]),
    )


def talk(
    both: Sides, change: Callable[[int, bytes], bytes] = lambda number, data: data
) -> tuple[Step, Step, list[bytes]]:
    """The whole exchange: the last step of each, and the tokens. `change` is a man in the middle."""
    tokens: list[bytes] = []
    last = [Step(), Step()]
    token: Token | None = None
    for turn in range(12):
        step = both[turn % 2].step(token)
        last[turn % 2] = step
        if step.token is None:
            return last[0], last[1], tokens
        tokens.append(change(len(tokens), step.token.data))
        token = Token(tokens[-1])
    raise AssertionError("an exchange without end")


def refusal(both: Sides, change: Callable[[int, bytes], bytes] = lambda number, data: data) -> Declined:
    """Why the exchange came to nothing."""
    with pytest.raises(Declined) as caught:
        talk(both, change)
    return caught.value


def refused_by_peer(side: Authenticator, alert: bytes) -> Declined:
    """What the other side makes of an alert."""
    with pytest.raises(Declined) as caught:
        side.step(Token(alert))
    return caught.value
