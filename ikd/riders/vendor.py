"""Vendor IDs: what peers announce with them, and what we announce (MS-IKEE section 2.1, RFC 3706, RFC 3947).

The octets are constants: three of the names MS-IKEE prints do not hash to what is sent. Matched by their
first 16 octets, because versions, modules or abilities follow.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Known(Enum):
    """A vendor ID by its first 16 octets (RFC 3706's and XAUTH's are as long as they are)."""

    MICROSOFT = bytes.fromhex("1e2b516905991c7d7c96fcbfb587e461")  # with a version of four octets
    KEYING_MODULES = bytes.fromhex("01528bbbc00696121849ab9a1c5b2a51")  # with a module number
    GSSAPI = bytes.fromhex("621b04bb09882ac1e15935fefa24aeee")
    GSSAPI_DRAFT = bytes.fromhex("ad2c0dd0b9c32083ccba25b8861ec455")
    INITIAL_CONTACT = bytes.fromhex("26244d38eddb61b3172a36e3d0cfb819")
    NLBS_PRESENT = bytes.fromhex("72872b95fcda2eb708efe322119b4971")
    FRAGMENTATION = bytes.fromhex("4048b7d56ebce88525e7de7f00d6c2d3")
    NAT_DRAFT_02 = bytes.fromhex("90cb80913ebb696e086381b5ec427b1f")
    RFC_3947 = bytes.fromhex("4a131c81070358455c5728f20e95452f")
    AUTHIP = bytes.fromhex("214ca4faffa7f32d6748e5303395ae83")
    CGA = bytes.fromhex("e3a5966a76379fe707228231e5ce8652")
    NEGOTIATION_DISCOVERY = bytes.fromhex("fb1de3cdf341b7ea16b7e5be0855f120")
    XBOX = bytes.fromhex("8aa394cf8a5577dc3110c113b027a4f2")
    XBOX_NEGOTIATION = bytes.fromhex("660822b3a73a244149578d62e0eb46a0")
    REALM = bytes.fromhex("686a8cbdfe634b405146fb2baf33e9e8")
    DPD = bytes.fromhex("afcad71368a1f1c96b8696fc77570100")
    XAUTH = bytes.fromhex("09002689dfd6b712")


_BY_PREFIX = {one.value[:16]: one for one in Known}


def recognised(data: bytes) -> Known | None:
    """Which vendor ID this is, None for those we do not know."""
    return _BY_PREFIX.get(data[:16])


def heard(all_data: Iterable[bytes]) -> frozenset[Known]:
    """What a peer announces."""
    return frozenset(found for data in all_data if (found := recognised(data)) is not None)
