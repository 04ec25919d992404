"""L2TP over IPsec (RFC 3193): a real xl2tpd at both ends, its UDP 1701 protected in transport mode by ikd.

With PPP in the kernel pppd runs in the sessions; without it frames are carried through them and back.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import l2tp, lab
from support.capture import Capture
from support.daemon import Ikd
from support.l2tp import Xl2tpd
from support.lab import Lab
from support.require import require
from support.scenario import eventually, write_identity

from ikd import pki

pytestmark = pytest.mark.interop

KEYING = ["ikev2", "ikev1"]

SERVER = """\
[[rule]]
name       = "l2tp"
local      = "{address}"
remote     = "any"
protocol   = "udp"
local_port = "l2tp"
security   = "require"
encrypt    = true
crypto     = "compatible-2008"
keying     = "{keying}"
"""
CLIENT = """\
[[rule]]
name        = "dial"
remote      = "{address}"
protocol    = "udp"
remote_port = "l2tp"
security    = "require"
encrypt     = true
crypto      = "compatible-2008"
keying      = "{keying}"
peer        = "server.lab"
"""


@pytest.fixture(autouse=True)
def _tools() -> None:
    """xl2tpd and pppd."""
    for tool in l2tp.TOOLS:
        require(shutil.which(tool) is not None, tool)


@pytest.fixture
def neighbours() -> Iterator[Lab]:
    """Two hosts behind one NAT, and one outside."""
    with Lab(neighbour=True) as made:
        yield made


class Site:
    """Daemons for hosts by name, with certificates of one authority."""

    def __init__(self, place: Path, keying: str) -> None:
        self.place, self.keying = place, keying
        self._authority = pki.make_ca("CN=Lab CA,O=Lab", time.time())

    def daemon(
        self, namespace: str, name: str, rules: str, settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Ikd:
        """An ikd with the rules of a server or a client."""
        home = self.place / name
        host = pki.issue(self._authority, f"CN={name}.lab,O=Lab", [f"{name}.lab"], now=time.time())
        identity = write_identity(home, self._authority, host) | {"id": f"{name}.lab"}
        policy = rules.format(address=lab.RIGHT, keying=self.keying)
        return Ikd(namespace, home, policy, settings={"identity": identity, **(settings or {})})


def protected(wire: Capture) -> None:
    """Nothing of L2TP was to be read on the wire while sessions were up: not even in an ICMP error."""
    clear = wire.tshark("-Y", "udp.port == 1701 || l2tp", "-T", "fields", "-e", "frame.number")
    assert not clear.strip(), wire.tshark("-Y", "udp.port == 1701 || l2tp")
    assert wire.protocols()["esp"] > 10
    assert not wire.holds(b"frame 1 of")


@pytest.mark.parametrize("keying", KEYING)
def test_session_between_two_hosts(hosts: Lab, place: Path, keying: str) -> None:
    """The first packet of the call brings the SA up, and all of the session is inside it, through a rekey."""
    site = Site(place, keying)
    with (
        site.daemon(hosts.right, "server", SERVER),
        site.daemon(hosts.left, "client", CLIENT) as ikd,
        Xl2tpd(hosts.right, place / "lns", lab.RIGHT) as lns,
        Xl2tpd(hosts.left, place / "lac", lab.LEFT, server=lab.RIGHT, name="client") as lac,
        Capture(hosts.right, "e0", place / "w.pcap") as wire,
    ):
        lac.dial()
        lac.carries()
        (pair,) = ikd.quick()
        assert (pair["rule"], pair["mode"]) == ("dial", "transport")
        ikd.ctl("rekey", "dial")
        eventually(lambda: [one["spi_in"] for one in ikd.quick()] != [pair["spi_in"]], "another pair")
        lac.carries()
        assert lns.calls() == 1
    protected(wire)


@pytest.mark.parametrize("keying", KEYING)
def test_two_callers_behind_one_nat(neighbours: Lab, place: Path, keying: str) -> None:
    """Both call from port 1701, and both come from the NAT's address: each must get the packets of its own
    session, while both are up, after a rekey of either, and after one has hung up."""
    site = Site(place, keying)
    assert neighbours.second
    with ExitStack() as stack:
        enter = stack.enter_context
        server = enter(site.daemon(neighbours.right, "server", SERVER))
        places = (
            ("one", neighbours.left, lab.NATTED),
            ("two", neighbours.second, lab.NEIGHBOUR),
        )
        daemons = [enter(site.daemon(namespace, name, CLIENT)) for name, namespace, _ in places]
        lns = enter(Xl2tpd(neighbours.right, place / "lns", lab.RIGHT))
        callers = [
            enter(Xl2tpd(where, place / f"lac-{name}", address, server=lab.RIGHT, name=name))
            for name, where, address in places
        ]
        wire = enter(Capture(neighbours.right, "e0", place / "w.pcap"))
        for caller in callers:
            caller.dial()
        for caller in callers * 2:
            caller.carries()
        assert len(server.quick()) == 2
        assert {address for address, _ in lns.peers()} == {lab.NAT}
        assert len({port for _, port in lns.peers()}) == 2
        for daemon in daemons:
            (old,) = daemon.quick()
            daemon.ctl("rekey", "dial")
            eventually(lambda: [p["spi_in"] for p in daemon.quick()] != [old["spi_in"]], "another pair")  # noqa: B023
            for caller in callers:
                caller.carries()
        callers[0].hang_up()
        callers[1].carries()
        assert lns.calls() == 2
    protected(wire)


@pytest.mark.parametrize("keying", KEYING)
def test_callers_with_ports_of_their_own(neighbours: Lab, place: Path, keying: str) -> None:
    """Not every client calls from 1701; then the server's stack can tell them apart, and must not be kept
    from it."""
    site = Site(place, keying)
    assert neighbours.second
    with (
        site.daemon(neighbours.right, "server", SERVER),
        site.daemon(neighbours.left, "one", CLIENT),
        site.daemon(neighbours.second, "two", CLIENT),
        Xl2tpd(neighbours.right, place / "lns", lab.RIGHT) as lns,
        Xl2tpd(neighbours.left, place / "a", lab.NATTED, server=lab.RIGHT, port=21701, name="one") as first,
        Xl2tpd(
            neighbours.second, place / "b", lab.NEIGHBOUR, server=lab.RIGHT, port=31701, name="two"
        ) as second,
        Capture(neighbours.right, "e0", place / "w.pcap") as wire,
    ):
        for caller in (first, second):
            caller.dial()
        for caller in (first, second) * 2:
            caller.carries()
        assert set(lns.peers()) == {(lab.NAT, 21701), (lab.NAT, 31701)}
    protected(wire)


@pytest.mark.parametrize("keying", KEYING)
def test_server_takes_nothing_in_the_clear(hosts: Lab, place: Path, keying: str) -> None:
    """Who dials without IPsec gets no session and no answer, and who dials with it sends nothing before."""
    site = Site(place, keying)
    with (
        site.daemon(hosts.right, "server", SERVER),
        Capture(hosts.right, "e0", place / "w.pcap") as wire,
        Xl2tpd(hosts.right, place / "lns", lab.RIGHT) as lns,
        lab.socket_in(hosts.left, socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        # Start-Control-Connection-Request (RFC 2661 section 6.1), as any scanner sends it
        request = bytes.fromhex(
            "c8020045000000000000000080080000000000018008000000020100800a00000003000000038008000000"
            "0900018008000000070061800800000000"
        )
        stranger.settimeout(1.0)
        stranger.sendto(request, (lab.RIGHT, l2tp.PORT))
        with pytest.raises(TimeoutError):
            stranger.recv(2048)
        assert not lns.peers()
    answers = wire.tshark("-Y", f"udp.srcport == 1701 && ip.src == {lab.RIGHT}")
    assert not answers.strip()
