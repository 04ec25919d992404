"""Proofs of IKEv1 over HASH_I and HASH_R: what exactly is signed."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from ikd.auth import hashed, signature


@pytest.mark.parametrize(
    ("curve", "method", "algorithm"),
    [
        (ec.SECP256R1(), signature.ECDSA_256, hashes.SHA256()),
        (ec.SECP384R1(), signature.ECDSA_384, hashes.SHA384()),
        (ec.SECP521R1(), signature.ECDSA_521, hashes.SHA512()),
    ],
)
def test_ecdsa_signs_the_hash_itself(
    curve: ec.EllipticCurve, method: int, algorithm: hashes.HashAlgorithm
) -> None:
    """Hashing HASH_I once more makes a signature that strongSwan does not accept: RFC 2409 section 5.1 has it
    made with the hash of the signature method, and signed as it is."""
    assert hashed.hash_of(method) == algorithm.name
    digest = hashlib.new(algorithm.name, b"HASH_I").digest()
    key = ec.generate_private_key(curve)
    data = hashed.sign(key, method, digest)
    half = (curve.key_size + 7) // 8
    assert len(data) == 2 * half
    der = encode_dss_signature(int.from_bytes(data[:half], "big"), int.from_bytes(data[half:], "big"))
    key.public_key().verify(der, digest, ec.ECDSA(Prehashed(algorithm)))
