"""Authentication method 65001 of IKEv1: Kerberos to some, XAUTH to others; vendor IDs tell (MS-IKEE section
3.1.5).

If one of these fails, a peer that means XAUTH is sent tokens, or one that can do Kerberos is refused."""

from __future__ import annotations

import pytest
from support.link import (
    BOTH,
    agree,
)
from support.realm import SETS, Change, changing, heard, material, nothing, pair

from ikd.events import PeerAuthenticated
from ikd.isakmp.payloads import VendorId
from ikd.riders.vendor import Known
from ikd.wire.isakmp import Payload


def without_vendors(*left_out: Known, more: tuple[bytes, ...] = ()) -> Change:
    """Leave out some vendor IDs and add others."""

    def change(payloads: list[Payload]) -> list[Payload]:
        known = [one.value for one in left_out]
        kept = [one for one in payloads if not (isinstance(one, VendorId) and one.data in known)]
        return [*kept, *(VendorId(data=one) for one in more)]

    return change


def test_vendor_id_is_announced_with_the_method_only() -> None:
    """To announce Kerberos and offer none would send peers the wrong way."""
    link = pair()
    link.up()
    link.run(5)
    assert Known.GSSAPI.value in heard(link, 1)
    assert Known.GSSAPI.value in heard(link, 2)
    sets = SETS + '[auth.key]\nfirst = ["psk"]\n'
    left, right = (material(name, keytab=False, key=True) for name in BOTH)
    link = pair(sets=sets, auth="key", left_rule="", right_rule="", left=left, right=right)
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert Known.GSSAPI.value not in heard(link, 1) + heard(link, 2)


@pytest.mark.parametrize(
    "instead", [(Known.GSSAPI_DRAFT.value,), (Known.MICROSOFT.value + b"\0\0\0\x09",)], ids=["draft", "ms"]
)
@pytest.mark.parametrize("message", [1, 2])
def test_other_vendor_ids_mean_kerberos(instead: tuple[bytes, ...], message: int) -> None:
    """The draft's own, and Microsoft's of any version."""
    link = pair()
    link.fate = changing(message, without_vendors(Known.GSSAPI, more=instead))
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize(
    "instead",
    [(), (Known.XAUTH.value,), (Known.XAUTH.value, Known.MICROSOFT.value + b"\0\0\0\x09")],
    ids=["none", "xauth", "xauth-of-microsoft"],
)
def test_65001_without_kerberos_is_xauth(instead: tuple[bytes, ...]) -> None:
    """A client that means XAUTH would otherwise be told to send a token, and nobody would know why that
    fails."""
    link = pair()
    link.fate = changing(1, without_vendors(Known.GSSAPI, more=instead))
    link.up()
    link.run(120)
    nothing(link)
    (failed,) = link.right.failures
    assert failed.reason == "the peer means XAUTH by authentication method 65001, which is Kerberos here"
    assert failed.notify == "NO_PROPOSAL_CHOSEN"


def test_responder_that_means_xauth() -> None:
    """The initiator is told when nothing better comes."""
    link = pair()
    link.fate = lambda flight: (
        changing(flight.number + 1, without_vendors(Known.GSSAPI))(flight)
        if (flight.sender is link.right)
        else None
    )
    link.up()
    link.run(120)
    nothing(link)
    assert "means XAUTH" in link.left.failures[0].reason
    assert "GSSAPI" in link.left.failures[0].remedy


def test_method_that_both_have_is_taken() -> None:
    """Kerberos first, but the peer has no keytab: the key does it."""
    sets = SETS + '[auth.both]\nfirst = ["kerberos", "psk"]\n'
    link = pair(
        sets=sets,
        auth="both",
        left=material("left", key=True),
        right=material("right", keytab=False, key=True),
        left_rule="",
        right_rule="",
    )
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert link.left.of(PeerAuthenticated)[0].method == "psk"


def test_not_in_aggressive_mode() -> None:
    """There the tokens would have to be there before anything is agreed on; it is said, not tried."""
    link = pair(left_rule='peer = "right.example"\naggressive = true\n')
    link.up()
    link.run(5)
    nothing(link)
    assert "in main mode and with vendor IDs, Kerberos" in link.left.failures[0].remedy
