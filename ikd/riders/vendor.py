"""Vendor IDs: what peers announce with them (MS-IKEE section 2.1, RFC 3706, RFC 3947). What we announce is in
`ikd.riders.announced`.

The octets are constants: three of the names MS-IKEE prints do not hash to what is sent. Matched by their
first 16 octets, because versions, modules or abilities follow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum

OLD = range(2, 6)  # versions of Microsoft's implementation that take another IV for early notifies
MOST_FOLLOWING = 16  # octets kept of what follows; a realm's name has as many


class Known(Enum):
    """A vendor ID by its first 16 octets (RFC 3706's and XAUTH's are as long as they are)."""

    MICROSOFT = bytes.fromhex("1e2b516905991c7d7c96fcbfb587e461")  # with a version of four octets
    KEYING_MODULES = bytes.fromhex("01528bbbc00696121849ab9a1c5b2a51")  # with a module number
    INITIATOR_GROUP = bytes.fromhex("7bb93867d76c8d80df0f40fae8fc3b19")  # with a number of its own
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


def means_kerberos(vendors: Collection[Known]) -> bool:
    """Whether authentication method 65001 of a peer is Kerberos; to others it is XAUTH."""
    if Known.GSSAPI in vendors or Known.GSSAPI_DRAFT in vendors:
        return True
    return Known.MICROSOFT in vendors and Known.XAUTH not in vendors


def heard(all_data: Iterable[bytes]) -> dict[Known, bytes]:
    """What a peer announces, and what follows the first 16 octets of each."""
    found: dict[Known, bytes] = {}
    for data in all_data:
        known = recognised(data)
        if known is not None:
            found.setdefault(known, data[16 : 16 + MOST_FOLLOWING])
    return found


def word(following: bytes) -> int | None:
    """The number that follows a vendor ID, None without one."""
    return int.from_bytes(following[:4], "big") if len(following) >= 4 else None


def microsoft(vendors: Mapping[Known, bytes]) -> int | None:
    """Which version of Microsoft's implementation the peer is, 0 when it does not say, None for others."""
    return None if Known.MICROSOFT not in vendors else word(vendors[Known.MICROSOFT]) or 0


# For people -------------------------------------------------------------------------------------------------

NAMES: dict[Known, str] = {
    Known.MICROSOFT: "Microsoft",
    Known.KEYING_MODULES: "keying modules",
    Known.INITIATOR_GROUP: "group of the key exchange",
    Known.GSSAPI: "Kerberos",
    Known.GSSAPI_DRAFT: "Kerberos (draft)",
    Known.INITIAL_CONTACT: "initial contact",
    Known.NLBS_PRESENT: "member of a cluster",
    Known.FRAGMENTATION: "fragmentation",
    Known.NAT_DRAFT_02: "NAT traversal (draft-02)",
    Known.RFC_3947: "NAT traversal (RFC 3947)",
    Known.AUTHIP: "AuthIP",
    Known.CGA: "CGA",
    Known.NEGOTIATION_DISCOVERY: "negotiation discovery",
    Known.XBOX: "Xbox",
    Known.XBOX_NEGOTIATION: "Xbox negotiation",
    Known.REALM: "security realm",
    Known.DPD: "dead peer detection",
    Known.XAUTH: "XAUTH",
}
SYSTEMS = {
    2: "Windows 2000",
    3: "Windows XP",
    4: "Windows Server 2003",
    5: "Windows Vista",
    6: "Windows Server 2008",
    7: "Windows 7",
    8: "Windows Server 2008 R2",
    9: "Windows 8, Server 2012 or later",
}
MODULES = {0: "IKE", 1: "AuthIP", 2: "IKEv2"}
_MEANINGS: dict[Known, Mapping[int, str]] = {Known.MICROSOFT: SYSTEMS, Known.KEYING_MODULES: MODULES}


def names(vendors: Mapping[Known, bytes]) -> tuple[str, ...]:
    """What a peer announces, for people: `Microsoft 9 (Windows 8, Server 2012 or later)`."""
    return tuple(_name(known, following) for known, following in vendors.items())


def _name(known: Known, following: bytes) -> str:
    number = word(following)
    if number is None:
        return NAMES[known]
    if known is Known.REALM:
        return f"{NAMES[known]} {following.hex()}"
    if known is Known.FRAGMENTATION:  # others than Microsoft say which messages
        return f"{NAMES[known]} {number:#010x}"
    meaning = _MEANINGS.get(known, {}).get(number)
    return f"{NAMES[known]} {number}" + (f" ({meaning})" if meaning else "")
