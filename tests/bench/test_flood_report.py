"""`ikctl bench flood`: the figures are what they say, and a forged first message is one."""

from __future__ import annotations

from ipaddress import ip_address

from ikd.bench import spoof
from ikd.bench.flood_report import FLOODED, QUIET, Run, figures, flood
from ikd.ikev2.first import open_first
from ikd.wire.isakmp import Header

PLAIN = {"packets": 0, "lost": 0, "cpu": 0.0, "resident": 0, "half_open": 0, "initiations": 0, "unseen": 0}


def stage(number: int, name: str, **more: object) -> Run:
    """A stage of ten seconds."""
    values = PLAIN | {"times": [0.01] * 100, "seconds": 10.0} | more
    return Run(number, name, figures(**values))  # type: ignore[arg-type]


def test_figures() -> None:
    """A pause between two rekeys is no part of them, and what was lost is not averaged away."""
    one = figures(
        times=[0.01] * 18 + [0.1, 0.2],
        seconds=5.0,
        packets=10_000,
        lost=3,
        cpu=0.5,
        resident=1 << 20,
        half_open=200,
        initiations=50_000,
        unseen=49_000,
    )
    assert (one["rekeys_s"], one["rekey_ms"], one["rekey_p95_ms"]) == (41.7, 10.0, 100.0)
    assert (one["packets_s"], one["lost"], one["responder_busy"]) == (2000.0, 3, 0.1)


def test_rows_and_ratios() -> None:
    """The ratio is that within a run; the memory is the most there was."""
    runs = [
        stage(1, QUIET, packets=1000, resident=10),
        stage(1, FLOODED, packets=900, resident=50, lost=2, times=[0.0125] * 80),
        stage(2, QUIET, packets=1000, resident=20),
        stage(2, FLOODED, packets=1000, resident=30, lost=1),
    ]
    answer = flood({"cpu": "x"}, runs, 7)
    quiet, flooded = answer["rows"]
    assert (quiet["stage"], quiet["resident"]) == (QUIET, 20)
    assert (flooded["stage"], flooded["resident"], flooded["lost"]) == (FLOODED, 50, 3)
    assert answer["ratios"] == {
        "rekeys_s": {"median": 0.9, "min": 0.8, "max": 1.0},
        "packets_s": {"median": 0.95, "min": 0.9, "max": 1.0},
    }
    assert answer["resident_before"] == 7
    assert [one["stage"] for one in answer["runs"]] == [QUIET, FLOODED] * 2


def test_a_forged_first_message_is_well_formed() -> None:
    """One that is dropped as malformed costs nothing and would prove nothing."""
    octets = bytes(spoof.packet("192.0.2.2"))
    message = octets[28:]
    assert int.from_bytes(octets[2:4], "big") == len(octets)
    assert octets[16:20] == ip_address("192.0.2.2").packed
    assert int.from_bytes(octets[24:26], "big") == len(octets) - 20
    opened = open_first(Header.decode(message), message)
    assert [type(one).__name__ for one in opened.payloads] == ["SecurityAssociation", "KeyExchange", "Nonce"]
