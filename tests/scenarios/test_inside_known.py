"""What has stopped other daemons, said by an authenticated peer inside the encryption, to each protocol that
has it; and what the runs of `test_inside` have found here.

If one of these fails, somebody who may have one tunnel ends those of others, or the daemon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from support import certificates
from support.hostile import PROTOCOLS, THIRD, Trial
from support.link import POSIX, Link, story
from support.mutation import Raw, raw
from support.phases import authority, certified, sets

from ikd import pki
from ikd.auth.certificate import HostCertificate
from ikd.authip.message import status as status_a
from ikd.authip.numbers import RELIABLE, Subject
from ikd.authip.numbers import Exchange as ExchangeA
from ikd.ikev1.message import status as status_1
from ikd.ikev2 import payloads as two
from ikd.ikev2.numbers import Exchange as Exchange2
from ikd.isakmp import payloads as one
from ikd.isakmp.numbers import Exchange as Exchange1

Payloads = Sequence[Any]
Change = Callable[[Payloads], Payloads]
LONG = pytest.mark.long
EVERY = pytest.mark.parametrize("protocol", PROTOCOLS)
INFORMATIONAL = {
    "ikev2": Exchange2.INFORMATIONAL,
    "ikev1": Exchange1.INFORMATIONAL,
    "authip": ExchangeA.NOTIFY,
}


def each(change: Callable[[Any], Any]) -> Change:
    """Change every payload alone; None leaves it out."""
    return lambda found: [made for it in found if (made := change(it)) is not None]


def of(kinds: tuple[type, ...], change: Callable[[Any], Any]) -> Change:
    """Change payloads of some classes only."""
    return each(lambda it: change(it) if isinstance(it, kinds) else it)


def endure(trial: Trial, change: Change, fragment: Callable[[bytes], bytes] = bytes) -> None:
    """Let the hostile host do it from the first message on, as either end, and then in everything that can be
    done with an SA that has come up without; the victim goes on serving others, and forgets."""
    link, victim, hostile = trial.link, trial.victim, trial.hostile
    trial.change, trial.fragment = change, fragment
    for side in (hostile, victim):
        link.up("net", side)
        link.run(2)
        trial.unharmed()
    trial.served()
    for side in (hostile, victim):
        trial.change, trial.fragment = tuple, bytes
        for ike in list(victim.ikes):
            link.perform(victim, victim.endpoint.close(ike, link.now, "a test"))
        link.run(300)
        link.up("net")
        link.run(1)
        assert victim.pairs, trial.told()
        trial.change, trial.fragment = change, fragment
        for begin in (
            lambda it: link.up("net1", it),
            link.rekey_child,
            link.rekey,
            link.close_child,
            link.close,
        ):
            begin(side)
            link.run(1)
            trial.unharmed()
        link.run(100)
        trial.unharmed()
    trial.served()
    trial.over()


# Payloads that are not what their headers say ---------------------------------------------------------------

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


# Values -----------------------------------------------------------------------------------------------------

PUBLIC: dict[str, Callable[[bytes], bytes]] = {
    "zero": lambda data: bytes(len(data)),
    "one": lambda data: bytes(len(data) - 1) + b"\1",
    "all ones": lambda data: b"\xff" * len(data),
    "short": lambda data: data[:-1],
    "long": lambda data: data + b"\0",
    "one octet": lambda data: b"\2",
    "twisted": lambda data: data[: len(data) // 2] * 2,  # not on the curve
}
PFS = sets(quick='["aes128 sha256 p256"]')


@LONG
@EVERY
@pytest.mark.parametrize("which", PUBLIC)
def test_public_values(protocol: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside their group, in phase 1 and with PFS in phase 2: nobody computes with them."""
    trial = Trial(monkeypatch, protocol, crypto=PFS)
    change = PUBLIC[which]
    endure(trial, of((one.KeyExchange, two.KeyExchange), lambda it: replace(it, public=change(it.public))))


@LONG
@EVERY
@pytest.mark.parametrize("what", ["nonce", "public value", "both", "everything"])
def test_reflection(protocol: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the victim has sent comes back as the peer's own."""
    trial = Trial(monkeypatch, protocol, crypto=PFS)
    victims: dict[int, Any] = {}
    hostile = trial.is_hostile

    def saw(random: object, payloads: Payloads) -> Payloads:
        if hostile(random):
            return list(trial.change(payloads))
        victims.update({it.kind: it for it in payloads})
        return payloads

    monkeypatch.setattr(trial, "changed", saw)
    kinds = {"nonce": (10, 40), "public value": (4, 34), "both": (4, 10, 34, 40), "everything": range(256)}
    endure(trial, each(lambda it: victims.get(it.kind, it) if it.kind in kinds[what] else it))


def _backwards(it: Any) -> Any:
    low, high = b"\x0a\1\0\xff", b"\x0a\1\0\0"
    if isinstance(it, one.Identification):
        return replace(it, type=7, data=low + high)
    return replace(
        it, ranges=(two.SelectorRange(type=7, protocol=0, body=bytes(2) + b"\xff\xff" + low + high),)
    )


def _ports(it: Any) -> Any:
    if isinstance(it, one.Identification):
        return replace(it, type=4, protocol=0, port=500, data=b"\x0a\1\0\0\xff\0\xff\0")  # a mask with a hole
    body = b"\xff\xff\0\1" + b"\x0a\1\0\0" + b"\x0a\1\0\xff"
    return replace(it, ranges=(two.SelectorRange(type=7, protocol=17, body=body),) * 255)


def _family(it: Any) -> Any:
    if isinstance(it, one.Identification):
        return replace(it, type=6, data=bytes(15) + b"\1" + bytes(16))
    return replace(it, ranges=(two.SelectorRange(type=8, protocol=0, body=b"\0\0\xff\xff" + bytes(32)),))


def _whole(it: Any) -> Any:
    if isinstance(it, one.Identification):
        return replace(it, type=4, data=bytes(8))
    everything = two.SelectorRange(type=7, protocol=0, body=b"\0\0\xff\xff" + bytes(4) + b"\xff" * 4)
    return replace(it, ranges=(everything,))


SELECTORS = {"ends before it starts": _backwards, "strange ports": _ports, "IPv6": _family, "all": _whole}


@LONG
@EVERY
@pytest.mark.parametrize("which", SELECTORS)
def test_traffic_selectors(protocol: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They give nothing that policy does not: `support.hostile.allowed` looks at every pair."""
    kinds = (one.Identification, two.TrafficSelectorsI, two.TrafficSelectorsR)
    endure(Trial(monkeypatch, protocol), of(kinds, SELECTORS[which]))


LIVES: dict[str, tuple[int | bytes, ...]] = {
    "zero": (0, bytes(4)),
    "one": (1,),
    "all ones": (0xFFFF, b"\xff" * 4),
    "64 bits": (b"\xff" * 8,),
    "a thousand octets": (b"\xff" * 1000,),
    "sign": (b"\x80\0\0\0",),
    "nothing": (b"",),
}


@LONG
@pytest.mark.parametrize("protocol", ["ikev1", "authip"])
@pytest.mark.parametrize("which", LIVES)
@pytest.mark.parametrize("kind", [1, 2])
def test_lifetimes(protocol: str, which: str, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds and kilobytes without a bound: nothing wraps, and nothing rekeys in a loop."""
    more = tuple(pair for life in LIVES[which] for pair in ((1, kind), (2, life)))  # of phase 2
    main = tuple(pair for life in LIVES[which] for pair in ((11, kind), (12, life)))

    def change(it: Any) -> Any:
        def longer(row: Any, attributes: Any) -> Any:
            return replace(row, attributes=(*attributes, *row.attributes))  # what is said first counts

        proposals = tuple(
            replace(
                row, transforms=tuple(longer(t, main if row.protocol == 1 else more) for t in row.transforms)
            )
            for row in it.proposals
        )
        return replace(it, proposals=proposals)

    trial = Trial(monkeypatch, protocol, crypto=sets(lifetime='{ quick_bytes = "never" }'))
    endure(trial, of((one.SecurityAssociation,), change))


@pytest.mark.parametrize("value", [bytes(4), b"\xff" * 4, b"", b"\1" * 8])
def test_lifetime_notifies(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTH_LIFETIME (RFC 4478) and the RESPONDER-LIFETIME of IKEv1, which say the same of theirs."""
    endure(Trial(monkeypatch, "ikev2"), lambda found: [*found, two.Notify(type=16403, spi=b"", data=value)])
    told = status_1(24576, b"\x80\1\0\1\0\2" + len(value).to_bytes(2, "big") + value, 3, b"1234")
    endure(Trial(monkeypatch, "ikev1"), lambda found: [*found, told])


# Others' SAs ------------------------------------------------------------------------------------------------


def test_no_pair_of_nobody_is_rekeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """N(REKEY_SA) with an SPI that is not there, is a third host's, or is of a strange size."""
    trial, other = _beside_a_third(monkeypatch, "ikev2")
    theirs = other.left.pairs[0].inbound.spi.to_bytes(4, "big")
    before = set(map(id, trial.victim.database.pairs()))
    for protocol in (0, 1, 2, 3, 255):
        for spi in (b"\1\2\3\4", theirs, b"", bytes(4), b"\xff" * 8, bytes(255)):
            rekey = two.Notify(type=16393, protocol=protocol, spi=spi)
            trial.change = lambda found, rekey=rekey: [  # type: ignore[misc]
                rekey,
                *[it for it in found if getattr(it, "type", 0) != 16393],
            ]
            trial.link.rekey_child(trial.hostile)
            trial.link.run(1)
            trial.unharmed()
            assert before <= set(map(id, trial.victim.database.pairs()))
    _still_there(trial, other)


@EVERY
def test_a_delete_for_the_sas_of_others(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SPIs of a third host's pairs and of its main-mode SA, from the victim's view and from its own."""
    trial, other = _beside_a_third(monkeypatch, protocol)
    (pair,) = other.left.pairs
    (ike,) = other.left.ikes
    halves = [half.spi.to_bytes(4, "big") for half in (pair.inbound, pair.outbound)]
    for payload, number in _deletions(protocol, halves, (ike.spi_i, ike.spi_r)):
        assert trial.say(INFORMATIONAL[protocol], payload, number=number)
        trial.link.run(0.1)
    trial.unharmed()
    _still_there(trial, other)


def _deletions(protocol: str, halves: list[bytes], spis: tuple[bytes, bytes]) -> list[tuple[Any, int | None]]:
    if protocol == "ikev2":
        found: list[Any] = [two.Delete(protocol=n, spis=tuple(halves)) for n in (2, 3)]
        return [(it, None) for it in (*found, two.Delete(protocol=3, spis=spis))]
    if protocol == "ikev1":
        made = [one.Delete(protocol=n, spis=tuple(halves)) for n in (2, 3)]
        made += [one.Delete(protocol=n, spis=(b"".join(spis),)) for n in (1, 3)]
        return [(it, None) for it in made]
    numbers = [int.from_bytes(half, "big") for half in halves]
    return [(status_a(13807, Subject.QUICK, RELIABLE), number) for number in numbers]


def _beside_a_third(monkeypatch: pytest.MonkeyPatch, protocol: str) -> tuple[Trial, Link]:
    """A hostile host that is up, and another one with the same victim."""
    trial = Trial(monkeypatch, protocol)
    trial.link.up("net")
    trial.link.run(1)
    third = trial.third()
    other = trial.beside(third)
    other.up("net", third)
    other.run(1)
    trial.link.now = other.now
    assert third.pairs
    return trial, other


def _still_there(trial: Trial, other: Link) -> None:
    """The third host's SAs are at both ends."""
    other.now = trial.link.now
    other.run(1)
    (pair,) = other.left.pairs
    assert trial.victim.database.by_spi(pair.outbound.spi) is not None, trial.told() + story(other)
    assert [it for it in trial.victim.ikes if it.path.peer.address == THIRD]


# Fragments --------------------------------------------------------------------------------------------------

NUMBERS = {
    "number 0": lambda number, total: (0, total),
    "beyond the total": lambda number, total: (total + 1, total),
    "total 0": lambda number, total: (number, 0),
    "too many": lambda number, total: (number, 0xFFFF),
    "all the first": lambda number, total: (1, total),
    "other totals": lambda number, total: (number, 127 - number),
    "the last alone": lambda number, total: (128, 128),
}


@pytest.mark.parametrize("which", NUMBERS)
def test_fragments_of_ikev2(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 7383 section 2.6: what cannot be counts for nothing, and what never becomes whole is forgotten."""

    def fragment(prefix: bytes) -> bytes:
        seen.append(prefix)
        made = NUMBERS[which](int.from_bytes(prefix[:2], "big"), int.from_bytes(prefix[2:], "big"))
        return b"".join(number.to_bytes(2, "big") for number in made)

    seen: list[bytes] = []
    endure(Trial(monkeypatch, "ikev2"), tuple, fragment)
    assert seen, "no message was large enough"


@pytest.mark.parametrize("protocol", ["ikev1", "authip"])
@pytest.mark.parametrize(("number", "flags"), [(0, 0), (0, 1), (255, 1), (255, 0), (1, 1), (65, 0)])
def test_fragments_of_microsoft(
    protocol: str, number: int, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MS-IKEE section 2.2.3 has them outside the encryption: a message of 100 fragments of one number."""
    trial = Trial(monkeypatch, protocol)
    trial.link.up("net")
    trial.link.run(1)
    (ike,) = trial.hostile.ikes
    body = bytes((0, 0, 0, 12, 0, 7, number, flags)) + b"1234"
    head = ike.spi_i + ike.spi_r + bytes((132, 16, INFORMATIONAL[protocol], 0)) + bytes(4)
    for n in range(100):
        data = head[:-1] + bytes((n,)) + (28 + len(body)).to_bytes(4, "big") + body
        trial.link.inject(trial.victim, data)
    trial.unharmed()
    trial.served()
    trial.over()


# Certificates -----------------------------------------------------------------------------------------------


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


# What was found here ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["ikev1", "authip"])
def test_an_answer_with_one_identity(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick mode has two or none; the reason named both, and there was no second."""
    trial = Trial(monkeypatch, protocol)
    trial.link.up("net")
    trial.link.run(1)

    def change(found: Payloads) -> Payloads:
        at = [n for n, it in enumerate(found) if isinstance(it, one.Identification)][1:]
        return [it for n, it in enumerate(found) if n not in at]

    trial.change = change
    trial.link.up("net1", trial.victim)
    trial.link.run(200)
    trial.unharmed()
    assert trial.victim.failures
    assert not [pair for pair in trial.victim.pairs if pair.rule == "net1"]


@pytest.mark.parametrize("protocol", ["ikev1", "authip"])
def test_what_a_deleted_sa_has_left_can_be_closed(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer of AuthIP may delete the main-mode SA and keep its quick-mode SAs: they stay, until we close
    it."""
    trial = Trial(monkeypatch, protocol)
    link, victim = trial.link, trial.victim
    link.up("net")
    link.run(1)
    deletion: Any = status_a(13807, Subject.MAIN, RELIABLE)
    if protocol == "ikev1":
        (ike,) = trial.hostile.ikes
        deletion = one.Delete(protocol=1, spis=(ike.spi_i + ike.spi_r,))
    assert trial.say(INFORMATIONAL[protocol], deletion)
    link.run(30)
    for ike in list(victim.ikes):
        link.perform(victim, victim.endpoint.close(ike, link.now, "a test"))
    link.run(200)
    assert not victim.ikes, trial.told()
    assert not victim.pairs, trial.told()


@EVERY
def test_a_deletion_that_nobody_acknowledges_outlives_the_lifetime(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of an SA that is being deleted runs out meanwhile: it was looked at again and again."""
    trial = Trial(monkeypatch, protocol)
    link, victim = trial.link, trial.victim
    link.up("net")
    link.run(1)
    (ike,) = victim.ikes
    ike.life.hard_at = link.now + 1
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.perform(victim, victim.endpoint.close(ike, link.now, "a test"))
    victim.calls[0] = 0  # type: ignore[attr-defined]
    link.run(600)
    assert victim.calls[0] < 300, trial.told()  # type: ignore[attr-defined]
    assert not victim.ikes


@EVERY
def test_pairs_replaced_without_a_pause(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been replaced goes on receiving for a moment, but no more of it than there may be pairs."""
    trial = Trial(monkeypatch, protocol)
    link, victim = trial.link, trial.victim
    victim.endpoint.env.settings = replace(victim.endpoint.env.settings, children=5)
    link.up("net")
    link.run(1)
    for _ in range(30):
        link.rekey_child(trial.hostile)
        link.run(0.05)
        assert len(list(victim.database.pairs())) <= 11
    link.run(30)
    trial.unharmed()
    assert len(victim.pairs) == 1
    trial.over()


@EVERY
def test_main_mode_sas_replaced_without_a_pause(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never deleted by the peer: those that have been replaced go by themselves, and there are never more
    of them than the limit."""
    trial = Trial(monkeypatch, protocol)
    link, victim = trial.link, trial.victim
    victim.endpoint.env.settings = replace(victim.endpoint.env.settings, associations=12)
    deletes = (one.Delete, two.Delete)
    for _ in range(40):
        link.up("net")
        link.run(0.2)
        trial.change = each(lambda it: None if isinstance(it, deletes) else it)
        link.rekey(trial.hostile)
        link.run(0.1)
        assert len(victim.ikes) <= 12, trial.told()
    trial.change = tuple
    trial.over()


def test_one_pair_replaced_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """N(REKEY_SA) for the same pair, which the peer never deletes, is no way around the limit."""
    trial = Trial(monkeypatch, "ikev2")
    link, victim, hostile = trial.link, trial.victim, trial.hostile
    victim.endpoint.env.settings = replace(victim.endpoint.env.settings, children=5)
    link.up("net")
    link.run(1)
    spi = hostile.pairs[0].inbound.spi.to_bytes(4, "big")
    rekey = two.Notify(type=16393, protocol=3, spi=spi)
    trial.change = lambda found: [rekey, *found] if any(it.kind == 33 for it in found) else found
    (ike,) = hostile.ikes
    rule = hostile.endpoint.policy.rule("net")
    assert rule is not None
    for _ in range(30):
        with hostile.endpoint._outputs as outputs:
            ike.create_child(rule, None, link.now)
        link.perform(hostile, outputs)
        link.run(0.1)
        assert len(list(victim.database.pairs())) <= 11
    trial.over()


@pytest.mark.parametrize("deleted", [False, True])
def test_acknowledgements_without_end(deleted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """AuthIP keeps a mark of each message it has encrypted, to know it when it is sent back: whoever asks for
    one after the other, even on an SA that it has deleted, uses up the keys, and not our memory."""
    monkeypatch.setattr("ikd.authip.channel.MOST_WRITTEN", 100)
    trial = Trial(monkeypatch, "authip")
    link, victim = trial.link, trial.victim
    link.up("net")
    link.run(1)
    (ike,) = victim.ikes
    if deleted:
        assert trial.say(ExchangeA.NOTIFY, status_a(13807, Subject.MAIN, RELIABLE))
    for n in range(300):
        trial.say(
            ExchangeA.NOTIFY,
            Raw(11, bytes((0, 0, 0, 1, 1, RELIABLE, 0x9C, 0x46)) + bytes(4)),
            number=5000 + n,
        )
        link.run(0.1)
    written: bytearray = ike.main.channel._written  # type: ignore[attr-defined]
    assert 8 * 90 < len(written) < 8 * 300, trial.told()
    assert ike not in victim.ikes
    trial.unharmed()
    trial.served()
