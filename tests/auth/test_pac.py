"""ikd.auth.pac: what Samba wrote, what Windows may write, and whatever else could stand there."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd.auth import pac
from ikd.auth.pac import LogonInfo, Unreadable

DOMAIN = "S-1-5-21-2644767308-3596401228-797727947"
# Of a ticket for user clerk, member of HR (1107), by a domain controller of Samba 4.17.
SAMBA = bytes.fromhex(
    "01100800cccccccca8010000000000000000020042754235847cdd01ffffffffffffff7fffffffffffffff7f92520635"
    "847cdd019212705f4d7ddd0192d25f2a859ddd010a000a00040002000000000008000200000000000c00020000000000"
    "1000020000000000140002000000000018000200010000005104000001020000020000001c0002002000000000000000"
    "00000000000000000000000006000800200002000c000e00240002002800020000000000000000001000000000000000"
    "000000000000000000000000000000000000000000000000010000002c00020000000000000000000000000005000000"
    "000000000500000063006c00650072006b00000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000002000000010200000700000053040000"
    "070000000400000000000000030000004400430031000000070000000000000006000000410044005400450053005400"
    "040000000104000000000005150000004cf2a39d4cba5cd6cb5c8c2f0100000030000200070000000100000001010000"
    "0000001201000000"
)


def u32(*numbers: int) -> bytes:
    """Numbers of four octets."""
    return struct.pack(f"<{len(numbers)}I", *numbers)


def sid(*parts: int, authority: int = 5) -> bytes:
    """A SID as a pointer leads to it."""
    head = u32(len(parts)) + bytes((1, len(parts))) + authority.to_bytes(6, "big")
    return head + u32(*parts)


def text(characters: str) -> bytes:
    """The contents of an RPC_UNICODE_STRING, with the octets that align what follows."""
    data = characters.encode("utf-16-le")
    return u32(len(characters), 0, len(characters)) + data + bytes(-len(data) % 4)


def array(*pairs: tuple[int, int]) -> bytes:
    """A conformant array of pairs."""
    return u32(len(pairs)) + b"".join(u32(*pair) for pair in pairs)


def info(
    *,
    user: int = 1105,
    primary: int = 513,
    groups: tuple[tuple[int, int], ...] = ((513, 7), (1106, 7)),
    name: str = "",
    domain: bytes = sid(21, 1, 2, 3),
    extra: tuple[tuple[bytes, int], ...] = (),
    resource: bytes = b"",
    resources: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """A KERB_VALIDATION_INFO put together by hand ([MS-PAC] section 2.5)."""
    one = 0x20000
    length = 2 * len(name)
    string = struct.pack("<HHI", length, length, one if name else 0)
    fixed = b"".join(
        (
            bytes(48),
            string + bytes(5 * 8),
            bytes(4),
            u32(user, primary, len(groups), one if groups else 0, 0x220),
            bytes(16),
            bytes(2 * 8),
            u32(one if domain else 0),
            bytes(8 + 8 + 24),
            u32(len(extra), one if extra else 0),
            u32(one if resource else 0, len(resources), one if resources else 0),
        )
    )
    deferred = text(name) if name else b""
    deferred += (array(*groups) if groups else b"") + domain
    if extra:
        deferred += array(*((one, attributes) for _, attributes in extra)) + b"".join(s for s, _ in extra)
    deferred += resource + (array(*resources) if resources else b"")
    body = u32(one) + fixed + deferred
    return b"\x01\x10\x08\x00\xcc\xcc\xcc\xcc" + u32(len(body), 0) + body


def test_what_samba_writes() -> None:
    """The groups of every user of a real domain would be unknown."""
    found = pac.read(SAMBA)
    assert found.user == f"{DOMAIN}-1105"
    assert found.primary == f"{DOMAIN}-513"
    assert found.groups == (f"{DOMAIN}-513", f"{DOMAIN}-1107", "S-1-18-1")
    assert found.sids[0] == found.user
    assert len(found.sids) == len(set(found.sids)) == 4


def test_all_kinds_of_groups() -> None:
    """Windows puts groups of other domains and of the resource's domain elsewhere."""
    found = pac.read(
        info(
            name="odd",  # three characters: what follows must be aligned
            extra=((sid(21, 9, 9, 9, 512), 7), (sid(1, authority=18), 7)),
            resource=sid(21, 4, 5, 6),
            resources=((1200, 0x20000007),),
        )
    )
    assert found == LogonInfo(
        "S-1-5-21-1-2-3-1105",
        "S-1-5-21-1-2-3-513",
        (
            "S-1-5-21-1-2-3-513",
            "S-1-5-21-1-2-3-1106",
            "S-1-5-21-9-9-9-512",
            "S-1-18-1",
            "S-1-5-21-4-5-6-1200",
        ),
    )


def test_group_that_does_not_count() -> None:
    """A group that may only deny would let its member in."""
    found = pac.read(info(groups=((513, 7), (1106, 0x10)), extra=((sid(21, 9, 512), 0x10),)))
    assert found.groups == ("S-1-5-21-1-2-3-513",)


def test_user_of_another_kind_of_domain() -> None:
    """[MS-PAC] 2.5: without UserId the user is the first of the extra SIDs."""
    assert pac.read(info(user=0, extra=((sid(21, 8, 8, 1000), 7),))).user == "S-1-5-21-8-8-1000"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends too early"),
        (b"\x02" + SAMBA[1:], "as NDR does"),
        (SAMBA[:16] + bytes(4) + SAMBA[20:], "empty"),
        (SAMBA[:-1], "ends too early"),
        (info(domain=b""), "no domain"),
        (info(user=0), "no user"),
        (info(domain=sid()), "a SID that is none"),
        (info(domain=sid(*range(16))), "a SID that is none"),
        (info(resources=((1, 7),)), "no domain"),
        (info().replace(u32(2) + u32(513), u32(3) + u32(513)), "an array of 3"),
        (info(groups=tuple((n, 7) for n in range(5000))), "an array of 5000"),
    ],
)
def test_what_cannot_be_read(data: bytes, reason: str) -> None:
    """A list that is half read lacks the group that a rule denies."""
    with pytest.raises(Unreadable) as caught:
        pac.read(data)
    assert reason in str(caught.value)


def test_every_truncation() -> None:
    """No octets beyond the end are read, and no list is cut short unseen."""
    for length in range(len(SAMBA)):
        with pytest.raises(Unreadable):
            pac.read(SAMBA[:length])


@given(st.binary(max_size=400), st.integers(0, 500))
def test_any_octets_are_read_or_refused(junk: bytes, at: int) -> None:
    """Anything else would end the exchange with a traceback."""
    for data in (junk, SAMBA[: at % len(SAMBA)] + junk + SAMBA[at % len(SAMBA) + len(junk) :]):
        try:
            found = pac.read(data)
        except Unreadable:
            continue
        assert all(one.startswith("S-1-") for one in found.sids)


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.just(7)), max_size=20),
    st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=15), max_size=10),
    st.text(st.characters(codec="utf-16", exclude_categories=("Cs",), max_codepoint=0xFFFF), max_size=9),
)
def test_what_is_written_is_read(groups: list[tuple[int, int]], extra: list[list[int]], name: str) -> None:
    """Whatever the lengths, nothing shifts."""
    found = pac.read(info(groups=tuple(groups), extra=tuple((sid(*one), 7) for one in extra), name=name))
    expected = [f"S-1-5-21-1-2-3-{rid}" for rid, _ in groups]
    expected += ["S-1-5-" + "-".join(map(str, one)) for one in extra]
    assert found.groups == tuple(dict.fromkeys(expected))
