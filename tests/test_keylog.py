"""Exported keys: the rows that Wireshark's tables take, and a file nobody else can read or prepare. That
tshark decrypts with them is shown in tests/interop/test_strongswan_path.py."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ikd.control.protocol import ControlError
from ikd.keylog import KeyLog, esp_line, ike_line
from ikd.outputs import Keys
from policy.values import main_suite, quick_suite
from sadb.address import parse
from sadb.sa import Mode, SaPair, SecurityAssociation
from sadb.secret import Secret
from sadb.selector import Selector

NOTHING = Selector((), ())


def keys(suite: str) -> Keys:
    pair = (Secret(b"\x11" * 20), Secret(b"\x22" * 20))
    return Keys(b"\x01" * 8, b"\x02" * 8, main_suite(suite), pair, pair)


def sa(suite: str, *, inbound: bool, six: bool = False) -> SecurityAssociation:
    ends = [parse("2001:db8::1" if six else "192.0.2.1"), parse("2001:db8::2" if six else "192.0.2.2")]
    source, destination = reversed(ends) if inbound else ends
    return SecurityAssociation(
        0x1234, quick_suite(suite), Mode.TUNNEL, source, destination, NOTHING, Secret(b"\x33" * 4),
        Secret(b"\x44" * 2), inbound,
    )  # fmt: skip


def pair(suite: str) -> SaPair:
    return SaPair(sa(suite, inbound=True), sa(suite, inbound=False), NOTHING, Mode.TUNNEL, "net", 1)


def test_rows_of_ikev2_decryption_table() -> None:
    """The names are those tshark 4.0 accepts; with any other it refuses the whole table."""
    one, two = "11" * 20, "22" * 20
    spis = "01" * 8 + "," + "02" * 8
    assert ike_line(keys("x25519 aes128 sha256")) == (
        f'{spis},{one},{two},"AES-CBC-128 [RFC3602]",{one},{two},"HMAC_SHA2_256_128 [RFC4868]"'
    )
    assert ike_line(keys("x25519 aes256gcm sha384")) == (
        f'{spis},{one},{two},"AES-GCM-256 with 16 octet ICV [RFC5282]",{one},{two},"NONE [RFC4306]"'
    )
    assert ike_line(keys("x25519 chacha20poly1305 sha256")) == ""


def test_rows_of_esp_sa() -> None:
    """Eight columns: source and destination as on the wire, in both directions."""
    assert esp_line(sa("aes128 sha256", inbound=True)) == (
        '"IPv4","192.0.2.2","192.0.2.1","0x00001234","AES-CBC [RFC3602]","0x33333333",'
        '"HMAC-SHA-256-128 [RFC4868]","0x4444"'
    )
    line = esp_line(sa("aes256gcm", inbound=False, six=True))
    assert line.startswith(
        '"IPv6","2001:db8::1","2001:db8::2","0x00001234","AES-GCM with 16 octet ICV [RFC4106]"'
    )
    assert esp_line(sa("chacha20poly1305", inbound=True)) == ""
    assert esp_line(sa("ah sha256", inbound=True)) == ""


def test_file_is_private_appended_and_closed(tmp_path: Path) -> None:
    """Keys in a file others can read are worse than no file."""
    trouble: list[str] = []
    log, path = KeyLog(trouble.append), tmp_path / "keys"
    path.write_text("before\n")
    path.chmod(0o644)
    log.export(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log.ike(keys("x25519 aes128 sha256"))
    log.child(pair("aes128 sha256"))
    log.child(pair("chacha20poly1305"))
    assert log.on
    log.export("")
    assert not log.on
    log.child(pair("aes128 sha256"))
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert [line[:2] for line in lines[1:]] == ["01", '"I', '"I', "# ", "# "]
    assert not trouble


def test_prepared_places_are_refused(tmp_path: Path) -> None:
    """A link or a device in place of the file would hand the keys to somebody else; a pipe that nobody reads
    would hold up the daemon."""
    log = KeyLog(lambda text: None)
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    for name in (*(str(tmp_path / one) for one in ("link", "pipe", "no/keys")), "/dev/null", "relative"):
        with pytest.raises(ControlError):
            log.export(name)
        assert not log.on
    assert not (tmp_path / "real").read_text()


def test_full_disk_ends_the_export(tmp_path: Path) -> None:
    """Half a line of a key helps nobody; the administrator hears of it, and negotiating goes on."""
    trouble: list[str] = []
    log = KeyLog(trouble.append)
    log.export(str(tmp_path / "keys"))
    assert log._file is not None
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115 - the log closes it
    log.ike(keys("x25519 aes128 sha256"))
    assert "not written any more" in trouble[0]
    assert not log.on
