"""Payloads that are not what their headers say, that are missing or out of place, as they have stopped other
daemons, said by an authenticated peer inside the encryption, to each protocol that has them.

If one of these fails, somebody who may have one tunnel ends those of others, or the daemon."""

from __future__ import annotations

import pytest
from support.endure import EVERY, LONG, Change, each, endure, of
from support.hostile import PROTOCOLS, Trial
from support.mutation import Raw, raw

from ikd.ikev2 import payloads as two
from ikd.isakmp import payloads as one

SIZES: dict[str, Change] = {
    "empty": each(lambda it: raw(it, data=b"")),
    "length 0": each(lambda it: raw(it, length=0)),
    "length 3": each(lambda it: raw(it, length=3)),
    "length 4": each(lambda it: raw(it, length=4)),
    "one too long": each(lambda it: raw(it, length=len(it.encode()) + 5)),
    "65535": each(lambda it: raw(it, length=0xFFFF)),
    "one empty payload more": lambda found: [*found, Raw(found[0].kind if found else 41, b"")],
    "none at all": lambda found: [],
    "two hundred of nothing": lambda found: [*found, *[Raw(43, b"")] * 200],
    "attributes that wrap": of(
        (one.SecurityAssociation, two.SecurityAssociation),
        lambda it: raw(it, data=it.encode()[:-4] + b"\x00\x0e\xff\xff"),
    ),
    "a proposal that wraps": of(
        (one.SecurityAssociation, two.SecurityAssociation),
        lambda it: raw(it, data=it.encode().replace(b"\x00\x00\x00", b"\x00\x00\xff", 1)),
    ),
    "a Delete of 65535 SPIs": lambda found: [*found, Raw(42, b"\3\4\xff\xff" + bytes(8))],
    "a Delete of SPIs of no length": lambda found: [*found, Raw(12, b"\0\0\0\1\3\0\xff\xff")],
}


@LONG
@EVERY
@pytest.mark.parametrize("size", SIZES)
def test_sizes(protocol: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A length is believed only where the octets are."""
    endure(Trial(monkeypatch, protocol), SIZES[size])


REQUIRED = {
    "ikev2": (33, 34, 35, 36, 37, 39, 40, 44, 45),
    "ikev1": (1, 4, 5, 6, 9, 10),
    "authip": (1, 4, 5, 8, 10, 129, 135),
}


@LONG
@pytest.mark.parametrize(
    ("protocol", "kind"), [(name, kind) for name in PROTOCOLS for kind in REQUIRED[name]]
)
def test_what_is_required_is_missing(protocol: str, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every message, IKE_AUTH and the like first of all."""
    endure(Trial(monkeypatch, protocol), each(lambda it: None if it.kind == kind else it))


OUT_OF_PLACE = {
    "EAP": Raw(48, b"\1\1\0\5\1"),
    "EAP that ends early": Raw(48, b"\1\1\xff\xff"),
    "configuration": Raw(47, b"\1\0\0\0\0\1\0\0\0\2\0\0"),
    "configuration that wraps": Raw(47, b"\1\0\0\0\0\1\xff\xff"),
    "attributes of mode configuration": Raw(14, b"\1\0\0\1\0\1\0\0"),
    "encryption in encryption": Raw(46, bytes(40)),
    "a fragment in encryption": Raw(53, b"\0\1\0\1" + bytes(40)),
    "a fragment of Microsoft's": Raw(132, b"\0\1\1\1" + bytes(40)),
    "a second CRYPTO": Raw(133, bytes(12)),
    "an unknown critical one": Raw(99, b"", critical=True),
}


@LONG
@EVERY
@pytest.mark.parametrize("which", OUT_OF_PLACE)
def test_payloads_out_of_place(protocol: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In front of every message's others, and behind."""
    more = OUT_OF_PLACE[which]
    endure(Trial(monkeypatch, protocol), lambda found: [*found[:1], more, *found[1:], more])
