"""What a stranger who forges an address can have sent there: for each kind of first datagram, all that comes
back for it, as long as nobody at that address answers.

If one of these fails, this host is a tool for flooding others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import authip, ikev1
from support.link import Host, Link, tunnel_hosts
from support.phases import AGGRESSIVE, both, hosts, large

from ikd.authip.numbers import Method
from ikd.authip.payloads import Auth, AuthEntry
from ikd.ikev2.channel import clear
from ikd.ikev2.numbers import Exchange as Exchange2
from ikd.ikev2.payloads import PAYLOADS, KeyExchange, Nonce, SecurityAssociation
from ikd.isakmp.conversations import AMPLIFICATION
from ikd.isakmp.payloads import NatDiscovery, VendorId
from ikd.isakmp.payloads import Nonce as Nonce1
from ikd.settings import IkeSettings
from ikd.wire.isakmp import HEADER_SIZE, Body, Flags, Header, chain

MINUTES = 5 * 60.0


def first_of(*pair: Host) -> bytes:
    """The first datagram of the left host."""
    link = Link(*pair)
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("net", "left")
    return link.flights[0].data


def answered(receiver: tuple[Host, Host], *datagrams: bytes, pause: float = 0.0) -> list[int]:
    """The octets of each datagram that comes back for some, in all the time that follows."""
    link = Link(*receiver)
    link.fate = lambda flight: setattr(flight, "lost", True)
    for data in datagrams:
        link.inject(link.right, data)
        link.run(pause)
    link.run(MINUTES)
    assert all(flight.sender is link.right for flight in link.flights)
    return [len(flight.data) for flight in link.flights]


def header(**changes: object) -> bytes:
    """An ISAKMP header and nothing else, as the smallest datagram there is."""
    plain = Header(b"\x01" * 8, b"\x02" * 8, 0, 0x20, Exchange2.INFORMATIONAL, int(Flags.INITIATOR), 0, 28)
    return replace(plain, **changes).encode()  # type: ignore[arg-type]


def smallest(*attributes: str) -> bytes:
    """A first message of main mode with one transform and nothing that could be left out."""
    chosen = attributes or ("80010007 800e0080", "80020004", "80030001", "80040013")
    return ikev1.first_message(ikev1.sa(ikev1.transform(0, 1, *chosen)))


def short() -> tuple[Host, Host]:
    """Two hosts with one suite of IKEv2."""
    one = '[crypto.one]\nmain = ["x25519 aes128 sha256"]\nquick = ["aes128gcm"]\n'
    return tunnel_hosts(left_rule='crypto = "one"', right_rule='crypto = "one"', sets=one)


def bare() -> bytes:
    """An IKE_SA_INIT with one suite and nothing that could be left out."""
    data = first_of(*short())
    payloads, _ = chain(Header.decode(data).next_payload, data[HEADER_SIZE:], PAYLOADS)
    needed = [one for one in payloads if isinstance(one, SecurityAssociation | KeyExchange | Nonce)]
    return clear(Header.decode(data), needed)


def least_of_authip(*, dh: bool = True) -> bytes:
    """An AuthIP first message with one suite and nothing that could be left out."""
    settings = IkeSettings(authip_dh="always" if dh else "when-needed", vendor_ids="none")
    data = first_of(*authip.hosts(settings=settings))

    def least(payloads: list[Body]) -> list[Body]:
        methods = Auth(entries=(AuthEntry(method=Method.TLS),))
        nonce = Nonce1(data=bytes(8))
        return [
            methods if isinstance(one, Auth) else nonce if isinstance(one, Nonce1) else one
            for one in payloads
            if not isinstance(one, VendorId | NatDiscovery)
        ]

    return authip.rewritten(data, least)


# Everything is answered by hosts that would rather say much: `windows` has the most vendor IDs.
WINDOWS = IkeSettings(vendor_ids="windows")
CASES: dict[str, tuple[Callable[[], tuple[Host, Host]], Callable[[], bytes], float]] = {
    "IKEv2, accepted": (tunnel_hosts, lambda: first_of(*tunnel_hosts()), 1.0),
    "IKEv2, the smallest": (short, bare, AMPLIFICATION),
    "IKEv2, cookie demanded": (
        lambda: tunnel_hosts(settings=IkeSettings(cookie_threshold=0)),
        lambda: first_of(*tunnel_hosts()),
        1.0,
    ),
    "IKEv2, refused": (hosts, lambda: first_of(*tunnel_hosts()), 1.0),
    "IKEv2, of an unknown SA": (tunnel_hosts, header, 1.5),
    "version 3": (tunnel_hosts, lambda: header(version=0x30), 1.5),
    "IKEv1 main mode, accepted": (hosts, lambda: first_of(*hosts()), 1.5),
    "IKEv1 main mode, accepted as Windows": (
        lambda: hosts(settings=WINDOWS),
        lambda: first_of(*hosts(settings=WINDOWS)),
        1.5,
    ),
    "IKEv1 main mode, the smallest": (hosts, smallest, AMPLIFICATION),
    "IKEv1 main mode, the smallest, as Windows": (lambda: hosts(settings=WINDOWS), smallest, AMPLIFICATION),
    "IKEv1 main mode, refused": (
        hosts,
        lambda: smallest("80010001", "80020001", "80030001", "80040001"),
        1.0,
    ),
    "IKEv1 aggressive mode, accepted": (
        lambda: hosts(left_rule=AGGRESSIVE, right_rule=AGGRESSIVE),
        lambda: first_of(*hosts(left_rule=AGGRESSIVE)),
        AMPLIFICATION,
    ),
    "IKEv1 aggressive mode, refused": (hosts, lambda: first_of(*hosts(left_rule=AGGRESSIVE)), 1.0),
    "IKEv1, of an unknown SA": (hosts, lambda: header(version=0x10), 0.0),
    "AuthIP, accepted": (authip.hosts, lambda: first_of(*authip.hosts()), 1.5),
    "AuthIP, accepted as Windows": (
        lambda: authip.hosts(settings=WINDOWS),
        lambda: first_of(*authip.hosts(settings=WINDOWS)),
        1.5,
    ),
    "AuthIP, the smallest": (authip.hosts, least_of_authip, AMPLIFICATION),
    "AuthIP, the smallest, as Windows": (
        lambda: authip.hosts(settings=WINDOWS),
        least_of_authip,
        AMPLIFICATION,
    ),
    "AuthIP, the smallest without Diffie-Hellman": (
        lambda: authip.hosts(settings=replace(WINDOWS, authip_dh="when-needed")),
        lambda: least_of_authip(dh=False),
        AMPLIFICATION,
    ),
    "AuthIP, cookie demanded": (
        lambda: authip.hosts(settings=IkeSettings(cookie_threshold=0)),
        lambda: first_of(*authip.hosts()),
        1.0,
    ),
    "AuthIP, refused": (hosts, lambda: first_of(*authip.hosts()), 1.0),
    "AuthIP, of an unknown SA": (authip.hosts, lambda: header(version=0x10, exchange=246), 0.0),
    "nonsense": (hosts, lambda: b"\xa5" * 1200, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_no_more_comes_back_than_is_worth_it(case: str) -> None:
    """Repetitions included, a forged first datagram brings its victim at most three times its octets."""
    receiver, datagram, most = CASES[case]
    data = datagram()
    back = answered(receiver(), data)
    assert sum(back) <= most * len(data), f"{len(data)} octets in, {back} out"
    assert bool(back) is (most > 0)


def test_large_certificate_of_aggressive_mode_is_sent_seldom() -> None:
    """There the answer to the first datagram has the certificate, which alone is more than three times as
    much: it is sent once, whatever comes again, and to few negotiations of one address."""
    material = both(large("left"), large("right"))
    few = IkeSettings(half_open_per_address=8)

    def pair() -> tuple[Host, Host]:
        return hosts(left_rule=AGGRESSIVE, right_rule=AGGRESSIVE, settings=few, **material)

    data = first_of(*pair())
    back = answered(pair(), data)
    assert sum(back) > AMPLIFICATION * len(data), "this tests nothing"
    once = sum(back)
    again = answered(pair(), *[data] * 50, pause=0.1)
    assert sum(again) <= AMPLIFICATION * 50 * len(data)
    others = [number.to_bytes(8, "big") + data[8:] for number in range(1, 51)]
    assert sum(answered(pair(), *others)) <= few.half_open_per_address * once


def test_repetitions_of_the_first_datagram_are_answered_alike() -> None:
    """An honest peer that does not hear us repeats itself: it must get the same answer each time, or loss on
    the way back would keep it out."""
    for pair in (hosts, lambda: hosts(left_rule=AGGRESSIVE, right_rule=AGGRESSIVE), tunnel_hosts):
        data = first_of(*pair())
        back = answered(pair(), *[data] * 5, pause=1.0)
        assert len(back) >= 5
        assert sum(back) <= AMPLIFICATION * 5 * len(data)


FIRST = [first_of(*tunnel_hosts()), first_of(*hosts()), first_of(*hosts(left_rule=AGGRESSIVE)), smallest()]


@given(
    st.sampled_from(FIRST),
    st.lists(st.tuples(st.integers(0, HEADER_SIZE + 60), st.integers(0, 255)), max_size=4),
    st.integers(0, 400),
)
@settings(deadline=None)
def test_no_damaged_datagram_is_worth_more(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    """A stranger does not keep to what honest peers send; here every datagram is changed and shortened."""
    damaged = bytearray(data[: len(data) - cut] if cut < len(data) else data)
    for at, value in changes:
        if at < len(damaged):
            damaged[at] = value
    damaged[24:28] = len(damaged).to_bytes(4, "big")
    aggressive = hosts(left_rule=AGGRESSIVE, right_rule=AGGRESSIVE)
    back = answered(aggressive, bytes(damaged))
    assert sum(back) <= AMPLIFICATION * len(damaged)
