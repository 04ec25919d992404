"""The life of ISAKMP SAs and quick-mode SAs (RFC 2408 section 3.15, RFC 2407 section 4.6.3, RFC 3706):
replacing, deleting, INITIAL-CONTACT, dead peers, and both sides at once.

If one of these fails, traffic is lost while keys are replaced, or an SA stays at one end only."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import pytest
from support.link import (
    BOTH,
    LEFT,
    RIGHT,
    Flight,
    Host,
    Link,
    agree,
    losing,
    mirrored,
    psk,
    story,
    tunnel_rules,
)
from support.link import host as lone_host
from support.phases import RULE, connected, hosts, informed, main_mode, read, sets

from ikd.events import ChildClosed, ChildEstablished, IkeClosed, IkeEstablished
from ikd.ikev1 import informational
from ikd.ikev1.message import status
from ikd.isakmp.numbers import Exchange, N, ProtocolId
from ikd.isakmp.payloads import Delete, Notify
from ikd.settings import IkeSettings
from sadb.sa import State, UnknownSpi

ORDERS = pytest.mark.parametrize("first", BOTH)
COMMANDS: dict[str, Callable[[Link, Host], None]] = {
    "rekey child": Link.rekey_child,
    "rekey main": Link.rekey,
    "create child": lambda link, host: link.up("net1", host),
}


def nothing_informs(flight: Flight) -> None:
    """Loses informational messages, which nobody acknowledges."""
    flight.lost = flight.header.exchange == Exchange.INFORMATIONAL


# Replacing --------------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("lost", [(), *((n,) for n in range(9)), *combinations(range(5), 2)], ids=str)
def test_a_quick_mode_sa_is_replaced(lost: tuple[int, ...], first: str) -> None:
    """From either side and whatever is lost, without a moment in which packets go astray. Where the Delete is
    lost, the old one only receives, until its end."""
    link = connected()
    link.watch()
    link.fate = losing(*lost)
    one = link.named(first)
    old = one.pairs[0]
    link.rekey_child(one)
    link.run(60)
    assert not link.gaps
    assert len(one.pairs) == 1
    assert one.pairs[0] is not old
    if len(link.other(one).pairs) == 2:
        spare, pair = link.other(one).pairs
        assert spare.inbound.state is State.DYING
        link.close_child(one)
        link.perform(link.other(one), link.other(one).endpoint.close_child(spare, link.now, "a test"))
        assert pair.inbound.state is State.MATURE
        link.run(5)
        agree(link, ikes=1, pairs=0)
    else:
        agree(link, ikes=1, pairs=1)


@pytest.mark.long
@ORDERS
@pytest.mark.parametrize("lost", [(), *((n,) for n in range(8)), *combinations(range(7), 2)], ids=str)
def test_an_isakmp_sa_is_replaced(lost: tuple[int, ...], first: str) -> None:
    """By another phase 1, whatever is lost. Its quick-mode SAs go over to the new one; even when the peer
    never hears that the old one is gone, it does not drop them with it."""
    link = connected(nets=2)
    link.up("net1")
    link.run(1)
    link.watch()
    link.fate = losing(*lost)
    pairs, old = link.left.pairs, link.left.ikes[0]
    link.rekey(link.named(first))
    link.run(200)
    agree(link, ikes=1, pairs=2)
    assert link.left.pairs == pairs
    assert link.left.ikes[0] is not old
    assert not link.gaps
    link.rekey_child(link.left)
    link.close_child(link.right)
    link.run(10)
    agree(link, ikes=1, pairs=2)


@ORDERS
def test_a_replaced_isakmp_sa_is_told_of_once(first: str) -> None:
    """Whoever counts main-mode SAs by their events would count wrong."""
    link = connected()
    link.rekey(link.named(first))
    link.run(60)
    for one in (link.left, link.right):
        assert len(one.of(IkeEstablished)) == 2
        assert len(one.of(IkeClosed)) == 1
    begun = link.named(first).of(IkeEstablished)
    assert [event.replaces for event in begun] == [0, begun[0].ike]


@pytest.mark.long
@pytest.mark.parametrize("after", [0.0, 0.005, 0.01, 0.02, 0.03, 0.05])
@pytest.mark.parametrize("right", COMMANDS)
@pytest.mark.parametrize("left", COMMANDS)
def test_both_sides_at_once(left: str, right: str, after: float) -> None:
    """IKEv1 has no rule for it: both may make what they began; nothing is lost, or left over at one end."""
    link = connected(nets=2)
    link.watch()
    COMMANDS[left](link, link.left)
    link.run(after)
    COMMANDS[right](link, link.right)
    link.run(30)
    agree(link)
    assert not link.gaps
    assert 1 <= len(link.left.ikes) <= 2
    for one in (link.left, link.right):  # and each pair can still be deleted
        for _ in range(2):
            link.close_child(one)
            link.run(3)
            agree(link)


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.06, 1.1])
@pytest.mark.parametrize("lost", [(), (0,), (1,), (2,), (0, 1)], ids=str)
@ORDERS
def test_a_quick_mode_while_phase_1_is_replaced(first: str, lost: tuple[int, ...], delay: float) -> None:
    """It is not cut off when its ISAKMP SA goes, or it begins again on the next one."""
    link = connected()
    link.watch()
    link.fate = losing(*lost)
    link.rekey_child(link.left)
    link.run(delay)
    link.rekey(link.named(first))
    link.run(100)
    agree(link, ikes=1, pairs=1)
    assert len(link.left.of(ChildEstablished)) == 2
    assert not link.gaps
    assert not link.left.failures


@ORDERS
def test_a_peer_that_deletes_the_old_isakmp_sa_at_once(first: str) -> None:
    """A quick mode of ours that it cuts off begins again on the new one."""
    link = connected()
    one = link.named(first)
    other = link.other(one)
    link.rekey(other)
    link.run(0.065)  # the other end has its new ISAKMP SA, its Delete for the old one is on the way
    link.fate = lambda flight: setattr(flight, "lost", flight.header.exchange == Exchange.QUICK)
    old = main_mode(one)
    link.perform(one, old.owner.rekey_child(one.pairs[0], link.now))
    link.run(0.05)
    link.fate = lambda flight: None
    link.run(60)
    agree(link, ikes=1, pairs=1)
    assert len(one.of(ChildEstablished)) == 2


@ORDERS
@pytest.mark.parametrize("closes", BOTH)
@pytest.mark.parametrize("moment", [n * 0.02 for n in range(12)])
def test_what_replaced_another_is_closed_while_that_makes_a_pair(
    first: str, closes: str, moment: float
) -> None:
    """A quick mode under way on the ISAKMP SA that is replaced would make its pair after the newer one has
    been closed: keys in use that belong to nobody and that no command reaches."""
    link = connected()
    host = link.named(first)
    host.slow = 0.05
    link.rekey_child(host)
    link.rekey(host)
    link.run(moment)
    link.close(link.named(closes))
    link.run(60)
    for one in (link.left, link.right):
        assert {pair.owner for pair in one.database.pairs()} <= {found.number for found in one.ikes}, story(
            link
        )
        assert one.database.counts().larval == 0
    for one in (link.left, link.right):
        link.close(one)
    link.run(60)
    agree(link, ikes=0, pairs=0)


def test_replacing_twice_at_once_makes_one() -> None:
    """Both directions of a pair meet their soft limits at about the same time."""
    link = connected()
    link.rekey_child(link.left)
    link.rekey_child(link.left)
    link.run(5)
    link.rekey_child(link.left)
    link.run(0.015)
    link.rekey_child(link.left)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert len(link.left.of(ChildEstablished)) == 3


@pytest.mark.parametrize("after", [0.0, 0.005, 0.01, 0.015, 0.025, 0.035, 0.045, 0.055, 0.065])
@pytest.mark.parametrize("lost", [(), (4,), (8,), (9,)], ids=str)
def test_both_begin_phase_1(after: float, lost: tuple[int, ...]) -> None:
    """Each says that it has no other ISAKMP SA with its peer, and believes the other: the one that has come
    up meanwhile is not meant by that."""
    link = Link(*hosts())
    link.fate = losing(*lost)
    link.up("net", "left")
    link.run(after)
    link.up("net", "right")
    link.run(40)
    agree(link)
    assert 1 <= len(link.left.ikes) <= 2
    assert link.left.pairs


def test_one_of_two_isakmp_sas_goes_in_time() -> None:
    """When both sides have begun at once there are two, which are not both replaced for ever; and the two
    sides do not give up one each."""
    link = Link(*hosts(crypto=sets(lifetime='{ main = "10 min", quick = "60 min" }')))
    link.up("net", "left")
    link.up("net", "right")
    link.run(10)
    agree(link, ikes=2, pairs=2)
    link.watch()
    link.run(7200)
    agree(link, ikes=1)
    assert not link.gaps


def test_half_a_day() -> None:
    """Liveness and replaced keys of both kinds: after that there is one ISAKMP SA and one pair."""
    link = connected(crypto=sets(lifetime='{ main = "2 h", quick = "1 h" }'))
    link.watch()
    link.run(43200)
    agree(link, ikes=1, pairs=1)
    assert not link.gaps
    assert len(link.left.of(IkeEstablished)) > 5


# Deleting ---------------------------------------------------------------------------------------------------


@ORDERS
def test_a_quick_mode_sa_is_deleted(first: str) -> None:
    """On both sides; the ISAKMP SA stays."""
    link = connected(nets=2)
    link.up("net1")
    link.run(1)
    one = link.named(first)
    # HDR*, HASH(1), D  -->
    link.close_child(one)
    link.run(1)
    agree(link, ikes=1, pairs=1)
    assert one.of(ChildClosed)[0].reason == "a test"
    assert link.other(one).of(ChildClosed)[0].reason == "deleted by the peer"


@ORDERS
def test_an_isakmp_sa_is_deleted(first: str) -> None:
    """With all that was made by it."""
    link = connected(nets=2)
    link.up("net1")
    link.run(1)
    one = link.named(first)
    link.close(one)
    link.run(1)
    agree(link, ikes=0, pairs=0)
    assert not one.of(IkeClosed)[0].by_peer
    assert link.other(one).of(IkeClosed)[0].by_peer


@ORDERS
def test_a_delete_that_is_lost(first: str) -> None:
    """Nobody acknowledges it. When packets for the SA come, the peer is told, and drops it."""
    link = connected()
    one = link.named(first)
    other = link.other(one)
    link.fate = nothing_informs
    link.close_child(one)
    link.run(1)
    link.fate = lambda flight: None
    (pair,) = other.pairs
    notice = UnknownSpi(pair.outbound.spi, link.path(one).peer)
    link.perform(one, one.endpoint.unknown_spi(notice, link.now))
    link.run(1)
    agree(link, ikes=1, pairs=0)
    link.up("net", other)
    link.run(1)
    agree(link, ikes=1, pairs=1)


def test_deletes_that_name_nothing() -> None:
    """SPIs of the other protocol, of other sizes, unknown ones, and cookies of another ISAKMP SA."""
    link = connected()
    spi = link.left.pairs[0].inbound.spi.to_bytes(4, "big")
    for number, delete in enumerate(
        (
            Delete(protocol=ProtocolId.AH, spis=(spi,)),
            Delete(protocol=ProtocolId.ESP, spis=(bytes(4) + spi,)),
            Delete(protocol=ProtocolId.ESP, spis=()),
            Delete(protocol=99, spis=(spi,)),
            Delete(protocol=ProtocolId.ISAKMP, spis=(bytes(16),)),
            Delete(protocol=ProtocolId.ESP, spis=(b"\1\2\3\4", bytes(4))),
        ),
        1,
    ):
        link.inject(link.right, informed(link.left, delete, number=number))
    assert set(link.right.drops) <= {"malformed"}
    agree(link, ikes=1, pairs=1)


def test_several_in_one_delete() -> None:
    """Every SPI of a Delete payload counts."""
    link = connected(nets=3)
    link.up("net1")
    link.up("net2")
    link.run(1)
    spis = tuple(pair.inbound.spi.to_bytes(4, "big") for pair in link.left.pairs[1:])
    delete = Delete(protocol=ProtocolId.ESP, spis=(b"\1\2\3\4", *spis, spis[0]))
    link.inject(link.right, informed(link.left, delete))
    assert [pair.rule for pair in link.right.pairs] == ["net"]


def test_a_delete_counts_once() -> None:
    """A recorded one has no effect on what is there later, whatever its octets."""
    link = connected()
    probe = informational.are_you_there(main_mode(link.left).session, 5)
    data = informed(link.left, probe)
    link.inject(link.right, data)
    heard = main_mode(link.right).life.heard
    count = len(link.flights)
    link.run(20)
    link.inject(link.right, data)
    assert main_mode(link.right).life.heard == heard, "a recording keeps a dead peer alive"
    assert len(link.flights) <= count + 1


# INITIAL-CONTACT --------------------------------------------------------------------------------------------


@ORDERS
def test_a_peer_that_lost_everything(first: str) -> None:
    """It says so with its next phase 1, and what it had before goes."""
    link = connected()
    one = link.named(first)
    again = hosts(seed=7)[BOTH.index(first)]
    fresh = Link(again, link.right) if first == "left" else Link(link.left, again)
    fresh.now = link.now + 10
    fresh.up("net", again)
    fresh.run(5)
    agree_on_one(fresh)
    assert [event.reason for event in link.other(one).of(IkeClosed)] == ["the peer has begun anew"]


def agree_on_one(link: Link) -> None:
    """One ISAKMP SA and one pair on both sides."""
    assert [len(one.ikes) for one in (link.left, link.right)] == [1, 1], story(link)
    assert mirrored(link.left, link.right)
    assert len(link.left.pairs) == len(list(link.right.database.pairs())) == 1


def test_initial_contact_speaks_for_an_address() -> None:
    """RFC 2407 section 4.6.3.3: peers with the same name and key at other addresses, such as clients that
    call themselves by the same private address, do not end each other's SAs, nor inherit from each other."""
    rules = tunnel_rules("right", peer="any", extra=RULE) + sets()
    right = lone_host("right", RIGHT, rules, psk("right.example", "left.example"))
    links = []
    for n in range(2):
        address = LEFT + 76 * n
        own = tunnel_rules("left", own=address, extra=RULE) + sets()
        left = lone_host("left", address, own, psk("left.example", "right.example"), seed=n)
        link = Link(left, right)
        link.now += 10 * n
        link.up("net")
        link.run(5)
        links.append(link)
    assert len(right.ikes) == len(right.pairs) == 2
    assert not right.of(IkeClosed)
    links[1].close(links[1].left)
    links[1].run(1)
    assert len(right.ikes) == len(right.pairs) == 1
    assert right.pairs[0].owner == right.ikes[0].number
    assert right.ikes[0].path.peer.address == LEFT


# Dead peers -------------------------------------------------------------------------------------------------


@ORDERS
def test_a_dead_peer_is_noticed(first: str) -> None:
    """After silence it is asked, several times, and then all it had goes."""
    link = connected()
    one = link.named(first)
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.run(30 + 70)
    assert not one.ikes
    assert not list(one.database.pairs())
    assert one.of(IkeClosed)[0].reason == "the peer does not answer"
    assert "R-U-THERE" in one.failures[0].reason


@ORDERS
@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_probe_or_its_answer_is_lost(lost: int, first: str) -> None:
    """It is asked again with the same sequence number."""
    link = connected(**{f"{link_other(first)}_settings": IkeSettings(liveness=0)})
    link.fate = losing(*range(lost))
    count = len(link.flights)
    link.run(60)
    agree(link, ikes=1, pairs=1)
    receiver, numbers = link.named(link_other(first)), []
    for flight in link.flights[count:]:
        if flight.sender is not receiver:
            notify = read(receiver, flight.data).one(Notify)
            assert notify.type == N.R_U_THERE
            assert notify.spi == b"".join(main_mode(receiver).spis)
            numbers.append(notify.data)
    assert len(set(numbers[: (lost + 1) // 2 + 1])) == 1


@ORDERS
def test_any_message_is_a_sign_of_life(first: str) -> None:
    """RFC 3706 section 5.5: a peer that does not answer R-U-THERE but speaks is not dead."""
    link = connected()
    one = link.named(first)
    other = link.other(one)

    def fate(flight: Flight) -> None:
        flight.lost = flight.sender is other and flight.header.exchange == Exchange.INFORMATIONAL

    link.fate = fate
    for _ in range(40):
        link.run(9)
        link.rekey_child(other)
    assert one.ikes, story(link)
    assert not one.of(IkeClosed)


def test_a_peer_that_does_not_know_dpd_is_not_asked() -> None:
    """It would not answer, and lose its SAs for that."""
    link = Link(*hosts())
    link.fate = without_vendor(b"\xaf\xca\xd7\x13")
    link.up("net")
    link.run(300)
    agree(link, ikes=1, pairs=1)
    assert not [one for one in link.flights if one.header.exchange == Exchange.INFORMATIONAL]


def without_vendor(prefix: bytes) -> Callable[[Flight], None]:
    """Makes vendor IDs unknown to whoever gets them."""

    def fate(flight: Flight) -> None:
        if flight.header.exchange == Exchange.MAIN and not flight.header.flags & 1:
            flight.data = flight.data.replace(prefix, bytes(len(prefix)))

    return fate


# Times ------------------------------------------------------------------------------------------------------


def test_the_time_of_an_isakmp_sa_runs_out() -> None:
    """One that cannot be replaced goes at its end, and its quick-mode SAs with it."""
    link = connected(
        crypto=sets(lifetime='{ main = "10 min", quick = "60 min" }'), settings=IkeSettings(liveness=0)
    )
    link.fate = lambda flight: setattr(flight, "lost", flight.header.exchange == Exchange.MAIN)
    link.run(590)
    assert link.left.pairs
    link.run(20)
    assert not link.left.pairs
    link.run(60)
    agree(link, ikes=0, pairs=0)


def test_an_idle_pair_goes() -> None:
    """Where the rule says so, and at both ends."""
    link = connected(crypto=sets(lifetime='{ idle = "5 min" }'))
    link.run(290)
    agree(link, pairs=1)
    link.run(20)
    agree(link, ikes=1, pairs=0)


def test_so_many_messages_that_some_would_be_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recording of one that is forgotten would be new: the ISAKMP SA is replaced in time, and what was
    said on the old one is nothing on the new one."""
    monkeypatch.setattr("ikd.isakmp.reception.MOST_SEEN", 100)
    link = connected()
    (old,) = link.right.ikes
    probe = status(N.R_U_THERE, b"\0\0\0\1", ProtocolId.ISAKMP, b"".join(main_mode(link.left).spis))
    recorded = [informed(link.left, probe, number=n) for n in range(1, 60)]
    for data in recorded:
        link.inject(link.right, data)
    link.run(30)
    agree(link, ikes=1, pairs=1)
    assert link.right.ikes != [old]
    count = len(link.flights)
    for data in recorded:
        link.inject(link.right, data)
    assert len(link.flights) == count


@ORDERS
def test_a_host_shuts_down(first: str) -> None:
    """Its peer hears it."""
    link = connected(nets=2)
    link.up("net1")
    link.run(1)
    one = link.named(first)
    link.perform(one, one.endpoint.shutdown(link.now))
    assert one.endpoint.idle
    link.run(1)
    agree(link, ikes=0, pairs=0)


@ORDERS
def test_a_rule_is_taken_away(first: str) -> None:
    """Its SAs end at both ends, others stay; and with the last rule the ISAKMP SA goes."""
    link = connected(nets=2)
    link.up("net1")
    link.run(1)
    one = link.named(first)
    link.reload(one, tunnel_rules(first, nets=1, extra=RULE) + sets())
    link.run(1)
    agree(link, ikes=1, pairs=1)
    assert [pair.rule for pair in link.left.pairs] == ["net"]
    link.reload(one, sets())
    link.run(1)
    agree(link, ikes=0, pairs=0)


@pytest.mark.parametrize("seconds", [120.0, 240.0])
def test_soft_limits_come_before_hard_ones(seconds: float) -> None:
    """Both sides agree on the shorter life, and pairs are replaced in time."""
    link = connected(crypto=sets(lifetime=f'{{ quick = "{seconds:.0f} s" }}'))
    link.watch()
    link.run(seconds * 5)
    agree(link)
    assert not link.gaps
    times = [pair.created for pair in link.left.pairs]
    assert all(later - one <= seconds for one, later in pairwise(times))
    assert 5 <= len(link.left.of(ChildEstablished)) <= 14


def test_a_refusal_that_is_lost_is_told_again() -> None:
    """Its request comes once more, and gets the same answer; without that nobody would know for a minute."""
    left, right = hosts(nets=2)[0], hosts(nets=1)[1]
    link = Link(left, right)
    link.up("net")
    link.run(1)
    link.fate = losing(1)
    link.up("net1")
    link.run(10)
    agree(link, ikes=1, pairs=1)
    assert [one.notify for one in left.failures] == ["INVALID_ID_INFORMATION"]
    assert len(right.failures) == 1


def link_other(name: str) -> str:
    """The other side's name."""
    return "right" if name == "left" else "left"


def test_status_notifies_change_nothing() -> None:
    """CONNECTED after a commit bit, REPLAY-STATUS, unknown ones: heard, and that is all."""
    link = connected()
    for number, kind in enumerate((N.CONNECTED, N.REPLAY_STATUS, N.RESPONDER_LIFETIME, 40000, 30000), 1):
        link.inject(link.right, informed(link.left, status(kind), number=number))
    agree(link, ikes=1, pairs=1)
    assert not link.right.drops
