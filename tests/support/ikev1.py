"""First messages of IKEv1 as others send them, written by hand from their descriptions."""

from __future__ import annotations

from hashlib import md5

COOKIE = bytes.fromhex("a1a2a3a4a5a6a7a8")


def transform(following: int, number: int, *attributes: str) -> bytes:
    """A transform of phase 1 with its attributes in hexadecimal."""
    body = bytes((number, 1, 0, 0)) + bytes.fromhex("".join(attributes))
    return bytes((following, 0)) + (len(body) + 4).to_bytes(2, "big") + body


def payload(following: int, body: bytes) -> bytes:
    """A payload with its generic header."""
    return bytes((following, 0)) + (len(body) + 4).to_bytes(2, "big") + body


def sa(*transforms: bytes) -> bytes:
    """The body of an SA payload with one proposal of phase 1."""
    proposal = bytes((1, 1, 0, len(transforms))) + b"".join(transforms)
    head = bytes.fromhex("00000001 00000001 0000")
    return head + (len(proposal) + 4).to_bytes(2, "big") + proposal


def first_message(body: bytes, *vendors: bytes) -> bytes:
    """A first message of main mode."""
    chain = payload(13 if vendors else 0, body)
    for n, one in enumerate(vendors, 1):
        chain += payload(13 if n < len(vendors) else 0, one)
    head = COOKIE + bytes(8) + bytes.fromhex("01 10 02 00 00000000")
    return head + (28 + len(chain)).to_bytes(4, "big") + chain


# Encryption, [key length,] hash, group, method, life in seconds; as an L2TP client of Windows 8 and later
_TAIL = "80030001 800b0001 000c000400007080"
WINDOWS = first_message(
    sa(
        transform(3, 1, "80010007 800e0100 80020002 80040014", _TAIL),
        transform(3, 2, "80010007 800e0080 80020002 80040013", _TAIL),
        transform(3, 3, "80010007 800e0100 80020002 8004000e", _TAIL),
        transform(3, 4, "80010005 80020002 8004000e", _TAIL),
        transform(0, 5, "80010005 80020002 80040002", _TAIL),
    ),
    bytes.fromhex("01528bbbc00696121849ab9a1c5b2a51 00000001"),  # supported keying modules
    bytes.fromhex("1e2b516905991c7d7c96fcbfb587e461 00000009"),  # MS NT5 ISAKMPOAKLEY
    md5(b"RFC 3947").digest(),
    md5(b"draft-ietf-ipsec-nat-t-ike-02\n").digest(),
    md5(b"FRAGMENTATION").digest(),
    md5(b"MS-Negotiation Discovery Capable").digest(),
    md5(b"Vid-Initial-Contact").digest(),
    md5(b"IKE CGA version 1").digest(),
)

# Encryption, hash, method, group, life: the transforms that ike-scan sends unless told otherwise
_SCANNED = [(5, 2, 2), (5, 1, 2), (1, 2, 2), (1, 1, 2), (5, 2, 1), (5, 1, 1), (1, 2, 1), (1, 1, 1)]
IKE_SCAN = first_message(
    sa(
        *(
            transform(
                3 if n < len(_SCANNED) else 0,
                n,
                f"8001{cipher:04x} 8002{digest:04x} 80030001 8004{group:04x} 800b0001 000c000400007080",
            )
            for n, (cipher, digest, group) in enumerate(_SCANNED, 1)
        )
    )
)
