"""sadb.sa: sequence numbers and what text forms show."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.sas import PEER, SUITE, pair

from sadb.secret import Secret


@pytest.mark.parametrize(("esn", "last"), [(False, 0xFFFFFFFF), (True, 0xFFFFFFFFFFFFFFFF)])
def test_sequence_numbers_end_and_never_wrap(esn: bool, last: int) -> None:
    """A number used twice under one key breaks AEAD ciphers altogether (RFC 4303 section 3.3.3)."""
    sa = pair(0x100).outbound
    sa.suite = replace(SUITE, esn=esn)
    assert sa.next_sequence() == 1
    sa.sequence = last - 1
    assert sa.next_sequence() == last
    assert sa.next_sequence() is None
    assert sa.next_sequence() is None
    assert sa.sequence == last


def test_keys_are_not_in_the_text_of_a_pair() -> None:
    """Pairs end up in tracebacks; their keys must not."""
    one = pair(0x100)
    one.inbound.encryption_key = Secret(b"\xab" * 20)
    assert "ab" * 20 not in repr(one)
    assert repr(b"\xab" * 20) not in repr(one)
    assert "<secret, 20 octets>" in repr(one)


def test_pairs_are_told_apart_by_identity() -> None:
    """Two SAs of the same numbers, one old and one new, must not be taken for each other."""
    assert pair(0x100) != pair(0x100)
    assert len({pair(0x100), pair(0x100)}) == 2


def test_counters_are_not_shared() -> None:
    """A default object shared by all SAs would count every packet for everyone."""
    one, other = pair(0x100), pair(0x200)
    one.inbound.usage.packets += 1
    assert (one.outbound.usage.packets, other.inbound.usage.packets) == (0, 0)


def test_peer_is_the_outer_address_of_the_other_end() -> None:
    """It is where packets go, whoever sends."""
    assert pair(0x100).peer == PEER
