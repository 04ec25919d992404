"""Two hosts, in containers where there are any: every keying module with every method of authentication,
strongSwan, a NAT, and three hosts of which one dies. What a container may not do the daemon must do without.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support import kerberos, strongswan
from support.daemon import IKD, Ikd
from support.hosts import Container
from support.matrix import (
    ALPHA,
    BETA,
    CASES,
    NAMES,
    OTHER,
    Case,
    authority,
    certificate,
    check,
    standing,
)
from support.require import require
from support.scenario import SECRET, eventually, secrets
from support.strongswan import Charon, ikev1, merged, psk_connection, pubkey
from support.tiers import INNER, Containers, Hosted, Tier, counted, ping

from policy.modules import MODULES

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]


def hosted(tier: Tier) -> Hosted:
    """For what loopback cannot do."""
    if not isinstance(tier, Hosted):
        pytest.skip(f"needs hosts, and there are none on {tier.name}")
    return tier


def case_of(keying: str, method: str, variant: str = "") -> Case:
    """A row of the table."""
    name = "-".join(filter(None, (keying, method, variant)))
    return next(one for one in CASES if one.name == name)


def test_every_method_has_a_case() -> None:
    """A method that policies may name and nobody has tried between two hosts."""
    promised = {
        (module.name, which, method)
        for module in MODULES.values()
        for which in ("first", "second")
        for method in getattr(module, which)
    }
    assert {(case.keying, *case.proves) for case in CASES} == promised
    assert len({case.name for case in CASES}) == len(CASES)


def test_what_looks_at_the_wire_sees_clear_text(tier: Tier) -> None:
    """A counter that sees nothing would let every other test here pass."""
    place = hosted(tier)
    for name in (ALPHA, BETA):
        place.free(name)
    alpha, beta = (place.host(name) for name in (ALPHA, BETA))
    counted(alpha), counted(beta)
    assert ping(alpha, place.address(BETA), place.address(ALPHA)).received == 2
    assert counted(alpha) == counted(beta) == (0, 0, 2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_keying_and_authentication(tier: Tier, case: Case, request: pytest.FixtureRequest) -> None:
    """What an administrator writes for it, traffic both ways, and nothing of it readable."""
    missing = kerberos.missing() if case.kerberos else ()
    require(not missing, f"Kerberos ({', '.join(missing)})")
    kdc = request.getfixturevalue("realm") if case.kerberos else None
    with tier.pair(case, kdc) as pair:
        check(pair, case)


@pytest.mark.parametrize("initiator", ["ikd", "charon"])
@pytest.mark.parametrize("method", ["psk", "certificate"])
@pytest.mark.parametrize("keying", ["ikev2", "ikev1"])
def test_strongswan(tier: Tier, home: Path, keying: str, method: str, initiator: str) -> None:
    """ikd in one container and charon in another, either as initiator."""
    place = hosted(tier)
    require(not strongswan.missing(), f"strongSwan ({', '.join(strongswan.missing())})")
    ends = place.ends(ALPHA, BETA)
    case = Case(keying, ("first", method), f'"{method}"', tunnel=True)
    ids = (NAMES[BETA], NAMES[ALPHA])
    networks = (ends.inner[BETA], ends.inner[ALPHA])
    change = ikev1() if keying == "ikev1" else {}
    if method == "certificate":
        change = merged(pubkey(*ids), change)
    connection = merged(
        psk_connection(ends.outer[BETA], ends.outer[ALPHA], *networks, local_id=ids[0], remote_id=ids[1]),
        change,
    )
    charon = Charon(place.host(BETA), home / BETA, connection, secret=SECRET, secret_ids=ids)
    if method == "certificate":
        charon.credentials(authority(case.kind).certificate, certificate(case.kind, NAMES[BETA]))
    place.free(BETA)
    with place.daemon(ALPHA, case, ALPHA, ends) as ours, charon:
        for name in (ALPHA, BETA):
            counted(place.host(name))
        if initiator == "charon":
            charon.initiate()
        sources = {one: net.replace(".0/24", ".1") for one, net in ends.inner.items()}
        for own in (ALPHA, BETA) if initiator == "ikd" else (BETA, ALPHA):
            pinged = ping(place.host(own), sources[OTHER[own]], sources[own])
            assert pinged.received == pinged.sent, own
        (main,) = standing(ours)
        assert (main["keying"], main["role"]) == (keying, "initiator" if initiator == "ikd" else "responder")
        assert NAMES[BETA] in main["authenticated_as"]
        eventually(lambda: int(charon.children()[0]["packets-in"]) >= 4, "charon has counted")
        ours.ask("down", name="net")
        eventually(lambda: not charon.children(), "charon is told")
        for name in (ALPHA, BETA):
            sealed, _, clear = counted(place.host(name))
            assert clear == 0, name
            assert sealed >= 4, name


@pytest.mark.parametrize(
    "case",
    [
        case_of("ikev2", "psk"),
        case_of("ikev2", "psk", "tunnel"),
        case_of("ikev1", "psk", "main"),
        case_of("authip", "certificate", "ecdsa-p256"),
    ],
    ids=lambda case: case.name,
)
def test_through_a_nat(tier: Tier, case: Case) -> None:
    """The host that begins is behind a router that gives it another address: packets must go in UDP."""
    place = hosted(tier)
    with place.pair(case, names=(INNER, BETA)) as pair:
        pair.send(ALPHA)
        (main,) = standing(pair.sides[BETA])
        assert main["nat"]
        assert main["peer_address"] == place.address("router")
        assert all(quick["encapsulation"] for one in pair.sides.values() for quick in one.quick())
        check(pair, case)


# The others hear nothing of a host that has forgotten them: after so much silence they ask.
IMPATIENT = {"liveness": 2.0, "retransmit_first": 0.3, "retransmit_tries": 4}
TRIANGLE = """\
[[rule]]
name     = "{other}"
remote   = "{remote}"
security = "require"
peer     = "{other}.lab"
"""


def test_triangle_in_which_one_dies(tier: Tier, home: Path) -> None:
    """Three hosts, protected in pairs, the daemon the only process of its container: killed, it takes the
    container along, and the runtime starts both again. The other two go on; the third reaches them at once,
    and they reach it when they have noticed its silence."""
    if not isinstance(tier, Containers):
        pytest.skip(f"needs containers, which are started again; this is {tier.name}")
    podman = tier.podman
    addresses = {"one": f"{tier.lan}.21", "two": f"{tier.lan}.22", "three": f"{tier.lan}.23"}
    made: dict[str, Ikd] = {}
    hosts: dict[str, Container] = {}
    for own in addresses:
        others = [name for name in addresses if name != own]
        made[own] = Ikd(
            "",
            home / own,
            "\n".join(TRIANGLE.format(other=name, remote=addresses[name]) for name in others),
            secrets="\n".join(secrets(peer=f"{name}.lab") for name in others),
            settings={"identity": {"id": f"{own}.lab"}, "ike": IMPATIENT},
        )
        program = " ".join((*IKD, "--config", str(home / own)))
        command = ("sh", "-c", f"exec {program} >>{home / own}/ikd.log 2>&1")
        options = ("--restart=always",)
        podman.run_at(own, podman.network, addresses[own], home, options=options, command=command)

    def reach(source: str, destination: str, *, count: int = 2, wait: float = 20) -> bool:
        pinged = ping(hosts[source], addresses[destination], addresses[source], count=count, wait=wait)
        return pinged.received == pinged.sent

    def spis(one: str, other: str) -> set[str]:
        return {quick["spi_in"] for quick in made[one].quick() if quick["peer"] == f"{other}.lab"}

    edges = [(one, other) for one in addresses for other in addresses if one != other]
    try:
        for one in made.values():
            eventually(one.answers, "the daemon answers", 60)
        hosts |= {name: podman.host(name, home) for name in addresses}
        assert [edge for edge in edges if not reach(*edge)] == []
        kept, lost = spis("one", "two"), spis("one", "three")
        os.kill(hosts["three"].pid, signal.SIGKILL)

        def restarted() -> bool:
            assert reach("one", "two")
            return podman.inspect("three", "{{.RestartCount}}") == "1"

        eventually(restarted, "it is started again")
        eventually(made["three"].answers, "its daemon answers", 60)
        hosts["three"] = podman.host("three", home)
        assert reach("three", "one")
        eventually(lambda: reach("two", "three", count=1, wait=1), "two notices, and begins anew")
        assert [edge for edge in edges if not reach(*edge)] == []
        assert kept & spis("one", "two"), "one and two keep what they had"
        assert not lost & spis("one", "three"), "what the third has forgotten is gone"
    finally:
        podman.remove(*addresses)
