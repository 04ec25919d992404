"""ikd.control.cli_init: what `ikctl init` writes is what two daemons take, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ikd import loading
from ikd.auth.chain import Trust
from ikd.auth.identity import Identity
from ikd.control import cli, toml
from ikd.control.protocol import ControlError
from sadb.secret import Secret

PAIR = ("--peer", "192.0.2.2", "--local", "192.0.2.1")
NETS = ("--local-net", "10.1.0.0/16", "--remote-net", "10.2.0.0/16", "--remote-net", "2001:db8:2::/48")
NAMES = ("--name", "first.example", "--peer-name", "second.example")


def init(*arguments: str, typed: str = "") -> Any:
    """`ikctl init ARGUMENTS --json`, its answer; what it raises is for the caller of `ikctl` to print."""
    found = CliRunner().invoke(cli.cli, ["init", *arguments, "--json"], input=typed)
    if isinstance(found.exception, ControlError):
        raise found.exception
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative names are below a directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def both(inside: Path, *arguments: str) -> list[loading.Configuration]:
    """The configuration of this host, and of the other one as made by the command that is printed."""
    answer = init("--config", "one", *arguments)
    copied = Path(answer["copy"])
    (inside / copied.name).symlink_to(copied)
    command = shlex.split(answer["there"])
    assert command[:2] == ["ikctl", "init"]
    init("--config", "two", *command[2:])
    return [loading.load(inside / name) for name in ("one", "two")]


def test_files_belong_to_whom_the_directory_belongs_to(inside: Path) -> None:
    """A daemon with a user of its own could not read the keys that root has written for it."""
    home = inside / "one"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, 4711, 4712)
    init("--config", "one", *PAIR, "--auth", "certificate", "--make-ca")
    found = {(path.stat().st_uid, path.stat().st_gid) for path in (home, *home.rglob("*"))}
    assert found == {(home.stat().st_uid, home.stat().st_gid)}


@pytest.mark.parametrize("nets", [(), NETS], ids=["hosts", "networks"])
@pytest.mark.parametrize("names", [(), NAMES], ids=["addresses", "names"])
@pytest.mark.parametrize("auth", [("psk",), ("certificate", "--make-ca")], ids=lambda one: one[0])
def test_both_ends_fit(
    inside: Path, nets: tuple[str, ...], names: tuple[str, ...], auth: tuple[str, ...]
) -> None:
    """Who follows what is printed would have two hosts that do not find together."""
    one, two = both(inside, *PAIR, *nets, *names, "--auth", *auth)
    assert one.warnings == two.warnings == ()
    (here,), (there,) = one.policy.rules, two.policy.rules
    assert (here.peer, there.peer) == (str(two.material.identity), str(one.material.identity))
    assert here.auth
    assert [method.method for method in here.auth.first] == [auth[0]]
    if nets:
        assert here.selector.local == there.selector.remote
        assert here.selector.remote == there.selector.local
        assert here.tunnel
        assert there.tunnel
        assert (here.tunnel.local, here.tunnel.remote) == (there.tunnel.remote, there.tunnel.local)
    else:
        assert [str(side.low) for side in here.selector.remote] == ["192.0.2.2"]
        assert [str(side.low) for side in there.selector.remote] == ["192.0.2.1"]
    if auth[0] == "psk":
        assert one.material.keys[0].secret == two.material.keys[0].secret
        assert [str(peer) for peer in one.material.keys[0].peers] == [here.peer]
    else:
        chain = Trust(one.material.anchors).verify(two.material.hosts[0].sent, time.time())
        assert chain.facts.prove(Identity.parse(str(here.peer)))


def test_peer_that_is_a_name(inside: Path) -> None:
    """The other host would be told to be at an address that is none."""
    command = init(
        "--config", "one", "--peer", "vpn.example", "--local", "192.0.2.1", *NETS, "--auth", "psk"
    )["there"]
    assert "--local " not in command
    assert "--name vpn.example" in command
    assert loading.load(inside / "one").policy.rules[0].peer == "vpn.example"


def test_secrets_are_the_owner_s_alone(inside: Path) -> None:
    """Everybody on the host could be either end."""
    init("--config", "one", *PAIR, "--auth", "psk")
    init("--config", "two", *PAIR, "--auth", "certificate", "--make-ca")
    private = ["one/secrets.toml", "two/pki/ca.key", "two/pki/host.key", "two/peer/host.key"]
    assert [(inside / name).stat().st_mode & 0o777 for name in private] == [0o600] * 4
    assert not list(inside.rglob(".new-*"))


def test_nothing_is_overwritten_unasked(inside: Path) -> None:
    """A second `ikctl init` would make the first one's key worthless; not even a part of it may happen."""
    init("--config", "one", *PAIR, "--auth", "psk")
    before = {path.name: path.read_bytes() for path in (inside / "one").iterdir()}
    (inside / "one" / "secrets.toml").rename(inside / "kept")
    with pytest.raises(ControlError, match=r"has ikd.toml, policy.toml already") as caught:
        init("--config", "one", *PAIR, "--auth", "psk")
    assert "--force" in caught.value.remedy
    assert not (inside / "one" / "secrets.toml").exists()
    init("--config", "one", *PAIR, "--auth", "psk", "--force")
    after = {path.name: path.read_bytes() for path in (inside / "one").iterdir()}
    assert after.keys() == before.keys()
    assert after["secrets.toml"] != before["secrets.toml"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "--peer"),
        (("--peer", "192.0.2.2"), "--auth"),
        (("--auth", "psk"), "--peer"),
        ((*PAIR, "--auth", "certificate"), "--make-ca"),
        ((*PAIR, "--auth", "certificate", "--certificate", "x.pem"), "--ca is missing"),
        ((*PAIR, "--auth", "certificate", "--make-ca", "--ca", "x.pem"), "leave"),
        ((*PAIR, "--auth", "certificate", "--certificate", "x.pem", "--ca", "y.pem"), "x.pem: No such file"),
        ((*PAIR, "--auth", "psk", "--make-ca"), "for --auth certificate"),
        ((*PAIR, "--auth", "certificate", "--make-ca", "--psk-file", "k"), "for --auth psk"),
        ((*PAIR, "--auth", "psk", "--local-net", "10.1.0.0/16"), "--remote-net is missing"),
        ((*PAIR, "--auth", "psk", "--remote-net", "10.1.0.0/16"), "--local-net is missing"),
        ((*PAIR, "--auth", "psk", "--local-net", "10.1.0.1/16", "--remote-net", "10.2.0.0/16"), "bad prefix"),
        (("--peer", "vpn.example", "--auth", "psk"), "is no address"),
        (("--peer", "127.0.0.1", "--auth", "psk"), "127.0.0.1 is this host"),
        (("--peer", "192.0.2.2", "--local", "banana", "--auth", "psk"), '"banana" is no address'),
        (("--peer", "2001:db8::2", "--local", "192.0.2.1", "--auth", "psk"), "different families"),
        ((*PAIR, "--auth", "psk", "--psk-file", "-"), "fewer than 20"),
        ((*PAIR, "--auth", "psk", "--psk-file", "none"), "none: No such file"),
        ((*PAIR, "--auth", "psk", "--psk-file", "empty.toml"), r"one \[\[psk\]\]"),
        ((*PAIR, "--auth", "psk", "--peer-name", "two words"), "policy.toml"),
        ((*PAIR, "--auth", "certificate", "--make-ca", "--name", "My Host"), "My Host"),
    ],
)
def test_what_is_missing_or_wrong_is_named(inside: Path, arguments: tuple[str, ...], reason: str) -> None:
    """A script would hang at a question, or leave a configuration that the daemon refuses."""
    (inside / "empty.toml").touch()
    with pytest.raises(ControlError, match=reason) as caught:
        init("--config", "one", *arguments, typed="short\n")
    assert caught.value.remedy
    assert not (inside / "one").exists()


def test_key_from_standard_input(inside: Path) -> None:
    """The key would have to stand on the command line, where every user of the host reads it."""
    init("--config", "one", *PAIR, "--auth", "psk", "--psk-file", "-", typed="a key that is long enough\n")
    assert loading.load(inside / "one").material.keys[0].secret == Secret(b"a key that is long enough")


def test_other_files_of_the_directory_count(inside: Path) -> None:
    """What is written would be called good although the daemon refuses the directory as a whole."""
    (inside / "one" / "policy.d").mkdir(parents=True)
    (inside / "one" / "policy.d" / "old.toml").write_text("[[rule]]\nnonsense = 1\n")
    with pytest.raises(ControlError, match="nonsense"):
        init("--config", "one", *PAIR, "--auth", "psk")


def test_terminal_is_asked(inside: Path) -> None:
    """A person who types `ikctl init` would get a complaint about flags."""
    outer, inner = pty.openpty()
    answers = b"192.0.2.2\npsk\n10.1.0.0/16\n10.2.0.0/16, 10.3.0.0/16\n\n"
    program = "import sys; from ikd.control.cli import main; main(sys.argv[1:])"
    arguments = [sys.executable, "-c", program, "init", "--config", "one", "--local", "192.0.2.1"]
    os.write(outer, answers)
    try:
        done = subprocess.run(arguments, stdin=inner, capture_output=True, text=True, timeout=30, check=False)
    finally:
        os.close(outer)
        os.close(inner)
    assert done.returncode == 0, done.stderr
    assert "Address of the peer" in done.stderr
    assert "ikctl init --peer 192.0.2.1" in done.stdout
    (rule,) = loading.load(inside / "one").policy.rules
    assert [str(side.low) for side in rule.selector.remote] == ["10.2.0.0", "10.3.0.0"]


@pytest.mark.parametrize(
    "value", ['a"b\\c', "\x00\x1f\x7f", "é\u2028", True, 7, ["x", {"a b": "c"}], {"": ""}]
)
def test_values_read_back(value: toml.Value) -> None:
    """A name with quotes in it would become other keys of the file."""
    assert tomllib.loads(toml.table("[x.y]", {"k.e y": value, "z": 1})) == {
        "x": {"y": {"k.e y": value, "z": 1}}
    }
