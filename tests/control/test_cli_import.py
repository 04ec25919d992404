"""ikd.control.cli_import: what `ikctl import` leaves behind, prints, and ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ikd import loading
from ikd.control import cli
from ikd.control.protocol import ControlError

GOOD = """\
connections {
  gw {
    local_addrs = 192.0.2.1
    remote_addrs = 192.0.2.2
    local { auth = psk
      id = first.example
    }
    remote { auth = psk
      id = second.example
    }
    children { net { local_ts = 10.1.0.0/16
      remote_ts = 10.2.0.0/16
    } }
  }
}
include conf.d/*.conf
"""
KEYS = 'secrets {\n ike {\n id = second.example\n secret = "a key nobody may see"\n }\n}\npools { }\n'


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a configuration, in which the command is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "keys.conf").write_text(KEYS)
    (tmp_path / "swanctl.conf").write_text(GOOD)
    return tmp_path


def run(*arguments: str) -> Result:
    """`ikctl import ARGUMENTS`; what it raises is for the caller of `ikctl` to print."""
    found = CliRunner().invoke(cli.cli, ["import", *arguments])
    if isinstance(found.exception, ControlError):
        raise found.exception
    return found


def test_directory_that_the_daemon_takes(inside: Path) -> None:
    """What is called translated would not start; or everybody could read the keys."""
    done = run("swanctl", "swanctl.conf", "--out", "out")
    assert done.exit_code == 0, done.output
    assert "1 rule, 1 key, 1 remark" in done.stderr
    assert f"then: ikctl check {inside / 'out'}; " in done.stdout
    found = loading.load(inside / "out")
    assert found.warnings == ()
    assert [rule.name for rule in found.policy.rules] == ["net"]
    assert str(found.material.identity) == "first.example"
    assert found.material.keys[0].peers == ("second.example",)
    assert (inside / "out" / "secrets.toml").stat().st_mode & 0o777 == 0o600
    assert f"{Path('conf.d/keys.conf').resolve()}:7: pools: the section is not translated" in done.stderr
    with pytest.raises(ControlError, match="already"):
        run("swanctl", "swanctl.conf", "--out", "out")
    assert run("swanctl", "swanctl.conf", "--out", "out", "--force").exit_code == 0


def test_policy_is_printed_without_keys(inside: Path) -> None:
    """A key on the screen is in the scroll-back, and in the next question to a forum."""
    done = run("swanctl", "swanctl.conf")
    assert done.exit_code == 0
    assert "[[rule]]" in done.stdout
    assert "nobody may see" not in done.output + run("swanctl", "swanctl.conf", "--json").output
    assert not (inside / "policy.toml").exists()


def test_answer_for_programs(inside: Path) -> None:
    """A script could not tell what was left out."""
    answer = json.loads(run("swanctl", "swanctl.conf", "--json").stdout)
    assert (answer["rules"], answer["keys"]) == (["net"], 1)
    assert [(one["line"], one["text"]) for one in answer["left_out"]] == [
        (7, "pools: the section is not translated")
    ]


def test_older_format_with_its_secrets(inside: Path) -> None:
    """The file with the keys is another one there, and would be forgotten."""
    (inside / "ipsec.conf").write_text(
        "conn one\n left=192.0.2.1\n leftid=@first.example\n right=192.0.2.2\n rightid=@second.example\n"
        " authby=secret\n auto=route\n"
    )
    (inside / "ipsec.secrets").write_text('@second.example : PSK "a key nobody may see"\n')
    done = run("ipsec.conf", "ipsec.conf", "--local", "192.0.2.1", "--out", "out")
    assert done.exit_code == 0, done.output
    assert loading.load(inside / "out").material.keys[0].peers == ("second.example",)
    done = run("ipsec.conf", "ipsec.conf", "--local", "192.0.2.2", "--out", "other")
    assert [rule.peer for rule in loading.load(inside / "other").policy.rules] == ["first.example"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "nothing of it could be translated"),
        ("connections {", "not closed"),
        ("include ../secret.conf", "leaves the directory"),
        (GOOD.replace("auth = psk", "auth = eap"), "nothing of it could be translated"),
    ],
)
def test_nothing_usable_is_an_error(inside: Path, text: str, reason: str) -> None:
    """A script would go on with an empty policy, which lets everything pass in the clear."""
    (inside / "swanctl.conf").write_text(text)
    with pytest.raises(ControlError, match=reason) as caught:
        run("swanctl", "swanctl.conf", "--out", "out")
    assert caught.value.code == "configuration"
    assert not (inside / "out").exists()
    if reason.startswith("nothing"):
        assert cli.run(["import", "swanctl", "swanctl.conf", "--json"]) == 1
