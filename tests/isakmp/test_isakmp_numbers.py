"""ikd.isakmp.numbers: names for logs, and numbers that must not be taken for others."""

from __future__ import annotations

from ikd.isakmp.numbers import (
    ALGORITHMS,
    ENCAPSULATIONS,
    FIRST_STATUS,
    PAYLOAD_NAMES,
    Encapsulation,
    Exchange,
    Method,
    N,
    Traversal,
    encapsulation_name,
    exchange_name,
    method_name,
    notify_name,
)
from ikd.isakmp.payloads import PAYLOADS
from sadb.algorithms import ENCRYPTION, GROUP_BY_NAME, GROUPS, INTEGRITY


def test_known_numbers_have_names_and_others_keep_their_number() -> None:
    """A log line without either would tell nothing."""
    assert exchange_name(Exchange.QUICK) == "QUICK"
    assert exchange_name(99) == "exchange 99"
    assert notify_name(36136) == "R_U_THERE"
    assert notify_name(8192) == "notify 8192"
    assert method_name(Method.ECDSA_384) == "ECDSA on P-384"
    assert method_name(64221) == "method 64221"
    assert encapsulation_name(61443) == "tunnel in UDP (draft)"
    assert encapsulation_name(9) == "mode 9"
    assert all(PAYLOAD_NAMES[kind] for kind in PAYLOADS)


def test_every_way_to_encapsulate_has_its_number() -> None:
    """Draft and RFC differ only here, and a wrong one is refused by the peer."""
    assert set(ENCAPSULATIONS.values()) == set(Encapsulation)
    assert set(ENCAPSULATIONS) == {(text, tunnel) for text in Traversal for tunnel in (True, False)}
    assert ENCAPSULATIONS[Traversal.RFC_3947, False] == 4
    assert ENCAPSULATIONS[Traversal.DRAFT_02, True] == 61443


def test_errors_stand_below_status() -> None:
    """An error ends what a status only remarks on."""
    assert N.UNEQUAL_PAYLOAD_LENGTHS < FIRST_STATUS <= N.CONNECTED
    assert all(one < FIRST_STATUS for one in N if one <= 30)
    assert {N.INITIAL_CONTACT, N.R_U_THERE_ACK, N.EXCHANGE_INFO} == {24578, 36137, 40005}


def test_numbers_of_algorithms_are_those_of_rows() -> None:
    """A name that is no row of the table joins nothing, and groups keep the numbers of IKEv2."""
    rows = {one.name for one in (*ENCRYPTION, *INTEGRITY, *GROUPS)}
    assert set(ALGORITHMS) <= rows
    for name, group in GROUP_BY_NAME.items():
        if name in ALGORITHMS:
            assert ALGORITHMS[name].main == group.ikev2
