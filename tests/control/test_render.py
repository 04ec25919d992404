"""Tables for terminals of any width: nothing is cut, nothing obeyed."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from ikd.control import render, views
from ikd.control.cli import Context
from ikd.control.failures import Failures
from ikd.control.protocol import ControlError
from ikd.events import Comparison, NegotiationFailed, Row

HEADS = ("PEER", "RULE", "AUTHENTICATED AS", "AGE", "TRAFFIC")
ROWS = (
    (
        "db.corp.example",
        "db",
        "certificate CN=db.corp.example,O=Example Corporation",
        "2 min",
        "10.1.0.0/16 === 10.2.0.0/16",
    ),
    ("東京.example", "far", "-", "connecting 12 s", "any"),
)


def printed(
    width: int, *tables: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]], terminal: bool = False
) -> list[str]:
    out = io.StringIO()
    for heads, rows in tables:
        render.table(Console(file=out, width=width, force_terminal=terminal, highlight=False), heads, rows)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [50, 60, 80, 100, 140, 200])
def test_nothing_is_cut(width: int) -> None:
    """Half an address or name is worse than none: it looks like another one."""
    lines = printed(width, (HEADS, ROWS))
    assert max(map(cell_len, lines)) <= width
    words = " ".join(lines).split()
    for row in ROWS:
        for word in " ".join(row).split():
            assert word in words, (width, word)
    assert not [line for line in lines if line != line.rstrip()]


def test_a_table_where_it_fits_and_lists_where_it_does_not() -> None:
    """A row is one line as long as possible, and readable afterwards."""
    wide, narrow = printed(140, (HEADS, ROWS)), printed(40, (HEADS, ROWS))
    assert len(wide) == 3
    assert wide[1].split()[:2] == ["db.corp.example", "db"]
    assert narrow[0].split() == ["PEER", "db.corp.example"]
    assert "" in narrow, "one list each"


def test_columns_are_as_wide_as_they_look() -> None:
    """A name in Japanese takes two columns a character."""
    lines = printed(140, (HEADS, ROWS))
    starts = {
        cell_len(line[: line.index(word)]) for line, word in zip(lines, ("RULE", "db ", "far"), strict=True)
    }
    assert starts == {cell_len("db.corp.example") + 2}


def test_hostile_cells_are_texts() -> None:
    """What a peer calls itself must not colour, link, break a row or move the cursor."""
    hostile = "x\x1b[2J\r\n[red]y[/] [link=http://evil]z\\ \u202egnp\x9b1m"
    for width in (30, 400):
        (text,) = ["".join(printed(width, (("PEER", "RULE"), ((hostile, hostile),))))]
        assert text.isprintable()
        assert "[red]y[/]" in text
    shown = "".join(printed(400, (("PEER", "RULE"), ((hostile, hostile),)), terminal=True))
    assert "\x1b[2J" not in shown
    assert "\x1b]8" not in shown


def test_what_a_rule_has_is_told_in_units() -> None:
    """Nobody reads 28800.0 and 100000000000; long lists stay in their column."""
    rule = {
        "name": "net",
        "source": "policy.toml:1",
        "enabled": True,
        "auth": {"name": "default", "first": [{"method": "certificate", "minimum_rsa_bits": 2048}, "psk"]},
        "crypto": {
            "name": "modern",
            "main": ["x25519 aes256gcm sha384"] * 8,
            "lifetime": {"main_seconds": 28800.0, "quick_octets": 100_000_000_000},
        },
        "deny": {},
    }
    out = io.StringIO()
    render.policy(Console(file=out, width=60), {"rules": [rule], "warnings": []})
    lines = out.getvalue().splitlines()
    assert "    first     certificate (minimum_rsa_bits 2048); psk" in lines
    assert "    lifetime  main 8 h, quick 100 GB" in lines
    main = lines.index(next(line for line in lines if line.startswith("    main")))
    assert lines[main + 1].startswith(" " * 14)
    assert not [line for line in lines if "deny" in line]


def test_a_negotiation_without_an_end_is_told() -> None:
    """`ikctl why` right after `ikctl up`: that nothing has failed yet is not the whole truth."""
    waiting = {
        "rules": ["net"],
        "peer": "192.0.2.2",
        "peer_address": "192.0.2.2",
        "waiting": "IKE_SA_INIT response",
    }
    out = io.StringIO()
    answer = {"about": " for net", "failures": [], "under_way": [waiting | {"age": 3.0}]}
    render.why(Console(file=out, width=80), answer)
    assert "negotiating with 192.0.2.2 for 3 s, waiting for: IKE_SA_INIT response" in out.getvalue()


@pytest.mark.parametrize(("theirs", "columns"), [((), 1), (("modp1024",), 2)])
def test_both_sides_are_compared_if_both_are_known(theirs: tuple[str, ...], columns: int) -> None:
    """A column of hyphens below "the peer offered" would say that it offered nothing."""
    failures = Failures(lambda: 100.0)
    comparison = Comparison("we offered", "the peer offered", (Row("DH", ("x25519",), theirs),))
    event = NegotiationFailed(
        ike=1, rule="net", peer="192.0.2.2", initiator=True, stage="IKE_SA_INIT", notify="NO_PROPOSAL_CHOSEN",
        reason="refused", remedy="", child=False, comparison=comparison, keying="ikev2",
    )  # fmt: skip
    listener = failures.listener(NegotiationFailed)
    assert listener
    listener(event)
    out = io.StringIO()
    render.why(Console(file=out, width=100), views.why(failures.find("net"), "net", 112.0))
    first, heads, *_ = out.getvalue().splitlines()
    assert first == "net: refused (IKE_SA_INIT, NO_PROPOSAL_CHOSEN, 12 s ago)"
    assert len([one for one in ("we offered", "the peer offered") if one in heads]) == columns


def test_a_daemon_of_another_version_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """Between `pip install --upgrade` and the restart, `ikctl` is newer than the daemon."""
    with pytest.raises(ControlError) as caught:
        Context(None, None, False).show({"version": "0.0.9"}, "status")
    assert "restart the daemon" in caught.value.remedy
