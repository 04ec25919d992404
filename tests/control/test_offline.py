"""What ikctl says from the files alone, without a daemon."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.rights import without_rights

from ikd.control.cli import run
from ikd.control.offline import Files
from ikd.control.protocol import ControlError

POLICY = """\
[[rule]]
name   = "db"
remote = "10.0.0.9"
peer   = "db.example"

[[rule]]
name   = "net"
remote = "10.0.0.0/8"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with good files."""
    (tmp_path / "ikd.toml").write_text("")
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "secrets.toml").write_text('[[psk]]\nsecret = "twenty characters or more"\n')
    (tmp_path / "secrets.toml").chmod(0o600)
    return tmp_path


def test_good_files(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`ikctl check` in a deployment script: exit 0 and the number of rules."""
    assert Files(home).check(only_policy=False) == {"complaints": [], "warnings": [], "rules": 2}
    assert run(["check", str(home)]) == 0
    assert "2 rules" in capsys.readouterr().out


def test_every_complaint_of_every_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run shows all mistakes; a second round for each would be unkind."""
    (home / "ikd.toml").write_text('[daemon]\nlisten = ["nowhere"]\n')
    (home / "policy.toml").write_text(POLICY.replace("peer ", "pear "))
    (home / "secrets.toml").write_text("[[psk]]\nsecret = 'x'\n")
    (home / "secrets.toml").chmod(0o644)
    text = "\n".join(Files(home).check(only_policy=False)["complaints"])
    for part in ("daemon.listen", "pear", "chmod 600"):
        assert part in text, text
    only = "\n".join(Files(home).check(only_policy=True)["complaints"])
    assert "pear" in only
    assert "daemon.listen" not in only
    assert run(["policy", "check", str(home)]) == 1
    assert "pear" in capsys.readouterr().err
    assert run(["check", str(home), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["complaints"]) >= 3


@pytest.mark.parametrize("command", [["check"], ["policy", "check"], ["policy", "show"], ["status"]])
def test_a_directory_of_somebody_else(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a traceback nor the advice to correct files that are right: exit status 5, as is documented."""
    with TemporaryDirectory(dir="/tmp") as closed:
        Path(closed).chmod(0)
        with without_rights():
            assert run(["--config", closed, *command]) == 5
    assert "sudo" in capsys.readouterr().err


def test_missing_directory_is_a_complaint(tmp_path: Path) -> None:
    """No traceback for a mistyped path."""
    assert Files(tmp_path / "no").check(only_policy=False)["complaints"]


def test_show_has_every_default(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`policy show` is where people read what they did not write."""
    answer = Files(home).policy("db")
    (rule,) = answer["rules"]
    assert (rule["action"], rule["inbound"], rule["outbound"], rule["mode"]) == (
        "secure",
        "require",
        "require",
        "transport",
    )
    assert (rule["remote"], rule["local"], rule["protocol"]) == (["10.0.0.9"], ["any"], "any")
    assert rule["crypto"]["lifetime"]["main_seconds"] == 8 * 3600
    assert "x25519 aes256gcm sha384" in rule["crypto"]["main"]
    assert rule["auth"]["name"] == "default"
    assert rule["auth"]["first"][-1] == "psk"
    with pytest.raises(ControlError, match="no rule") as caught:
        Files(home).policy("dbb")
    assert "db" in caught.value.remedy
    assert run(["--config", str(home), "policy", "show"]) == 0
    assert "db.example" in capsys.readouterr().out


def test_explain_says_which_rule_and_why(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The question behind most tickets, answered before anything is installed."""
    answer = Files(home).explain("192.0.2.1", "10.0.0.9", "tcp/5432")
    assert (answer["rule"], answer["beats"], answer["criterion"]) == ("db", "net", "remote address")
    assert Files(home).explain("192.0.2.1", "192.0.2.2", "")["action"] == "pass"
    assert run(["--config", str(home), "explain", "192.0.2.1", "10.0.0.9", "tcp/5432"]) == 0
    assert 'secured by rule "db"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "destination", "service"),
    [
        ("here", "10.0.0.9", ""),
        ("10.0.0.1", "::1", ""),
        ("10.0.0.1", "10.0.0.9", "tpc/80"),
        ("10.0.0.1", "10.0.0.9", "tcp/99999"),
        ("10.0.0.1", "10.0.0.9", "tcp/80-90"),
    ],
)
def test_explain_refuses_nonsense(home: Path, source: str, destination: str, service: str) -> None:
    """A typing error is answered with how it should be written, exit code 1."""
    with pytest.raises(ControlError) as caught:
        Files(home).explain(source, destination, service)
    assert caught.value.code == "usage"


def test_broken_policy_cannot_be_explained(home: Path) -> None:
    """An answer out of half a policy would be wrong."""
    (home / "policy.toml").write_text("[[rule]]\n")
    with pytest.raises(ControlError) as caught:
        Files(home).explain("192.0.2.1", "10.0.0.9", "")
    assert caught.value.code == "configuration"
