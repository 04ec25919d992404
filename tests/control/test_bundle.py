"""`ikctl bundle`: everything that a bug report needs, and nothing that is secret, however it is written."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.loopback import SECRET, Running, free_ports, start, write

from ikd.control import bundle, redact
from ikd.control.cli import run
from ikd.control.protocol import ControlError, Json
from ikd.control.recent import OF_A_KIND, Recent
from ikd.events import DatagramDropped, MessageSent, NegotiationFailed, Started
from sadb.address import Path as AddressPath
from sadb.address import SocketAddress, parse

CANARY = "c4n4ry-of-the-tests"
HASH = "0123456789abcdef0123456789abcdef"
SECRETS = f"""
# an older one: {CANARY}-comment
[[psk]]
peers  = ["vpn.example"]
secret = "{CANARY}-plain"

[[psk]]
peers      = ["hex.example"]
secret_hex = "0x{(CANARY + "-hex").encode().hex()}"

[[psk]]
peers         = ["base64.example"]
secret_base64 = "{base64.b64encode((CANARY + "-base64").encode()).decode()}"

[[ntlm]]
account  = 'CORP\\clerk'
password = "{CANARY}-password"

[[ntlm]]
account = 'CORP\\other'
nt_hash = "{HASH}"
"""
MISTAKES = {
    "a key that is not known": f'[[psk]]\npeers = ["vpn.example"]\nsekret = "{CANARY}"\n',
    "the secret as a key": f'[[psk]]\n{CANARY} = "x"\n',
    "a table that is not known": f'[wrong]\nsecret = "{CANARY}"\n[wrong.deep]\nx = ["{CANARY}"]\n',
    "a list": f'[[psk]]\nsecret = ["{CANARY}", "{CANARY}2"]\n',
    "a table": f'[[psk]]\nsecret = {{ peers = "{CANARY}" }}\n',
    "not ended": f'[[psk]]\nsecret = "{CANARY}\n',
    "without quotes": f"[[psk]]\nsecret = {CANARY}\n",
    "on the top": f'secret = "{CANARY}"\n',
}


def shows(octets: bytes, *words: str) -> list[str]:
    """Those of the words that are in there, in any form in which a secret is written."""
    found = []
    for word in words:
        raw = word.encode()
        forms = (raw, raw.hex().encode(), raw.hex().upper().encode(), base64.b64encode(raw)[:-4])
        found += [word] if any(form in octets for form in forms) else []
    return found


def unpacked(path: Path) -> dict[str, bytes]:
    """Members by name."""
    with tarfile.open(path) as archive:
        return {
            one.name.removeprefix("ikd-bundle/"): archive.extractfile(one).read()  # type: ignore[union-attr]
            for one in archive.getmembers()
        }


def unreachable(do: str) -> Json:
    raise ControlError("not-reachable", "no daemon answers")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a secret wherever somebody might have left one."""
    found = write(tmp_path, "left", free_ports(), settings=f"# {CANARY}-in-a-comment\n")
    (found / "secrets.toml").write_text(f'[[psk]]\npeers = ["right.test"]\nsecret = "{SECRET}"\n{SECRETS}')
    (found / "host.key").write_text(f"-----BEGIN PRIVATE KEY-----\n{CANARY}-key\n")
    (found / "krb5.keytab").write_bytes(b"\x05\x02" + f"{CANARY}-keytab".encode())
    return found


@pytest.fixture
async def side(home: Path) -> AsyncIterator[Running]:
    """A daemon on it."""
    running = await start(home)
    yield running
    await running.stop()


async def test_a_bundle_of_a_running_daemon(
    side: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All parts are there and can be read; no canary is, in any form; nobody else may read it."""
    target = tmp_path / "report.tar.gz"
    before = os.umask(0)
    try:
        words = ["--socket", str(side.home / "c.sock"), "--config", str(side.home), "bundle", str(target)]
        assert await asyncio.to_thread(run, words) == 0
    finally:
        os.umask(before)
    assert "without" not in capsys.readouterr().err  # that there is no adapter is no news
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    members = unpacked(target)
    assert not shows(b"".join(members.values()), CANARY, SECRET, HASH)
    assert b"PRIVATE KEY" not in b"".join(members.values())
    for name in bundle.REQUESTS:
        if name not in ("metrics", "offload"):  # there is no adapter
            assert "error" not in json.loads(members[f"{name}.json"]), name
    assert b"ikd_up_seconds" in members["metrics.txt"]
    assert json.loads(members["policy.json"])["rules"][0]["name"] == "net"
    assert "started" in [one["event"] for one in json.loads(members["recent.json"])["events"]]
    assert json.loads(members["versions.json"])["libraries"]["cryptography"]
    settings = json.loads(members["configuration/ikd.json"])
    assert settings["identity"] == {"id": "left.test"}
    assert settings["log"]["level"] == "debug"
    assert json.loads(members["configuration/policy.json"])["rule"][0]["peer"] == "right.test"
    kept = json.loads(members["configuration/secrets.json"])
    assert kept["psk"][1] == {"peers": ["vpn.example"], "secret": redact.HIDDEN}
    assert kept["ntlm"][0] == {"account": "CORP\\clerk", "password": redact.HIDDEN}
    names = [one["name"] for one in json.loads(members["configuration/files.json"])]
    assert {"host.key", "krb5.keytab", "secrets.toml"} <= set(names)


def test_without_a_daemon(home: Path, tmp_path: Path) -> None:
    """It is when the daemon does not start that a report is wanted most."""
    target = tmp_path / "report.tar.gz"
    told = bundle.write(target, home, unreachable)
    assert set(told["missing"]) == {f"{name}.json" for name in bundle.REQUESTS}
    members = unpacked(target)
    assert json.loads(members["status.json"])["error"]["code"] == "not-reachable"
    assert "configuration/policy.json" in members
    assert not shows(b"".join(members.values()), CANARY, SECRET, HASH)


def test_without_the_files(tmp_path: Path) -> None:
    """Whoever is in the socket's group may not be able to read the configuration: the rest is of use, too."""
    target = tmp_path / "report.tar.gz"
    bundle.write(target, tmp_path / "nowhere", lambda do: {"text": do})
    members = unpacked(target)
    assert "No such file" in json.loads(members["configuration/files.json"])["error"]
    assert members["metrics.txt"] == b"metrics"


def test_what_is_there_is_not_overwritten(home: Path, tmp_path: Path) -> None:
    """Run as root, it must not follow a link that somebody has put in its way, nor destroy a file."""
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("precious")
    link.symlink_to(tmp_path / "elsewhere")
    for target in (victim, link):
        with pytest.raises(ControlError, match="cannot make"):
            bundle.write(target, home, unreachable)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "elsewhere").exists()


def test_nothing_is_left_of_one_that_failed(home: Path, tmp_path: Path) -> None:
    """Half an archive would be sent as a whole one."""

    def breaks(do: str) -> Json:
        raise KeyError(do)

    target = tmp_path / "report.tar.gz"
    with pytest.raises(KeyError):
        bundle.write(target, home, breaks)
    assert not target.exists()


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_secrets_in_files_with_mistakes(home: Path, tmp_path: Path, mistake: str) -> None:
    """A file that the daemon refuses is the usual reason for a report, and its secrets are as secret."""
    (home / "secrets.toml").write_text(MISTAKES[mistake])

    def tells(do: str) -> Json:
        return {"text": f"complaint: {CANARY} is wrong", CANARY: [CANARY]}

    target = tmp_path / "report.tar.gz"
    bundle.write(target, home, tells)
    members = unpacked(target)
    assert not shows(b"".join(members.values()), CANARY)
    assert b"complaint: " in members["metrics.txt"]


def test_secrets_where_they_do_not_belong(home: Path, tmp_path: Path) -> None:
    """Whoever writes a key into another file has made a mistake already; it shall not be the second one."""
    (home / "ikd.toml").write_text(
        f'[identity]\nid = "left.test"\npsk = "{CANARY}"\nkey = """-----BEGIN PRIVATE KEY-----\n{CANARY}"""\n'
        f'[psk]\nx = "{CANARY}"\n'
    )
    (home / "policy.toml").write_text(f'[[rule]]\nname = "net"\nsecret = "{CANARY}"\n')
    (home / "policy.d").mkdir()
    (home / "policy.d" / "more.toml").write_text(f'[[rule]]\nname = "more"\nshared_secret = "{CANARY}"\n')
    (home / "offload.toml").write_bytes(b"\xff" + CANARY.encode())
    target = tmp_path / "report.tar.gz"
    bundle.write(target, home, unreachable)
    members = unpacked(target)
    assert not shows(b"".join(members.values()), CANARY)
    assert json.loads(members["configuration/ikd.json"])["identity"]["id"] == "left.test"
    assert json.loads(members["configuration/policy.d/more.json"])["rule"][0]["name"] == "more"


def test_recent_events_have_an_end() -> None:
    """A flood must not push out what matters, nor fill the memory, nor an answer beyond its line."""
    recent = Recent(lambda: 0.0)

    def tell(event: Started | DatagramDropped | NegotiationFailed) -> None:
        listener = recent.listener(type(event))
        assert listener is not None
        listener(event)

    tell(Started(version="1", plane="", rules=1))
    for n in range(5000):
        tell(DatagramDropped(reason="x", detail=str(n)))
    lines = recent.lines()
    assert [one["event"] for one in lines].count("datagram-dropped") == OF_A_KIND
    assert lines[0]["event"] == "started"
    assert lines[-1]["detail"] == "4999"
    assert recent.listener(MessageSent) is None
    path = AddressPath(SocketAddress(parse("192.0.2.1"), 500), SocketAddress(parse("192.0.2.1"), 500))
    for n in range(OF_A_KIND):
        tell(DatagramDropped(reason=f"{n}", detail="y" * 65_536, path=path))
    assert len(json.dumps(recent.lines())) < 1 << 20
