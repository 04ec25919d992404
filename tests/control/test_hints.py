"""What administrators of other products type is answered at once or with the command here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ikd.control import cli as ikctl
from ikd.control import hints
from ikd.control.protocol import ControlError


def commands() -> Iterator[tuple[str, ...]]:
    """Every command of `ikctl` by its words."""
    context = click.Context(ikctl.cli)
    for name in ikctl.cli.list_commands(context):
        command = ikctl.cli.get_command(context, name)
        yield (name,)
        if isinstance(command, click.Group):
            yield from ((name, below) for below in command.list_commands(context))


def answered(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit status and what standard error says."""
    status = ikctl.run(["--socket", "/nonexistent", *words])
    return status, capsys.readouterr().err


def test_every_hint_is_a_command_there_is() -> None:
    """Being sent to a command that does not exist is worse than no answer."""
    known = set(commands())
    for typed, told in hints.HINTS.items():
        assert typed == typed.lower()
        assert (typed,) not in known, "it would never be asked for"
        for words in re.findall(r"ikctl ((?:[a-z]+ ?)+)", told):
            assert tuple(words.split()[:2]) in known or tuple(words.split()[:1]) in known, told
    for words in hints.SHOW.values():
        assert words[:2] in known or words[:1] in known


def test_no_line_of_a_list_of_commands_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence that ends in dots tells less than a short one."""
    groups = {words[:1] for words in commands() if len(words) > 1}
    for words in [(), *sorted(groups)]:
        ikctl.run([*words, "--help"])
        assert "..." not in capsys.readouterr().out.partition("Commands:")[2], words


def test_the_table_in_the_guide_says_the_same() -> None:
    """Who reads docs/operator.md and who types what they know would be sent to different commands."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "operator.md").read_text(encoding="utf-8")
    section = page.partition("\n## Commands you know\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) ?\| (.*?) ?\| (.*) \|$", section, re.MULTILINE)[1:]
    assert len(rows) >= 10
    for swan, windows, here in rows:
        for typed in re.findall(r"`([^`]+)`", f"{swan} {windows}"):
            word = re.sub(r"^(swanctl --|ipsec |netsh )", "", typed).split()[0].lower()
            told = hints.HINTS.get(word, f"ikctl {word}")
            assert any(one in here for one in re.findall(r"ikctl \w+", told)), (typed, told)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("Set-VMNetworkAdapter", "vm1", "-IPsecOffloadMaximumSecurityAssociation", "8"),
            "ikctl offload set-port",
        ),
        (("list-sas",), "ikctl sa"),
        (("--list-sas",), "ikctl sa"),
        (("--initiate", "--child", "net"), "ikctl up RULE"),
        (("statusall",), "ikctl status"),
        (("wg",), "ikctl status"),
        (("genkey",), "ikctl cert issue"),
        (("Get-NetIPsecMainModeSA",), "ikctl sa main"),
        (("advfirewall", "monitor", "show", "mmsa"), "ikctl policy show"),
        (("stauts",), "ikctl status"),
        (("policy", "chekc"), "ikctl policy check"),
        (("zzzzz",), "ikctl --help"),
    ],
)
def test_the_right_command_is_named(
    words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 and one line that helps."""
    status, said = answered(capsys, *words)
    assert status == 1
    assert f"remedy: try: {expected}" in said


@pytest.mark.parametrize(
    "words", [("show", "sa"), ("show", "mmsa"), ("show",), ("show", "policy"), ("show", "sa", "db")]
)
def test_show_is_answered(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """`ikctl show sa` reaches the daemon, which is not there."""
    status, said = answered(capsys, *words)
    assert (status, "no daemon answers" in said) == (2, True), said


def test_an_unknown_option_is_still_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped option must not be taken for another product's command."""
    status, said = answered(capsys, "--scoket", "/x", "status")
    assert (status, "--socket" in said) == (1, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("explain", "10.0.0.1"), "remedy: ikctl explain [OPTIONS] SOURCE DESTINATION [PROTO/PORT]; see: "),
        (("up", "db", "--timeout", "soon"), "ikctl: Invalid value for '--timeout': 'soon'"),
        (("cert", "issue"), "see: ikctl cert issue --help"),
    ],
)
def test_a_command_that_is_written_wrong(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is an error as all others are: what is wrong, then how it is meant."""
    status, told = answered(capsys, *words)
    assert (status, said in told) == (1, True), told


def test_errors_obey_nobody(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason that quotes a peer would reach the terminal with its control characters."""

    def fails(*_: object, **__: object) -> None:
        raise ControlError("negotiation-failed", "peer \x1b[2J says", "ask \x9b it")

    monkeypatch.setattr(ikctl.Context, "call", fails)
    status, said = answered(capsys, "down", "net")
    assert status == 3
    assert "peer \\x1b[2J says" in said
    assert "\x9b" not in said


def test_a_name_without_an_sa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever mistypes a name would read that there are no SAs at all."""
    monkeypatch.setattr(ikctl.Context, "call", lambda *_, **__: {"main": [], "quick": []})
    assert ikctl.run(["sa", "dbb"]) == 0
    assert capsys.readouterr().out == "no SA of dbb; those there are: ikctl sa\n"
    assert ikctl.run(["sa", "dbb", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"main": [], "quick": []}


def test_a_socket_that_is_not_ours_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever lacks the permission has used the command well: no usage error, but what connecting says."""
    place = tmp_path / "c.sock"
    place.touch()
    monkeypatch.setattr("os.access", lambda *_: False)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", refused)
    status = ikctl.run(["--socket", str(place), "top"])
    assert status == 5
    assert "remedy: use sudo" in capsys.readouterr().err
