"""Which SAs and packets an adapter may have, one case for each reason and profile.

A reason too few puts an SA into an adapter that computes something else; one too many costs its owner CPU.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from offload.ip import Dropped
from offload.nic.capabilities import PROFILES, Direction, Transform
from offload.nic.eligibility import Circumstances, Reason, Shape, direction, ineligible, unfit
from sadb.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME, QuickSuite, SecurityProtocol
from sadb.sa import Mode, SecurityAssociation, State
from sadb.secret import Secret
from sadb.selector import Selector

# No engine takes part.
pytestmark = pytest.mark.parametrize("engine", ["python"], indirect=True)

ESP, AH = SecurityProtocol.ESP, SecurityProtocol.AH
FOUR, SIX = ip_address("192.0.2.1"), ip_address("2001:db8::1")
MANAGED = ip_address("192.0.2.99")


def suite(name: str | None, protocol: SecurityProtocol = ESP, **words: Any) -> QuickSuite:
    row = ENCRYPTION_BY_NAME[name] if name else None
    return QuickSuite(protocol, row, **{"esn": False} | words)


def sa(inbound: bool = True, **words: Any) -> SecurityAssociation:
    """One that every profile takes, but for `words`."""
    to = words.pop("to", FOUR)
    usual = {"suite": suite("aes128gcm"), "mode": Mode.TRANSPORT, "source": to, "destination": to}
    usual |= {"selector": Selector((), ()), "encryption_key": Secret(b""), "integrity_key": Secret(b"")}
    return SecurityAssociation(0x1000, inbound=inbound, **usual | words)


def reasons(one: SecurityAssociation, **words: Any) -> list[str | None]:
    """The first reason with each profile, in the order of the table."""
    found = []
    for capabilities in PROFILES.values():
        at = Circumstances(capabilities, managed=frozenset({MANAGED}))
        reason = ineligible(one, replace(at, **words))
        found.append(reason.value if reason else None)
    return found


def same(reason: str | None) -> list[str | None]:
    return [reason] * 3


def but_ideal(reason: str) -> list[str | None]:
    """The ideal adapter stands last and can do it."""
    return [reason, reason, None]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (sa(), same(None)),
        (sa(suite=suite("aes128gmac")), same(None)),
        (sa(suite=suite("aes128gmac", AH)), same(None)),
        (sa(to=SIX), same(None)),
        (sa(suite=suite(None, AH, integrity=INTEGRITY_BY_NAME["sha256"])), same("transform")),
        (sa(suite=suite("aes128", integrity=INTEGRITY_BY_NAME["sha1"])), same("transform")),
        (sa(suite=suite("chacha20poly1305")), same("transform")),
        (sa(suite=suite("null", integrity=INTEGRITY_BY_NAME["sha256"])), same("transform")),
        # netdevsim and ixgbevf take these keys and use their first 16 octets
        (sa(suite=suite("aes192gcm")), but_ideal("transform")),
        (sa(suite=suite("aes256gcm")), but_ideal("transform")),
        (sa(suite=suite("aes256gmac")), but_ideal("transform")),
        (sa(suite=QuickSuite(ESP, replace(ENCRYPTION_BY_NAME["aes128gcm"], icv=8), esn=False)), same("icv")),
        (sa(mode=Mode.TUNNEL), but_ideal("mode")),
        (sa(encapsulation=(4500, 4500)), but_ideal("encap")),
        (sa(mode=Mode.TUNNEL, encapsulation=(4500, 4500)), but_ideal("mode")),
        (sa(suite=suite("aes128gcm", esn=True)), but_ideal("esn")),
        (sa(to=ip_address("0.0.0.0")), same("address")),
        (sa(to=ip_address("::")), same("address")),
        (sa(to=ip_address("239.1.2.3")), same("address")),
        (sa(to=MANAGED), same("address")),
        (sa(False, to=MANAGED), same(None)),
        (sa(state=State.DYING), same("ageing")),
        (sa(state=State.LARVAL), same("ageing")),
    ],
)
def test_what_an_sa_is(one: SecurityAssociation, expected: list[str | None]) -> None:
    assert reasons(one) == expected


@pytest.mark.parametrize(
    ("inbound", "words", "expected"),
    [
        (True, {"wished": False}, "off"),
        (True, {"enabled": False}, "off"),
        (True, {"up": False}, "link"),
        (False, {"trusted": False}, "trust"),
        (True, {"trusted": False}, None),
        (True, {"wished": False, "up": False}, "off"),
    ],
)
def test_where_it_would_go(inbound: bool, words: dict[str, Any], expected: str | None) -> None:
    """Without these an administrator's no, or a link that is down, would not count."""
    assert reasons(sa(inbound), **words) == same(expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"protocols": frozenset({ESP})}, "protocol"),
        ({"transforms": frozenset()}, "transform"),
        ({"transport": False}, "mode"),
        ({"ipv6": False}, "family"),
    ],
)
def test_adapters_that_can_do_less(words: dict[str, Any], expected: str) -> None:
    """What a driver reports as absent must not be asked of it, even if all known adapters have it."""
    less = replace(PROFILES["ideal"], **words)
    one = sa(suite=suite("aes128gmac", AH), to=SIX)
    assert ineligible(one, Circumstances(less)) is Reason(expected)


def test_the_first_reason_is_told() -> None:
    """The order is the operator's: mending what is told first must not be in vain. Each step mends one."""
    capabilities = replace(PROFILES["82599"], protocols=frozenset({ESP}), ipv6=False)
    at = Circumstances(capabilities, trusted=False, wished=False, up=False)
    one = sa(False, suite=suite("aes256gcm", AH, esn=True), mode=Mode.TUNNEL, state=State.DYING, to=SIX)
    one.encapsulation = (4500, 4500)
    odd = replace(ENCRYPTION_BY_NAME["aes128gcm"], icv=12)
    steps = (
        lambda: replace(at, wished=True),
        lambda: replace(at, up=True),
        lambda: replace(at, trusted=True),
        lambda: setattr(one, "suite", replace(one.suite, protocol=ESP)),
        lambda: setattr(one, "suite", replace(one.suite, encryption=odd)),
        lambda: setattr(one, "suite", suite("aes128gcm", esn=True)),
        lambda: setattr(one, "mode", Mode.TRANSPORT),
        lambda: setattr(one, "encapsulation", None),
        lambda: setattr(one, "suite", suite("aes128gcm")),
        lambda: setattr(one, "destination", FOUR),
        lambda: setattr(one, "state", State.MATURE),
    )
    told = []
    for step in steps:
        told.append(ineligible(one, at))
        at = step() or at
    names = "off link trust protocol transform icv mode encap esn family ageing"
    assert told == [Reason(name) for name in names.split()]
    assert ineligible(one, at) is None


def test_reasons_are_labels_in_the_order_of_their_checks() -> None:
    """Dashboards and docs know these names; the order is what "first" means."""
    assert " ".join(one.value for one in Reason) == (
        "off link trust protocol transform icv mode encap esn family address ageing cold port_limit "
        "addresses_full slots_full refused options extensions fragment oversize"
    )
    assert all(one.text.endswith(".") and len(one.text) < 110 for one in Reason)


def test_the_manual_has_every_reason() -> None:
    """An operator looks up what `ikctl offload` prints."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "offload.md").read_text(encoding="utf-8")
    rows = [f"| `{one.value}` | {one.text} |" for one in Reason]
    assert [line for line in page.splitlines() if line in rows] == rows


def test_directions_and_sizes_of_the_profiles() -> None:
    """The table is filled by these numbers: 82576 has one pool, the 82599 one for each direction."""
    assert direction(sa(True)) is Direction.INBOUND
    assert direction(sa(False)) is Direction.OUTBOUND
    sizes = {name: (one.pools, one.rx_addresses) for name, one in PROFILES.items()}
    assert sizes["82576"] == ((256,), 256)
    assert sizes["82599"] == ((1024, 1024), 128)
    assert PROFILES["82576"].pool(Direction.OUTBOUND) == 0
    assert PROFILES["82599"].pool(Direction.OUTBOUND) == 1
    assert Transform.of(suite("aes128gcm")) in PROFILES["82576"].transforms


# Packets ----------------------------------------------------------------------------------------------------


def ipv4(words: int = 5, fragment: int = 0, size: int = 64) -> bytes:
    head = bytearray(words * 4)
    head[0], head[2:4], head[6:8], head[9] = 0x40 | words, size.to_bytes(2, "big"), fragment.to_bytes(2), 50
    return bytes(head).ljust(size, b"\0")


def ipv6(*kinds: int, size: int = 120) -> bytes:
    """With extension headers of 8 octets."""
    head = bytearray(40)
    head[0], head[4:6], head[6] = 0x60, (size - 40).to_bytes(2, "big"), kinds[0]
    rest = b"".join(bytes((following, 0)).ljust(8, b"\0") for following in kinds[1:])
    return (bytes(head) + rest).ljust(size, b"\0")


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (ipv4(), same(None)),
        (ipv4(fragment=0x4000), same(None)),  # "do not fragment" is no fragment
        (ipv4(6), but_ideal("options")),
        (ipv4(fragment=0x2000), same("fragment")),
        (ipv4(fragment=100), same("fragment")),
        (ipv4(6, fragment=100), ["options", "options", "fragment"]),
        (ipv6(50), same(None)),
        (ipv6(0, 50), but_ideal("extensions")),
        (ipv6(43, 50), but_ideal("extensions")),
        (ipv6(60, 50), but_ideal("extensions")),
        (ipv6(44, 50), ["extensions", "extensions", "fragment"]),
        (ipv6(0, 44, 50), ["extensions", "extensions", "fragment"]),
        (ipv4(size=1501), same(None)),  # the adapter segments it
    ],
)
def test_what_a_packet_is(packet: bytes, expected: list[str | None]) -> None:
    """An adapter that is handed such a packet computes over the wrong octets."""
    found = [unfit(Shape.of(packet), Mode.TRANSPORT, 1500, one) for one in PROFILES.values()]
    assert [reason and reason.value for reason in found] == expected


def test_what_is_not_segmented() -> None:
    """Segmentation is never for tunnel packets, and not for an adapter without it."""
    large, fits = Shape.of(ipv4(size=1501)), Shape.of(ipv4(size=1500))
    ideal = PROFILES["ideal"]
    assert unfit(large, Mode.TUNNEL, 1500, ideal) is Reason.OVERSIZE
    assert unfit(large, Mode.TRANSPORT, 1500, replace(ideal, lso=False)) is Reason.OVERSIZE
    assert unfit(fits, Mode.TUNNEL, 1500, ideal) is None


@pytest.mark.parametrize("packet", [b"", ipv4()[:19], ipv4()[:40], ipv6(0, 50)[:44], b"\x50" + bytes(60)])
def test_what_is_no_packet(packet: bytes) -> None:
    """A header that runs out must not be read beyond its end."""
    with pytest.raises(Dropped):
        Shape.of(packet)
