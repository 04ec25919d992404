"""Vendor IDs, fast failover, private notifies and refusals between two endpoints in virtual time (MS-IKEE).

If one of these fails, we use what the peer does not know, SAs of a peer that has lost them live on, or an
administrator is not told what Windows says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.ikev1 import first_message, sa, transform
from support.link import Flight, Host, Link, agree, losing, story, tunnel_hosts

from ikd.control import views
from ikd.events import AuthenticationFailed, IkeClosed, MessageReceived, PeerAnnounced
from ikd.ikev1.association import Ikev1Association
from ikd.ikev1.message import status
from ikd.isakmp.numbers import N, Traversal
from ikd.isakmp.payloads import PAYLOADS, Notify, VendorId
from ikd.riders.vendor import Known
from ikd.settings import IkeSettings
from ikd.wire.isakmp import HEADER_SIZE, chain, encode_chain

IKEV1 = 'keying = ["ikev1"]\ncrypto = "cbc"'
CBC = '[crypto.cbc]\nmain = ["p256 aes128 sha256"]\n'
WINDOWS = IkeSettings(vendor_ids="windows", liveness=0)
STANDARD = IkeSettings(liveness=0)
NONE = IkeSettings(vendor_ids="none", liveness=0)


def between(
    left: IkeSettings = WINDOWS, right: IkeSettings = WINDOWS, rule: str = IKEV1, nat: str = ""
) -> Link:
    """Two hosts, not connected yet."""
    hosts = tunnel_hosts(
        left_rule=rule, right_rule=rule, left_settings=left, right_settings=right, sets=CBC, nat=nat
    )
    return Link(*hosts, nat=nat)


def up(link: Link, seconds: float = 2.0) -> Link:
    """Bring it up."""
    link.up("net", link.inside.name if link.inside else "left")
    link.run(seconds)
    return link


def one(host: Host) -> Ikev1Association:
    """Its only ISAKMP SA."""
    (found,) = host.ikes
    assert isinstance(found, Ikev1Association)
    return found


def sent(link: Link, number: int) -> list[bytes]:
    """The vendor IDs in a datagram."""
    flight = link.flights[number]
    payloads, _ = chain(flight.header.next_payload, flight.data[HEADER_SIZE:], PAYLOADS)
    return [payload.data for payload in payloads if isinstance(payload, VendorId)]


def adding(*vendors: bytes, by: str) -> Callable[[Flight], None]:
    """A fate that puts further vendor IDs into a host's first or second message of main mode."""

    def fate(flight: Flight) -> None:
        header = flight.header
        if flight.sender.name != by or header.exchange != 2 or header.flags:
            return
        payloads, _ = chain(header.next_payload, flight.data[HEADER_SIZE:], PAYLOADS)
        if payloads[0].kind == 1:
            payloads += [VendorId(data=one) for one in vendors]
            _, octets = encode_chain(payloads)
            flight.data = replace(header, length=HEADER_SIZE + len(octets)).encode() + octets

    return fate


# Profiles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [WINDOWS, STANDARD, NONE], ids=lambda one: one.vendor_ids)
@pytest.mark.parametrize("right", [WINDOWS, STANDARD, NONE], ids=lambda one: one.vendor_ids)
def test_all_profiles_understand_each_other(left: IkeSettings, right: IkeSettings) -> None:
    """What one side leaves out the other one does without."""
    link = up(between(left, right))
    agree(link, ikes=1, pairs=1)
    bare = "none" in (left.vendor_ids, right.vendor_ids)
    expected = Traversal.NONE if bare else Traversal.RFC_3947
    assert one(link.left).session.traversal is one(link.right).session.traversal is expected
    assert one(link.left).session.may_fragment is not bare
    assert one(link.right).session.may_fragment is not bare


def test_first_messages_of_windows() -> None:
    """In its order; the responder says nothing of keying modules and initial contact, as Windows' does."""
    link = up(between())
    first = [Known(data[:16]) for data in sent(link, 0)]
    assert first == [
        Known.KEYING_MODULES,
        Known.MICROSOFT,
        Known.RFC_3947,
        Known.NAT_DRAFT_02,
        Known.FRAGMENTATION,
        Known.INITIAL_CONTACT,
        Known.DPD,
    ]
    assert [Known(data[:16]) for data in sent(link, 1)] == [
        Known.MICROSOFT,
        Known.RFC_3947,
        Known.NAT_DRAFT_02,
        Known.FRAGMENTATION,
        Known.DPD,
    ]


def test_what_the_peer_announces_is_shown() -> None:
    """In the log and in `ikctl sa --json`, by name and version."""
    link = up(between())
    shown = views.association(one(link.right), link.right.pairs, link.now)["vendor_ids"]
    assert isinstance(shown, list)
    assert "Microsoft 9 (Windows 8, Server 2012 or later)" in shown
    assert link.right.of(PeerAnnounced)[0].vendor_ids == tuple(shown)


@pytest.mark.parametrize("settings", [WINDOWS, STANDARD, NONE], ids=lambda one: one.vendor_ids)
def test_ikev2(settings: IkeSettings) -> None:
    """IKE_SA_INIT has Windows' IDs only where it is told to, and both sides see them."""
    link = up(between(settings, settings, rule=""))
    agree(link, ikes=1, pairs=1)
    announced = link.right.of(PeerAnnounced)
    if settings is WINDOWS:
        assert announced[0].vendor_ids == (
            "Microsoft 9 (Windows 8, Server 2012 or later)",
            "initial contact",
            "keying modules 2 (IKEv2)",
        )
        assert "initial contact" not in link.left.of(PeerAnnounced)[0].vendor_ids
    else:
        assert not announced


# Failover ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [WINDOWS, STANDARD], ids=lambda one: one.vendor_ids)
def test_a_client_that_has_lost_everything(settings: IkeSettings) -> None:
    """Its first message says so, and once it is proven its old SAs are gone."""
    link = up(between(settings, settings))
    old = link.right.ikes[0]
    link.left = tunnel_hosts(left_rule=IKEV1, left_settings=settings, sets=CBC, seed=2)[0]
    up(link)
    assert len(link.right.ikes) == 1, story(link)
    assert link.right.ikes[0] is not old
    assert [one.reason for one in link.right.of(IkeClosed)] == ["the peer has begun anew"]


def test_a_server_that_says_so_to_a_client_without_memory_of_it() -> None:
    """Its second message means nothing when there is nothing to forget: two that begin at once keep both."""
    link = between(STANDARD, STANDARD)
    link.fate = adding(Known.INITIAL_CONTACT.value, by="right")
    up(link)
    agree(link, ikes=1, pairs=1)


def test_a_stranger_ends_nothing() -> None:
    """The vendor ID is in the clear: unproven, it is no reason to forget a peer."""
    link = up(between())
    data = first_message(
        sa(transform(0, 1, "80010007 800e0080 80020004 80030001 80040013")), Known.INITIAL_CONTACT.value
    )
    link.inject(link.right, data, port=500)
    link.run(60)
    assert len(link.right.pairs) == len(link.left.pairs) == 1


@pytest.mark.parametrize(
    ("settings", "cluster", "seconds"),
    [(STANDARD, True, 60), (WINDOWS, True, 60), (WINDOWS, False, 300), (STANDARD, False, None)],
)
def test_idle_pairs(settings: IkeSettings, cluster: bool, seconds: float | None) -> None:
    """A minute with a member of a cluster, five with the profile of Windows, else as the rule says."""
    link = between(settings, settings)
    if cluster:
        link.fate = adding(Known.NLBS_PRESENT.value, by="right")
    up(link)
    agree(link, ikes=1, pairs=1)
    link.run((seconds or 1000) - 5)
    assert len(link.left.pairs) == 1
    link.run(20)
    assert len(link.left.pairs) == (1 if seconds is None else 0)
    agree(link, ikes=1)


# Notifies ---------------------------------------------------------------------------------------------------


def private(kind: int, octets: bytes, *, as_spi: bool = False) -> Notify:
    """A private notify, with SPI size 8 and no SPI if told so."""
    return status(kind, spi=octets) if as_spi else status(kind, octets)


def say(link: Link, host: Host, *payloads: Notify) -> None:
    """A protected informational message."""
    found = one(host)
    found.session.now = link.now
    with host.endpoint._outputs as outputs:
        found._inform(*payloads)
    link.perform(host, outputs)


@pytest.mark.parametrize("as_spi", [False, True])
def test_windows_refuses_a_quick_mode(as_spi: bool) -> None:
    """NOTIFY_STATUS names the quick mode and the reason, with or without a standard error beside it."""
    link = up(between())
    seen = len(link.flights)
    link.fate = lambda flight: setattr(flight, "lost", flight.header.exchange == 32)
    link.rekey_child(link.left)
    number = link.flights[seen].header.message_id
    other = (number ^ 1).to_bytes(4, "big") + (13868).to_bytes(4, "big")
    say(link, link.right, private(N.NOTIFY_STATUS, other, as_spi=as_spi))
    link.run(0.1)
    assert not link.left.failures, "about another quick mode"
    mine = number.to_bytes(4, "big") + (13868).to_bytes(4, "big")
    say(link, link.right, private(N.NOTIFY_STATUS, mine, as_spi=as_spi))
    link.run(0.1)
    failure = link.left.failures[-1]
    assert "ERROR_IPSEC_IKE_POLICY_MATCH" in failure.reason
    assert failure.notify == "NOTIFY_STATUS"
    assert failure.child
    assert link.left.of(MessageReceived)[-1].payloads == ("HASH", "N(NOTIFY_STATUS 13868 IKE_POLICY_MATCH)")


def test_exchange_info_is_read_and_nothing_comes_of_it() -> None:
    """Negotiation discovery is not spoken yet: the notify is in the log, and the SAs stay."""
    link = up(between())
    say(link, link.right, private(N.EXCHANGE_INFO, bytes((0, 0, 0, 3))))
    say(link, link.right, private(N.NOTIFY_STATUS, bytes(4)), private(N.NOTIFY_STATUS, b"odd"))
    link.run(0.1)
    agree(link, ikes=1, pairs=1)
    shown = [event.payloads for event in link.left.of(MessageReceived)][-2:]
    assert shown[0] == ("HASH", "N(EXCHANGE_INFO BOUNDARY GUARANTEE_ENCRYPTION)")


@pytest.mark.parametrize("version", [None, 3, 9])
def test_early_notify_is_understood(version: int | None) -> None:
    """The responder refuses message 5 under keys both have: the initiator reads why. To an old Windows it is
    written with another IV."""
    rule = IKEV1 + '\npeer = "nobody.example"'
    hosts = tunnel_hosts(
        left_rule=IKEV1, right_rule=rule, left_settings=STANDARD, right_settings=STANDARD, sets=CBC
    )
    link = Link(*hosts)
    if version is not None:
        vendor = Known.MICROSOFT.value + version.to_bytes(4, "big")
        link.fate = adding(vendor, by="left")
    up(link, 60)
    assert link.right.of(AuthenticationFailed)
    read = [event.payloads for event in link.left.of(MessageReceived)]
    understood = ("HASH", "N(AUTHENTICATION_FAILED)") in read
    assert understood is (version != 3), "an old one expects another IV, and the left host is none"


# Refusals ---------------------------------------------------------------------------------------------------


def test_cga_is_refused_by_name() -> None:
    """Not as if nothing in common had been offered."""
    link = between()
    offer = sa(transform(0, 1, "80010007 800e0080 80020004 8003fded 80040013 800b0001 000c000400007080"))
    link.inject(link.right, first_message(offer, Known.CGA.value))
    assert "CGA" in link.right.failures[-1].reason
    link.inject(link.right, b"other..." + first_message(offer)[8:])
    assert "CGA" not in link.right.failures[-1].reason
    assert not link.right.ikes


def test_discovery_is_recognised_and_not_acted_on() -> None:
    """A Windows peer announces it always: nothing changes."""
    link = between()
    link.fate = adding(Known.NEGOTIATION_DISCOVERY.value, Known.XBOX.value, Known.CGA.value, by="left")
    up(link)
    agree(link, ikes=1, pairs=1)
    assert {"negotiation discovery", "Xbox", "CGA"} <= set(link.right.of(PeerAnnounced)[0].vendor_ids)


def test_losses_with_windows() -> None:
    """The profile changes nothing about what a negotiation survives."""
    for lost in range(9):
        link = between()
        link.fate = losing(lost)
        up(link, 30)
        agree(link, ikes=1, pairs=1)
