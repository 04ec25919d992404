"""Messages to journald: fields, what strangers put into them; a journald that does not read."""

from __future__ import annotations

import array
import dataclasses
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ikd import journal
from ikd.events import EVENTS, DatagramDropped, Reloaded, Warned
from ikd.journal import Journal
from ikd.logs import Log, field_name
from ikd.settings import Levels


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket that stands for journald's."""
    path = str(tmp_path / "journal")
    monkeypatch.setattr(journal, "PATH", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(30)
        yield sock


def fields(data: bytes) -> list[tuple[str, str]]:
    """A message of journald's native protocol."""
    found = []
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        found.append((name.decode(), value.decode()))
    return found


def journal_of(write: Callable[[Log], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """Lets a log write whose stream is the one that systemd connected; what went to the stream."""
    reading, writing = os.pipe()
    with open(reading) as stream, open(writing, "w") as error:
        status = os.fstat(writing)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        with closing(Log(Levels(), "auto", error)) as made:
            write(made)
        error.close()
        return stream.read()


def test_journald_gets_a_field_for_each_key(journald: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal is searched for; a list must be found by each of its texts, and null by nothing."""
    event = Reloaded(rules=3, added=("a", "b=c"), removed=("d\ne",))
    assert journal_of(lambda made: made.write(event), monkeypatch) == ""
    got = fields(journald.recv(1 << 16))
    assert got == [
        ("MESSAGE", "policy: policy of 3 rules in force (added a, b=c; removed d\ne)"),
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "ikd"),
        ("IKD_EVENT", "reloaded"),
        ("IKD_GROUP", "policy"),
        ("IKD_RULES", "3"),
        ("IKD_ADDED", "a"),
        ("IKD_ADDED", "b=c"),
        ("IKD_REMOVED", "d\ne"),
    ]


def test_value_of_a_stranger_makes_no_field(journald: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new line in a peer's identity must not write a field that says it was believed."""
    event = DatagramDropped(reason="x", detail="y\nIKD_EVENT=peer-authenticated")
    journal_of(lambda made: made.write(event), monkeypatch)
    assert [value for name, value in fields(journald.recv(1 << 16)) if name == "IKD_EVENT"] == [
        "datagram-dropped"
    ]


def test_long_message_goes_as_a_sealed_file(journald: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback of a bug is what may be too long for a datagram, and what must not be lost."""
    text = "x" * (1 << 20)
    journal_of(lambda made: made.write(Warned(about="a", warning=text)), monkeypatch)
    _, ancillary, *_ = journald.recvmsg(1, socket.CMSG_SPACE(4))
    (number,) = array.array("i", ancillary[0][2])
    with open(number, "r+b") as file:
        with pytest.raises(PermissionError):
            file.truncate(0)
        file.seek(0)
        assert ("IKD_WARNING", text) in fields(file.read())


def test_journald_that_does_not_read_costs_messages_and_no_time(journald: socket.socket) -> None:
    """A full journal must not stop the daemon; how much is missing is said."""
    with closing(Journal()) as log:
        for _ in range(5000):
            log.msg([("MESSAGE", "m")])
        journald.setblocking(False)
        taken = 0
        try:
            while journald.recv(100):
                taken += 1
        except BlockingIOError:
            pass
        assert 0 < taken < 5000
        log.msg([("MESSAGE", "m")])
        assert fields(journald.recv(1000)) == [("MESSAGE", "m")]
        assert ("IKD_COUNT", str(5000 - taken)) in fields(journald.recv(1000))


def test_without_journald_nothing_is_raised(tmp_path: Path) -> None:
    """It may be restarting, or not be there."""
    with closing(Journal(str(tmp_path / "nothing"))) as log:
        log.msg([("MESSAGE", "m")])


def test_every_key_is_a_field_of_its_own() -> None:
    """journald drops fields whose names it does not like, and a key must not pass for the event's name."""
    for kind in EVENTS.values():
        for one in dataclasses.fields(kind):
            assert re.fullmatch(r"IKD_[A-Z0-9_]{1,60}", field_name(one.name))
            assert one.name not in ("event", "group")
