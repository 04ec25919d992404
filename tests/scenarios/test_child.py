"""CREATE_CHILD_SA (RFC 7296 sections 1.3, 2.8, 2.9, 2.17): new Child SAs, replaced ones, replaced IKE SAs,
forward secrecy, narrowing, modes and suites, from either side.

If one of these fails, hosts that agree on a policy get no SA, or one that is wider, weaker or other than it
says."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from support.link import (
    BOTH,
    HOST,
    LEFT,
    RIGHT,
    Flight,
    Host,
    Link,
    agree,
    connected,
    host,
    losing,
    mirrored,
    psk,
    story,
    tunnel_hosts,
)

from ikd.events import ChildEstablished, IkeEstablished
from ikd.ikev2.numbers import Exchange
from ikd.settings import IkeSettings
from sadb.algorithms import SecurityProtocol
from sadb.sa import Acquire, Mode
from sadb.selector import TCP, UDP

ORDERS = pytest.mark.parametrize("first", BOTH)
PFS = '[crypto.pfs]\nquick = ["aes256gcm"]\npfs = true\n'
V6 = ip_address("2001:db8::1"), ip_address("2001:db8::2")


def selectors(one: Host) -> tuple[str, str]:
    """Local and remote selectors of a host's only pair."""
    (pair,) = one.pairs
    return ", ".join(map(str, pair.selector.local)), ", ".join(map(str, pair.selector.remote))


# New ones ---------------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("lost", [(), (0,), (1,)], ids=str)
def test_a_further_child(first: str, lost: tuple[int, ...]) -> None:
    """It goes over the IKE SA that is there; no second IKE SA is made."""
    link = connected(nets=2)
    link.fate = losing(*lost)
    # HDR, SK {SA, Ni, TSi, TSr}  -->  <--  HDR, SK {SA, Nr, TSi, TSr}
    link.up("net1", first)
    link.run(10)
    agree(link, ikes=1, pairs=2)
    assert {one.rule for one in link.left.pairs} == {"net", "net1"}
    assert len(link.flights) == 6 + len(lost) + (1 in lost)


def test_children_asked_for_while_the_ike_sa_is_being_made() -> None:
    """They wait for it instead of beginning IKE SAs of their own."""
    link = Link(*tunnel_hosts(nets=5))
    for n in range(5):
        link.up(f"net{n or ''}")
    link.run(5)
    agree(link, ikes=1, pairs=5)


@ORDERS
def test_several_children_at_once(first: str) -> None:
    """SET_WINDOW_SIZE lets requests travel side by side, and answers come in any order (section 2.3)."""
    link = connected(nets=7)
    count = len(link.flights)
    link.fate = lambda flight: setattr(flight, "delay", 0.3 - 0.04 * (flight.number - count))
    for n in range(1, 7):
        link.up(f"net{n}", first)
    assert len(link.flights) == count + 6  # all on their way at the same time
    link.run(20)
    agree(link, ikes=1, pairs=7)


@ORDERS
def test_no_more_requests_than_the_peer_takes(first: str) -> None:
    """With a window of 1 each request waits for the answer to the one before."""
    link = connected(nets=5, settings=IkeSettings(window=1))
    count = len(link.flights)
    for n in range(1, 5):
        link.up(f"net{n}", first)
    assert len(link.flights) == count + 1
    link.run(20)
    agree(link, ikes=1, pairs=5)


@ORDERS
def test_a_lost_request_holds_up_those_beyond_the_window(first: str) -> None:
    """The window begins with the first request that is not answered. One who counts only how many are open
    sends what the peer takes for nonsense, until it gives the peer up."""
    link = connected(nets=20, settings=IkeSettings(window=4))
    initiator = link.named(first)
    seen: list[int] = []

    def lose(flight: Flight) -> None:
        header = flight.header
        mine = flight.sender is initiator and header.exchange == Exchange.CREATE_CHILD_SA
        if mine and header.message_id == min([*seen, header.message_id]) and len(seen) < 60:
            flight.lost = seen.count(header.message_id) < 4
        if mine:
            seen.append(header.message_id)

    link.fate = lose
    for n in range(1, 20):
        link.up(f"net{n}", first)
    link.run(60)
    assert seen.count(min(seen)) == 5
    assert "replayed" not in link.other(initiator).drops
    agree(link, ikes=1, pairs=20)


@ORDERS
def test_more_children_than_a_peer_may_have(first: str) -> None:
    """NO_ADDITIONAL_SAS; what is there stays."""
    link = connected(nets=6, settings=IkeSettings(children=3))
    for n in range(1, 6):
        link.up(f"net{n}", first)
    link.run(20)
    agree(link, ikes=1, pairs=3)
    initiator = link.named(first)
    assert {one.notify for one in initiator.failures} == {"NO_ADDITIONAL_SAS"}
    assert all(one.child for one in initiator.failures)


@ORDERS
def test_proposals_that_do_not_meet(first: str) -> None:
    """The IKE SA stays; both sides have the comparison, and each other traffic goes on."""
    sets = '[crypto.a]\nquick = ["aes256gcm"]\n[crypto.b]\nquick = ["aes128 sha256", "chacha20poly1305"]\n'
    link = Link(*tunnel_hosts(left_rule='crypto = "a"', right_rule='crypto = "b"', sets=sets))
    link.up("net", first)
    link.run(20)
    agree(link, ikes=1, pairs=0)
    initiator = link.named(first)
    told, known = initiator.failures[0], link.other(initiator).failures[0]
    assert told.notify == known.notify == "NO_PROPOSAL_CHOSEN"
    assert told.child
    assert known.child
    assert known.comparison is not None
    row = next(one for one in known.comparison.rows if one.what == "cipher")
    assert row.note == "nothing in common"
    assert {row.ours, row.theirs} == {("aes256gcm",), ("aes128", "chacha20poly1305")}


# Forward secrecy --------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("side", ["both", "left", "right"])
def test_forward_secrecy(first: str, side: str) -> None:
    """With `pfs` each Child SA has a key exchange of its own, also when only the initiator asks for it; a
    responder that asks for it takes none without."""
    rules = {f"{one}_rule": 'crypto = "pfs"' for one in BOTH if side in ("both", one)}
    link = Link(*tunnel_hosts(**rules, sets=PFS, nets=2))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    pair = link.left.pairs[0]
    link.rekey_child(link.named(first))
    link.run(10)
    agree(link, ikes=1, pairs=1)
    if side not in ("both", first):
        assert link.left.pairs == [pair]
        assert link.named(first).failures[0].notify == "NO_PROPOSAL_CHOSEN"
        return
    assert link.left.pairs[0].inbound.suite.group is not None, story(link)
    link.up("net1", first)
    link.run(10)
    agree(link, ikes=1, pairs=2)


@ORDERS
def test_the_groups_of_forward_secrecy_differ(first: str) -> None:
    """INVALID_KE_PAYLOAD in CREATE_CHILD_SA: the request is made again in the group the peer wants."""
    sets = '[crypto.a]\nquick = ["aes256gcm p256", "aes256gcm x25519"]\n'
    sets += '[crypto.b]\nquick = ["aes256gcm x25519"]\n'
    link = Link(*tunnel_hosts(left_rule='crypto = "a"', right_rule='crypto = "b"', sets=sets))
    link.up("net", "left")
    link.run(5)
    link.rekey_child(link.named(first))
    link.run(5)
    agree(link, ikes=1, pairs=1)
    group = link.left.pairs[0].inbound.suite.group
    assert group is not None
    assert group.name == "x25519"


def test_a_group_nobody_shares() -> None:
    """The old pair stays in use, the failure says why, and there is no endless exchange of guesses."""
    sets = '[crypto.a]\nquick = ["aes256gcm p256"]\n[crypto.b]\nquick = ["aes256gcm p384"]\n'
    link = Link(*tunnel_hosts(left_rule='crypto = "a"', right_rule='crypto = "b"', sets=sets))
    link.up("net", "left")
    link.run(5)
    pair = link.left.pairs[0]
    count = len(link.flights)
    link.rekey_child(link.left)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert link.left.pairs == [pair]
    assert link.left.failures[0].notify == "NO_PROPOSAL_CHOSEN"
    assert len(link.flights) == count + 2


# Replacing --------------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("begun", BOTH)
@pytest.mark.parametrize("lost", [(), (0,), (1,), (2,), (3,), (0, 1), (1, 2), (2, 3)], ids=str)
def test_a_child_is_replaced(first: str, begun: str, lost: tuple[int, ...]) -> None:
    """By either side of the IKE SA, under loss; traffic always has a pair that both sides have, and the old
    one is gone afterwards."""
    link = Link(*tunnel_hosts())
    link.up("net", begun)
    link.run(1)
    link.watch()
    old = link.left.pairs[0]
    link.fate = losing(*lost)
    # HDR, SK {N(REKEY_SA), SA, Ni, TSi, TSr}  -->  <--  HDR, SK {SA, Nr, TSi, TSr}
    # HDR, SK {D}  -->  <--  HDR, SK {D}
    link.rekey_child(link.named(first))
    link.run(12)
    agree(link, ikes=1, pairs=1)
    assert not link.gaps
    assert old not in link.left.pairs
    new = link.left.pairs[0]
    assert old.inbound.encryption_key != new.inbound.encryption_key
    assert not new.standby
    assert not link.right.pairs[0].standby
    assert link.left.of(ChildEstablished)[-1].replaces == f"{old.inbound.spi:08x}"


@ORDERS
@pytest.mark.parametrize("begun", BOTH)
@pytest.mark.parametrize("lost", [(), (0,), (1,), (2,), (3,), (0, 1), (1, 2), (2, 3)], ids=str)
def test_an_ike_sa_is_replaced(first: str, begun: str, lost: tuple[int, ...]) -> None:
    """By either side, under loss: the pairs move along without a change, and the new IKE SA works in both
    directions."""
    link = Link(*tunnel_hosts(nets=2))
    link.up("net", begun)
    link.run(1)
    link.watch()
    pair, old = link.left.pairs[0], link.left.ikes[0]
    link.fate = losing(*lost)
    # HDR, SK {SA, Ni, KEi}  -->  <--  HDR, SK {SA, Nr, KEr}
    # HDR, SK {D}  -->  <--  HDR, SK {}
    link.rekey(link.named(first))
    link.run(60)  # when the last answer is lost, nobody is left to give it again
    agree(link, ikes=1, pairs=1)
    assert not link.gaps
    assert link.left.pairs == [pair]
    (new,) = link.left.ikes
    assert new.spi_i != old.spi_i
    assert new.initiator == (first == "left")
    assert new.peer == old.peer
    assert link.left.of(IkeEstablished)[-1].replaces == old.number
    link.rekey_child(link.left)
    link.run(5)
    link.rekey_child(link.right)
    link.run(5)
    link.up("net1", link.other(link.named(first)))
    link.run(5)
    agree(link, ikes=1, pairs=2)


@ORDERS
def test_the_keys_change_with_the_ike_sa(first: str) -> None:
    """Else replacing it would be for nothing; both sides export the same ones."""
    link = connected()
    link.rekey(link.named(first))
    link.run(5)
    ours = [tuple(map(bytes, one.encryption)) for one in link.left.keys]
    assert ours == [tuple(map(bytes, one.encryption)) for one in link.right.keys]
    assert len({key for pair in ours for key in pair}) == 4


def test_a_child_the_peer_does_not_have() -> None:
    """CHILD_SA_NOT_FOUND (section 2.25.1): ours is dropped and a new one made, so that traffic goes on."""
    link = connected()
    lost = link.right.pairs[0]
    link.right.ikes[0].session.children.pairs.clear()
    link.right.database.remove(lost)
    link.rekey_child(link.left)
    link.run(5)
    assert mirrored(link.left, link.right)
    assert link.left.pairs[0].outbound.spi != lost.inbound.spi


# Selectors --------------------------------------------------------------------------------------------------


def sites(left: str, right: str) -> Link:
    """Tunnel rules `net` with these lines for local and remote."""
    made = []
    for name, own, peer, lines in (("left", LEFT, RIGHT, left), ("right", RIGHT, LEFT, right)):
        other = "right" if name == "left" else "left"
        rules = f'[[rule]]\nname = "net"\n{lines}\ntunnel = {{ local = "{own}", remote = "{peer}" }}\n'
        rules += 'security = "require"\n'
        made.append(host(name, own, rules, psk(f"{name}.example", f"{other}.example")))
    return Link(*made)


@ORDERS
def test_the_responder_narrows(first: str) -> None:
    """Section 2.9: the pair covers what both rules do."""
    link = sites(
        'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"',
        'local = ["10.2.3.0/24", "10.2.9.0/24"]\nremote = "10.1.7.0/24"',
    )
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert selectors(link.left) == ("10.1.7.0/24", "10.2.3.0/24, 10.2.9.0/24")


def test_the_packet_that_started_it_comes_first() -> None:
    """Section 2.9: the initiator puts the packet's own selectors in front, and the pair covers the packet."""
    link = sites(
        'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"', 'local = "10.2.0.0/16"\nremote = "10.1.0.0/16"'
    )
    acquire = Acquire("net", ip_address("10.1.0.5"), ip_address("10.2.0.6"), TCP, 40000, 443)
    link.up("net", acquire=acquire)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert "10.1.0.0/16" in selectors(link.left)[0]


@ORDERS
@pytest.mark.parametrize("begun", BOTH)
def test_replacing_keeps_what_was_narrowed(first: str, begun: str) -> None:
    """A replaced pair covers the same traffic as the one before (section 2.8), whichever side has the wider
    rule."""
    link = sites(
        'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"', 'local = "10.2.3.0/24"\nremote = "10.1.7.0/24"'
    )
    link.up("net", begun)
    link.run(1)
    before = selectors(link.left), selectors(link.right)
    link.rekey_child(link.named(first))
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert (selectors(link.left), selectors(link.right)) == before


@ORDERS
def test_nothing_in_common_to_protect(first: str) -> None:
    """TS_UNACCEPTABLE: the IKE SA stays, and each side says what was asked and what its rules protect."""
    link = sites(
        'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"', 'local = "10.3.0.0/16"\nremote = "10.4.0.0/16"'
    )
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=0)
    initiator = link.named(first)
    assert initiator.failures[0].notify == "TS_UNACCEPTABLE"
    assert "10.3.0.0/16" in link.other(initiator).failures[0].reason
    assert "10.1.0.0/16" in link.other(initiator).failures[0].reason
    assert "mirror" in initiator.failures[0].remedy


# Modes and suites -------------------------------------------------------------------------------------------


def hosts_in_transport_mode(
    left: str = "", right: str = "", ends: tuple[object, object] = (LEFT, RIGHT)
) -> Link:
    """Two hosts with a rule for the traffic between themselves."""
    made = []
    for name, own, peer, extra in (("left", *ends, left), ("right", *ends[::-1], right)):
        other = "right" if name == "left" else "left"
        material = psk(f"{name}.example", f"{other}.example")
        made.append(host(name, own, HOST.format(peer=peer, extra=extra), material))  # type: ignore[arg-type]
    return Link(*made)


@ORDERS
@pytest.mark.parametrize("ends", [(LEFT, RIGHT), V6], ids=["IPv4", "IPv6"])
def test_transport_mode(first: str, ends: tuple[object, object]) -> None:
    """USE_TRANSPORT_MODE is asked for and agreed to; it stays when the pair is replaced."""
    link = hosts_in_transport_mode(ends=ends)
    link.up("host", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert link.left.pairs[0].mode is Mode.TRANSPORT
    for side in (link.left, link.right):
        link.rekey_child(side)
        link.run(5)
        agree(link, ikes=1, pairs=1)
        assert link.left.pairs[0].mode is Mode.TRANSPORT


@ORDERS
def test_ports_and_protocols_are_narrowed_too(first: str) -> None:
    """One side protects all, the other only TCP to its port 443."""
    link = hosts_in_transport_mode(right='protocol = "tcp"\nlocal_port = 443')
    link.up("host", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert selectors(link.right) == ("192.0.2.2[tcp/443]", "192.0.2.1[tcp]")
    packet = link.left.pairs[0].selector.remote[0]
    assert packet.matches(RIGHT, TCP, 443)
    assert not packet.matches(RIGHT, UDP, 443)


@ORDERS
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
def test_every_mix_of_families(first: str, outer: int, inner: int) -> None:
    """IPv4 and IPv6 inside and outside of a tunnel."""
    link = Link(*tunnel_hosts(ends=(LEFT, RIGHT) if outer == 4 else V6, family=inner))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    pair = link.left.pairs[0]
    assert pair.outbound.destination.version == outer
    assert pair.selector.remote[0].version == inner


SUITES = (
    "aes128gcm",
    "aes192gcm",
    "aes256gcm",
    "chacha20poly1305",
    "aes128 sha256",
    "aes192 sha384",
    "aes256 sha512",
    "aes128gmac",
    "aes192gmac",
    "aes256gmac",
    "null sha256",
    "aes128 sha1",
    "3des sha1",
    "ah sha256",
    "ah sha512",
)


@pytest.mark.parametrize("suite", SUITES)
def test_every_quick_suite(suite: str) -> None:
    """Both sides derive the same keys of the right sizes for every cipher, for ESP and for AH."""
    sets = f'[crypto.one]\nquick = ["{suite}"]\n'
    link = Link(*tunnel_hosts(left_rule='crypto = "one"', right_rule='crypto = "one"', sets=sets))
    link.up("net")
    link.run(2)
    agree(link, ikes=1, pairs=1)
    half = link.left.pairs[0].inbound
    assert (len(bytes(half.encryption_key)), len(bytes(half.integrity_key))) == half.suite.keys
    assert (half.suite.protocol is SecurityProtocol.AH) == suite.startswith("ah")
    link.rekey_child(link.right)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    link.close_child(link.left)
    link.run(5)
    agree(link, ikes=1, pairs=0)


MAIN = (
    "x25519 aes128gcm sha256",
    "x448 aes192gcm sha384",
    "p256 aes256gcm sha512",
    "p384 chacha20poly1305 sha256",
    "p521 aes128 sha256",
    "modp2048 aes192 sha384",
    "modp3072 aes256 sha512",
    "modp2048 aes128 sha1",
)


@pytest.mark.parametrize("suite", MAIN)
def test_every_main_suite(suite: str) -> None:
    """IKE itself over every cipher, PRF and group, also after the IKE SA is replaced (where PRFs of both
    count)."""
    sets = f'[crypto.one]\nmain = ["{suite}"]\n'
    link = Link(*tunnel_hosts(left_rule='crypto = "one"', right_rule='crypto = "one"', sets=sets))
    link.up("net")
    link.run(2)
    agree(link, ikes=1, pairs=1)
    link.rekey(link.right)
    link.run(5)
    link.rekey_child(link.left)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert str(link.left.ikes[0].suite) == suite


@ORDERS
@pytest.mark.parametrize(("left", "right"), [(True, True), (True, False), (False, True), (False, False)])
def test_extended_sequence_numbers(first: str, left: bool, right: bool) -> None:
    """They are used when both sides can; then the replay window knows."""
    rules = {
        f"{name}_rule": f'crypto = "{"with" if esn else "without"}"'
        for name, esn in (("left", left), ("right", right))
    }
    sets = "[crypto.with]\nesn = true\n[crypto.without]\nesn = false\n"
    link = Link(*tunnel_hosts(**rules, sets=sets))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    for one in (link.left, link.right):
        (pair,) = one.pairs
        assert pair.inbound.suite.esn is pair.outbound.suite.esn is (left and right)


# Without a Child SA -----------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("later", BOTH)
def test_an_ike_sa_without_a_child(first: str, later: str) -> None:
    """RFC 6023: IKE_AUTH without SA and TS; a Child SA may follow from either side."""
    link = Link(*tunnel_hosts())
    link.up("net", first, childless=True)
    link.run(5)
    agree(link, ikes=1, pairs=0)
    link.up("net", later)
    link.run(5)
    agree(link, ikes=1, pairs=1)


@ORDERS
def test_a_peer_that_takes_no_ike_sa_without_a_child(first: str) -> None:
    """It has not announced that it does, so we do not try; the reason says so."""
    link = Link(*tunnel_hosts(settings=IkeSettings(childless="never")))
    link.up("net", first, childless=True)
    link.run(40)
    agree(link, ikes=0, pairs=0)
    assert "RFC 6023" in link.named(first).failures[0].reason


@ORDERS
def test_the_next_ike_sa_in_another_group(first: str) -> None:
    """INVALID_KE_PAYLOAD when the IKE SA is replaced: the peer's order decides, and the request is made
    again."""
    sets = '[crypto.a]\nmain = ["x25519 aes256gcm sha384", "p256 aes256gcm sha384"]\n'
    sets += '[crypto.b]\nmain = ["p256 aes256gcm sha384", "x25519 aes256gcm sha384"]\n'
    link = Link(*tunnel_hosts(left_rule='crypto = "a"', right_rule='crypto = "b"', sets=sets))
    link.up("net", first)
    link.run(1)
    for side in (link.left, link.right):
        link.rekey(side)
        link.run(5)
        agree(link, ikes=1, pairs=1)
        suite = link.left.ikes[0].suite
        assert suite is not None
        assert suite.group.name == ("p256" if side is link.left else "x25519")


@ORDERS
def test_of_twins_only_one_is_replaced(first: str) -> None:
    """Both sides made a pair for the same traffic at once: when the older is due, it is deleted instead."""
    link = Link(*tunnel_hosts())
    link.up("net", "left")
    link.up("net", "right")
    link.run(5)
    link.watch()
    assert len(link.left.pairs) == 2
    host = link.named(first)
    older = min(host.pairs, key=lambda one: one.created)
    if all(one.owner == older.owner for one in host.pairs):
        link.perform(host, host.endpoint.rekey_child(older, link.now))
        link.run(5)
        agree(link, pairs=1)
    else:  # on IKE SAs of their own they know nothing of each other
        link.perform(host, host.endpoint.rekey_child(older, link.now))
        link.run(5)
        agree(link, pairs=2)
    assert older not in host.pairs
    assert not link.gaps


def test_a_twin_on_the_same_ike_sa() -> None:
    """The second pair was asked for by hand; the first, when it is due, is not replaced but deleted."""
    link = connected()
    old = link.left.pairs[0]
    link.up("net", "left")
    link.run(3)
    agree(link, ikes=1, pairs=2)
    link.watch()
    link.perform(link.left, link.left.endpoint.rekey_child(old, link.now))
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert old not in link.left.pairs
    assert not link.gaps
