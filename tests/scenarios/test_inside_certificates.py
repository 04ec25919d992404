"""Certificates of somebody who goes on to prove himself: nested, too many, or costly to read and to verify
with.

If one of these fails, somebody who may have one tunnel ends those of others, or the daemon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from support import certificates
from support.endure import EVERY, LONG, Payloads, endure
from support.hostile import Trial
from support.link import POSIX
from support.mutation import Raw
from support.phases import authority, certified

from ikd import pki
from ikd.auth.certificate import HostCertificate
from ikd.ikev2 import payloads as two
from ikd.isakmp import payloads as one


@dataclass(frozen=True)
class Keyless:
    """A public key, where a pair is expected."""

    key: rsa.RSAPublicKey

    def public_key(self) -> rsa.RSAPublicKey:
        return self.key


def _huge(bits: int, exponent: int) -> bytes:
    """A certificate of the trusted authority for a key that nobody has the other half of."""
    public = rsa.RSAPublicNumbers(exponent, (1 << bits) - 159).public_key()
    stand_in: Any = Keyless(public)
    return _der(pki.issue(authority(), "CN=left.example", ["left.example"], now=POSIX - 3600, key=stand_in))


def _der(pair: pki.Pair) -> bytes:
    return pair.certificate.public_bytes(Encoding.DER)


@cache
def _ladder(steps: int) -> tuple[pki.Pair, ...]:
    """Authorities below one another, the trusted one left out."""
    found: list[pki.Pair] = [authority()]
    for n in range(steps):
        key = certificates.key("ecdsa-p256", 500 + n)
        found.append(pki.make_ca(f"CN=Step {n}", POSIX - 3600, key=key, issuer=found[-1]))
    return tuple(found[1:])


CERTIFICATES: dict[str, Callable[[bytes], list[tuple[int, bytes]]]] = {
    "RSA of 16384 bits": lambda own: [(4, _huge(16384, 65537))],
    "RSA with a huge exponent": lambda own: [(4, _huge(3000, (1 << 2999) + 1))],
    "exponent 3": lambda own: [(4, _huge(2048, 3))],
    "forty steps": lambda own: [(4, own), *((4, _der(step)) for step in _ladder(40))],
    "the same a hundred times": lambda own: [(4, own)] * 100,
    "wrapped in itself": lambda own: [(4, _wrapped(own, 200))],
    "PKCS #7": lambda own: [(1, _wrapped(own, 5)), (4, own)],
    "hash and URL": lambda own: [(12, bytes(20) + b"http://192.0.2.66/" + b"a" * 500), (4, own)],
    "cut": lambda own: [(4, own[: len(own) // 2])],
    "a length that wraps": lambda own: [(4, b"\x30\x84\xff\xff\xff\xff" + own)],
    "an endless length": lambda own: [(4, b"\x30\x80" * 2000)],
    "no octets": lambda own: [(4, b"")],
}


def _wrapped(data: bytes, times: int) -> bytes:
    """Sequences in sequences."""
    for _ in range(times):
        data = b"\x30\x82" + len(data).to_bytes(2, "big") + data
    return data


@LONG
@pytest.mark.parametrize("protocol", ["ikev2", "ikev1"])
@pytest.mark.parametrize("which", CERTIFICATES)
def test_certificates(protocol: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is costly to read or to verify with is declined before it costs (`support.hostile.MOST_SECONDS`);
    AuthIP has its certificates inside TLS."""

    def change(found: Payloads) -> Payloads:
        made: list[Any] = []
        for it in found:
            if isinstance(it, one.Certificate | two.Certificate):
                made += [Raw(it.kind, bytes((kind,)) + data) for kind, data in CERTIFICATES[which](it.data)]
            else:
                made.append(it)
        return made

    endure(Trial(monkeypatch, protocol), change)


def _costly() -> rsa.RSAPrivateKey:
    """A key whose public exponent is as long as its modulus: verifying costs what signing does."""
    numbers = certificates.key("rsa-2048").private_numbers()  # type: ignore[union-attr]
    p, q = numbers.p, numbers.q
    phi = (p - 1) * (q - 1)
    e = next(n for n in range(phi // 2 | 1, phi, 2) if gcd(n, phi) == 1)
    d = pow(e, -1, phi)
    halves = d % (p - 1), d % (q - 1), pow(q, -1, p)
    return rsa.RSAPrivateNumbers(p, q, d, *halves, rsa.RSAPublicNumbers(e, p * q)).private_key()


@pytest.mark.parametrize("protocol", ["ikev2", "authip"])
def test_a_huge_exponent_of_a_key_that_is_there(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a good signature by it, and inside TLS, too."""
    key = _costly()
    leaf = pki.issue(authority(), "CN=left.example", ["left.example"], now=POSIX - 3600, key=key)
    material = replace(certified("left"), hosts=(HostCertificate((leaf.certificate,), key),))
    trial = Trial(monkeypatch, protocol, material=material)
    trial.link.up("net")
    trial.link.run(200)
    trial.unharmed()
    assert not trial.victim.pairs
    assert "absurd exponent" in " ".join(failure.reason for failure in trial.victim.failures)
    trial.served()
    trial.over()


@EVERY
def test_a_ladder_of_authorities(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real chain, each certificate good: it is too long, whatever carries it."""
    steps = _ladder(40)
    key = certificates.key("ecdsa-p256")
    leaf = pki.issue(steps[-1], "CN=left.example", ["left.example"], now=POSIX - 3600, key=key)
    chain = (leaf.certificate, *(step.certificate for step in reversed(steps)))
    material = replace(certified("left"), hosts=(HostCertificate(chain, key),))
    trial = Trial(monkeypatch, protocol, material=material)
    trial.link.up("net")
    trial.link.run(200)
    trial.unharmed()
    assert not trial.victim.pairs
    trial.served()
    trial.over()
