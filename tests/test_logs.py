"""What the log writes: forms, levels by group, and what floods and hostile octets do to it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

from ikd.control.protocol import printable
from ikd.events import AuthenticationFailed, Broken, DatagramDropped, Event, MessageSent, Started, Warned
from ikd.logs import MOST_KINDS, MOST_PER_SECOND, OTHERS, Limiter, Log, automatic
from ikd.settings import Levels
from sadb.address import Path, SocketAddress, parse

STARTED = Started(version="1", plane="memory", rules=2)


Made = tuple[Log, io.StringIO, list[float], list[Callable[[], None]]]


def log(form: str, levels: Levels | None = None) -> Made:
    """A log with what it wrote, a clock to be set and the functions it wants run later."""
    stream, now = io.StringIO(), [10.0]
    later: list[Callable[[], None]] = []
    made = Log(
        levels or Levels(),
        form,
        stream,
        lambda seconds, action: later.append(action),
        lambda: now[0],
        lambda: 1767322985.678,
    )
    return made, stream, now, later


def test_text_is_one_line_with_everything() -> None:
    """The line an administrator greps for."""
    made, stream, *_ = log("text")
    made.write(STARTED)
    assert stream.getvalue() == "2026-01-02T03:03:05.678Z info    daemon: ikd 1 started, 2 rules, memory\n"


def test_json_has_the_events_own_keys() -> None:
    """Machines read fields, not sentences."""
    made, stream, *_ = log("json")
    peer = Path(SocketAddress(parse("192.0.2.1"), 500), SocketAddress(parse("::1"), 500))
    made.write(DatagramDropped(reason="malformed", detail="too short", path=peer))
    line = json.loads(stream.getvalue())
    assert (line["event"], line["group"], line["level"]) == ("datagram-dropped", "network", "warning")
    assert (line["reason"], line["path"]) == ("malformed", "192.0.2.1:500 -> [::1]:500")
    assert "dropped a datagram" in line["text"]


def test_journald_gets_a_priority_on_every_line() -> None:
    """A traceback whose later lines have no priority is lost under `journalctl -p err`."""
    made, stream, *_ = log("journald")
    made.write(Broken(where="here", error="E", traceback="first\nsecond"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("<3>") for line in lines)


def test_levels_are_by_group_and_change() -> None:
    """`ikctl log debug ike` must make IKE talkative and nothing else."""
    made, *_ = log("text", Levels("warning", (("auth", "error"),)))
    assert made.writer(Started) is None
    assert made.writer(Warned) is not None
    assert made.writer(AuthenticationFailed) is None
    assert made.writer(MessageSent) is None
    made.set_level("debug", "ike")
    assert made.writer(MessageSent) is not None
    assert made.writer(AuthenticationFailed) is None


def test_flood_is_cut_and_counted_by_reason() -> None:
    """A stranger who sends garbage must neither fill the disk nor hide another reason in the noise."""
    made, stream, now, later = log("text")
    for _ in range(MOST_PER_SECOND * 4):
        made.write(DatagramDropped(reason="malformed"))
    made.write(DatagramDropped(reason="cookie"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == MOST_PER_SECOND + 1
    assert "cookie" in lines[-1]
    now[0] = 11.5
    assert len(later) == 1
    later[0]()
    tail = stream.getvalue().splitlines()[-1]
    assert f"{MOST_PER_SECOND * 3} more of datagram-dropped (malformed)" in tail
    made.write(DatagramDropped(reason="malformed"))
    assert len(stream.getvalue().splitlines()) == MOST_PER_SECOND + 3


def test_messages_for_sas_that_are_gone_are_told_once_a_minute() -> None:
    """After a restart each peer goes on for a while with what it had: a warning for each message says
    nothing new, and frightens."""
    made, stream, now, later = log("text")

    def hears(address: str) -> None:
        peer = Path(SocketAddress(parse("192.0.2.1"), 500), SocketAddress(parse(address), 500))
        made.write(DatagramDropped(reason="unknown-spi", detail="no IKE SA", path=peer))

    for _ in range(12):
        hears("192.0.2.2")
        now[0] += 1.5
    hears("192.0.2.3")
    lines = stream.getvalue().splitlines()
    assert ["192.0.2.2" in one for one in lines] == [True, False]
    assert len(later) == 1
    now[0] += 60
    later[0]()
    tail = stream.getvalue().splitlines()[2:]
    assert len(tail) == 1
    assert "11 more of datagram-dropped (unknown-spi) from 192.0.2.2" in tail[0]
    hears("192.0.2.2")
    assert len(stream.getvalue().splitlines()) == 4
    made.set_level("debug", "network")
    hears("192.0.2.2")
    hears("192.0.2.2")
    assert len(stream.getvalue().splitlines()) == 6


def test_suppressed_is_told_by_the_next_event_without_a_timer() -> None:
    """Without an event loop the count must not get lost either."""
    made, stream, now, _ = log("text")
    for _ in range(MOST_PER_SECOND + 5):
        made.write(STARTED)
    now[0] = 12.0
    made.write(STARTED)
    assert "5 more of started" in stream.getvalue().splitlines()[-2]


def test_lines_that_could_not_be_written_are_counted() -> None:
    """A gap in a log that nothing tells of looks like a quiet night."""

    class Disk(io.StringIO):
        full = False

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Disk()
    made = Log(Levels(), "json", stream, None, lambda: 10.0, lambda: 1767322985.678)
    made.write(STARTED)
    stream.full = True
    for _ in range(3):
        made.write(STARTED)
    assert made.trouble == "the log cannot be written: No space left on device"
    stream.full = False
    made.write(STARTED)
    lines = [json.loads(one) for one in stream.getvalue().splitlines()]
    assert [one["event"] for one in lines] == ["started", "lines-lost", "started"]
    assert lines[1]["count"] == 3
    assert not made.trouble


def test_limiter_is_bounded() -> None:
    """Reasons with octets of strangers in them must not grow a table; what it has no room for is counted."""
    limiter = Limiter()
    for n in range(MOST_KINDS * 2):
        limiter.passes(str(n), 1)
    assert not limiter.passes("one more", 1)
    assert limiter.report(1.0, lambda kind: 1) == [(OTHERS, MOST_KINDS + 1)]
    assert limiter.passes("one more", 1)


def test_octets_of_strangers_are_escaped() -> None:
    """An identity with control characters must not reach the administrator's terminal."""
    made, stream, *_ = log("text")
    made.write(
        AuthenticationFailed(
            ike=1, rule="net", identity="\x1b[2J\u202eevil\r", address="192.0.2.2", reason="x"
        )
    )
    assert "\x1b" not in stream.getvalue()
    assert "\\x1b[2J\\u202eevil\\r" in stream.getvalue()
    assert printable("ä\nb\t") == "ä\nb\\t"


def test_reader_that_is_gone_does_not_stop_the_daemon() -> None:
    """A full disk or a closed pipe behind the log is no reason to stop negotiating."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    made = Log(Levels(), "text", Closed())
    made.write(STARTED)


def test_automatic_form() -> None:
    """Neither a terminal nor systemd: JSON, which whoever collects it can read."""
    assert automatic(io.StringIO()) == "json"
    events: list[type[Event]] = [Started]
    assert log("json")[0].writer(events[0]) is not None
