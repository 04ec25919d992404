"""ikd.bench.report: statistics of runs and the shape of what is printed."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from ikd.bench import render, report
from ikd.bench.report import Run

MACHINE = {
    "cpu": "a processor",
    "cores": 2,
    "kernel": "6.1",
    "versions": {"ikd": "0.1.0", "python": "3.11"},
    "load_before": [0.1, 0.2, 0.3],
    "load_after": [1.0, 0.5, 0.4],
}


def run(number: int, responder: str, *, cpu: float, seconds: float = 1.0, auth: str = "psk") -> Run:
    """A run of 100 establishments; `cpu` in seconds, a hundredth of which is what one takes alone."""
    return Run(number, responder, auth, 100, 0, seconds, cpu, 0.05, cpu / 100)


RUNS = [
    run(1, "ikd", cpu=0.12, seconds=0.5),
    run(1, "strongswan", cpu=0.10, seconds=0.25),
    run(2, "strongswan", cpu=0.20, seconds=0.25),
    run(2, "ikd", cpu=0.14, seconds=1.0),
    run(3, "ikd", cpu=0.30, seconds=0.5),
    run(3, "strongswan", cpu=0.10, seconds=0.5),
]


def test_figures_are_for_one_establishment() -> None:
    """A figure for a whole run, or in another unit, would be taken for one of an establishment."""
    one = run(1, "ikd", cpu=0.12, seconds=0.5)
    assert (one.per_second, one.responder_cpu_ms, one.initiator_cpu_ms) == pytest.approx((200, 1.2, 0.5))
    assert one.complete_ms == pytest.approx(1.2)


def test_ratios_are_taken_within_each_run() -> None:
    """The machine changes from run to run: dividing medians of different moments would compare those."""
    found = report.ratios(RUNS)
    assert found["cpu/psk"] == {"median": 1.2, "min": 0.7, "max": 3.0}
    assert found["rate/psk"] == {"median": 0.5, "min": 0.25, "max": 1.0}


def test_rows_have_medians_of_each_responder() -> None:
    """Runs of the two responders mixed up, or a mean that one bad run spoils."""
    ours, theirs = report.rows(RUNS, ["psk"], {})
    assert (ours["responder"], ours["auth"], ours["group"]) == ("ikd", "psk", "x25519")
    assert (ours["responder_cpu_ms"], ours["per_second"]) == (1.4, 200)
    assert (theirs["responder"], theirs["responder_cpu_ms"], theirs["per_second"]) == ("strongswan", 1.0, 400)
    assert (ours["established"], ours["failed"]) == (300, 0)
    assert (ours["complete_ms"], theirs["complete_ms"]) == (1.4, 1.0)


def test_each_kind_tells_its_own_group() -> None:
    """AuthIP has no X25519: a row that says so would compare two groups as one."""
    made = [run(1, "ikd", cpu=0.1, auth=auth) for auth in ("ecdsa-p256", "authip-kerberos")]
    found = report.rows(made, ["ecdsa-p256", "authip-kerberos"], {})
    assert [(one["auth"], one["group"]) for one in found] == [
        ("ecdsa-p256", "x25519"),
        ("authip-kerberos", "p256"),
    ]


def test_a_responder_that_is_not_installed_has_a_row() -> None:
    """A silent gap would look like a comparison that was not asked for."""
    alone = [one for one in RUNS if one.responder == "ikd"]
    answer = report.ike(MACHINE, alone, ["psk"], {("strongswan", "psk"): "apt-get install it"})
    assert [one.get("missing") for one in answer["rows"]] == [None, "apt-get install it"]
    assert answer["ratios"] == {}
    assert len(answer["runs"]) == 3


def test_a_ratio_needs_both_of_a_run() -> None:
    """A run that only one of them finished compares nothing."""
    assert report.ratios([RUNS[0], RUNS[2]]) == {}


def test_authip_is_divided_by_our_own_certificates() -> None:
    """strongSwan does not speak it: what it costs more than IKEv2 is what can be told."""
    made = [
        run(1, "ikd", cpu=0.1, auth="ecdsa-p256"),
        run(1, "strongswan", cpu=0.4, auth="ecdsa-p256"),
        run(1, "ikd", cpu=0.3, auth="authip-kerberos"),
        run(2, "ikd", cpu=0.1, auth="ecdsa-p256"),
        run(2, "ikd", cpu=0.2, auth="authip-kerberos"),
    ]
    found = report.ratios(made)
    assert found["complete/authip-kerberos"] == {"median": 2.5, "min": 2.0, "max": 3.0}
    assert set(found) == {"complete/authip-kerberos", "cpu/ecdsa-p256", "rate/ecdsa-p256"}
    assert report.ratios([one for one in made if one.auth != "ecdsa-p256"]) == {}


def test_the_object_is_json_with_the_agreed_keys() -> None:
    """Whoever reads `--json` relies on these names."""
    answer = json.loads(json.dumps(report.ike(MACHINE, RUNS, ["psk"], {})))
    assert set(answer) == {"machine", "rows", "ratios", "runs"}
    wanted = {"responder", "auth", "group", "per_second", "responder_cpu_ms", "initiator_cpu_ms"}
    wanted.add("complete_ms")
    assert all(wanted <= set(row) for row in answer["rows"])
    assert all(set(ratio) == {"median", "min", "max"} for ratio in answer["ratios"].values())
    assert [one["run"] for one in answer["runs"]] == [1, 1, 2, 2, 3, 3]


def test_people_see_every_figure_and_what_is_missing() -> None:
    """A table without the ratios, or one that fails on a missing peer, is of no use."""
    out = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render.ike(out, report.ike(MACHINE, RUNS, ["psk"], {}))
    alone = [one for one in RUNS if one.responder == "ikd"]
    gaps = {("strongswan", one): "pip install 'it[part]'" for one in ("psk", "rsa-2048")}
    render.ike(out, report.ike(MACHINE, alone, ["psk", "rsa-2048"], gaps))
    text = out.export_text()
    for wanted in (
        "a processor",
        "1.40 ms",
        "cpu/psk",
        "1.20",
        "ONE ALONE",
        "not measured: strongswan with psk, rsa-2048: pip install 'it[part]'",
    ):
        assert wanted in text
