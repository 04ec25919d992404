"""ikd.control.server, requests and client over a real Unix socket, with a host that answers from memory."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from support.loopback import until

from ikd.control import requests
from ikd.control.client import Client
from ikd.control.protocol import EXIT_CODES, LARGEST_LINE, Caller, ControlError, Json, hyphened, plain, stamp
from ikd.control.server import MOST_UNDER_WAY, MOST_WAITING, Occupied, Server, SocketFile
from sadb.address import SocketAddress, parse
from sadb.secret import Secret


class FakeHost:
    """Answers as a daemon with one rule and one pair would."""

    def __init__(self) -> None:
        self.watchers: list[Caller] = []
        self.closed = 0
        self.exporters: tuple[int, ...] = (os.getuid(),)

    def status(self) -> Json:
        return {"version": "x", "peers": []}

    def associations(self) -> list[Json]:
        common = {"rules": ["db"], "peer": "db.example", "spi_r": "00"}
        return [
            {**common, "id": 1, "spi_i": "aabbccdd00112233", "user": "", "user_method": ""},
            {
                **common,
                "id": 2,
                "spi_i": "aabbccdd00112244",
                "user": "CORP\\clerk",
                "user_method": "user-ntlm",
            },
        ]

    def children(self) -> list[Json]:
        return [{"rule": "db", "peer": "db.example", "spi_in": "c0000001", "spi_out": "c0000002"}]

    def policy(self) -> Json:
        return {"rules": [{"name": "db"}, {"name": "hr"}], "warnings": []}

    def explain(self, source: str, destination: str, service: str) -> Json:
        return {"lines": [f"{source} {destination} {service}"]}

    def why(self, name: str) -> Json:
        raise ValueError("a bug of ours")

    def metrics(self) -> str:
        return "ikd_up 1\n"

    def set_level(self, level: str, group: str) -> Json:
        return {"level": level, "group": group}

    def export_keys(self, file: str) -> Json:
        return {"file": file}

    def capture(self, name: str, file: str, caller: Caller) -> Json:
        return {"file": file}

    def recent(self) -> list[Json]:
        return []

    def may_export(self, user: int) -> bool:
        return user in self.exporters

    def event_names(self) -> tuple[str, ...]:
        return ("child-established", "child-failed")

    def watch(self, names: frozenset[str], caller: Caller) -> Json:
        self.watchers.append(caller)
        caller.on_close(self._gone)
        return {"events": sorted(names)}

    def _gone(self) -> None:
        self.closed += 1

    async def up(self, name: str, caller: Caller, timeout: float, childless: bool) -> Json:
        caller.send_event({"event": "progress", "step": 1})
        await asyncio.sleep(0)
        if name != "db":
            raise ControlError("negotiation-failed", "no answer", "look at the peer")
        return {"text": "up"}

    async def down(self, name: str) -> Json:
        return {"text": name}

    async def rekey(self, name: str) -> Json:
        return {"text": name}

    async def reload(self, dry_run: bool) -> Json:
        await asyncio.sleep(3600)
        return {}


Ask = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def serving(
    path: Path,
    host: FakeHost,
    broken: list[BaseException] | None = None,
    given: socket.socket | None = None,
) -> AsyncIterator[Ask]:
    """A server on `path`; yields a function that runs something blocking with the path in a thread."""
    file = SocketFile(path, 0o600, None)

    async def dispatch(do: str, given: dict[str, Json], caller: Caller) -> Json:
        return await requests.dispatch(host, do, given, caller)

    server = Server(file, dispatch, (broken if broken is not None else []).append)
    async with server.serve(file.bind(given)):
        yield lambda function, *more: asyncio.to_thread(function, path, *more)


def one(path: Path, do: str, **parameters: Json) -> Json:
    with Client(path, 30) as client:
        return client.call(do, **parameters)


def raw(path: Path, *lines: bytes) -> list[Json]:
    """What the server says to octets that no client of ours would send."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(path))
        sock.sendall(b"".join(lines))
        sock.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in sock.makefile("rb")]


async def test_greeting_request_and_answer(tmp_path: Path) -> None:
    """The documented form of greeting and answer is what scripts rely on."""
    async with serving(tmp_path / "c", FakeHost()) as run:
        greeting, answer = await run(raw, b'{"id":7,"do":"metrics"}\n')
    assert greeting["protocol"] == 1
    assert answer == {"id": 7, "ok": True, "result": {"text": "ikd_up 1\n"}}


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        (b"{\n", "usage", "JSON"),
        (b"[]\n", "usage", "object"),
        (b'{"do":3}\n', "usage", '"do"'),
        (b'{"do":"statsu"}\n', "no-such-request", "status"),
        (b'{"do":"list-sas"}\n', "no-such-request", "sa"),
        (b'{"do":"sa","with":{"knd":"main"}}\n', "usage", "kind"),
        (b'{"do":"sa","with":{"kind":3}}\n', "usage", "text"),
        (b'{"do":"up"}\n', "usage", "name"),
        (b'{"do":"policy","with":{"rule":"dbb"}}\n', "no-such-rule", "db"),
        (b'{"do":"watch","with":{"events":["child-etsablished"]}}\n', "usage", "child-established"),
        (b'{"do":"log","with":{"level":"loud"}}\n', "usage", "debug"),
    ],
)
async def test_wrong_request_is_answered_with_the_right_one(
    tmp_path: Path, line: bytes, code: str, word: str
) -> None:
    """A wrong request must not end the connection, and its answer must help."""
    async with serving(tmp_path / "c", FakeHost()) as run:
        _, refused, good = await run(raw, line, b'{"id":2,"do":"version"}\n')
    assert refused["error"]["code"] == code
    assert word in refused["error"]["message"] + refused["error"]["remedy"]
    assert good["ok"]


async def test_line_over_the_limit_ends_only_that_connection(tmp_path: Path) -> None:
    """A client that never sends a newline must not take the daemon's memory."""
    async with serving(tmp_path / "c", FakeHost()) as run:
        with suppress(ConnectionError):
            await run(raw, b"x" * (LARGEST_LINE * 3))
        assert (await run(one, "version"))["protocol"] == 1


async def test_bug_in_a_request_is_reported_and_survived(tmp_path: Path) -> None:
    """An exception of ours must reach the log and the client, and end neither server nor connection."""
    broken: list[BaseException] = []
    async with serving(tmp_path / "c", FakeHost(), broken) as run:
        _, bad, good = await run(raw, b'{"id":1,"do":"why"}\n', b'{"id":2,"do":"version"}\n')
    assert (bad["error"]["code"], good["ok"]) == ("internal", True)
    assert [str(error) for error in broken] == ["a bug of ours"]


async def test_slow_request_does_not_hold_up_others(tmp_path: Path) -> None:
    """`up` takes seconds; `status` on the same connection must not wait for it."""
    async with serving(tmp_path / "c", FakeHost()) as run:

        def both(path: Path) -> Json:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(30)
                sock.connect(str(path))
                sock.sendall(b'{"id":1,"do":"reload"}\n{"id":2,"do":"version"}\n')
                file = sock.makefile("rb")
                file.readline()
                return json.loads(file.readline())

        assert (await run(both))["id"] == 2


async def test_who_reads_no_answers_is_not_read(tmp_path: Path) -> None:
    """Answers that nobody takes must not take the daemon's memory; and there are others who ask."""
    request = json.dumps({"do": "help", "pad": "x" * 4096}).encode() + b"\n"

    def flood(path: Path) -> int:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(0.5)
            sock.connect(str(path))
            for count in range(3 * LARGEST_LINE // 4096):
                try:
                    sock.sendall(request)
                except TimeoutError:
                    return one(path, "version") and count
        return 0

    async with serving(tmp_path / "c", FakeHost()) as run:
        assert await run(flood)


async def test_who_reads_no_answers_and_goes_is_let_go(tmp_path: Path) -> None:
    """Else its place stays taken, and what it watches is told to nobody; sixty of them lock others out."""
    host = FakeHost()

    def flood(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b'{"do":"watch","with":{"events":["child-failed"]}}\n')
            sock.settimeout(0.5)
            with suppress(TimeoutError):
                while True:
                    sock.sendall(b'{"do":"help"}\n' * 1000)

    async with serving(tmp_path / "c", host) as run:
        await run(flood)
        await until(lambda: host.closed)


async def test_more_requests_than_there_is_room_for_are_answered(tmp_path: Path) -> None:
    """In time: a client may send many at once, if it reads."""
    lines = [b'{"id":%d,"do":"version"}\n' % n for n in range(10 * MOST_UNDER_WAY)]
    async with serving(tmp_path / "c", FakeHost()) as run:
        _, *answers = await run(raw, *lines)
    assert [answer["id"] for answer in answers] == list(range(10 * MOST_UNDER_WAY))


async def test_progress_comes_before_the_answer(tmp_path: Path) -> None:
    """`ikctl up` shows progress; events after the answer would never be read."""

    def up(path: Path) -> list[Json]:
        with Client(path, 30) as client:
            return list(client.stream("up", name="db"))

    async with serving(tmp_path / "c", FakeHost()) as run:
        assert [line.get("event", "result") for line in await run(up)] == ["progress", "result"]
        with pytest.raises(ControlError) as caught:
            await run(lambda path: one(path, "up", name="other"))
    assert (caught.value.code, EXIT_CODES[caught.value.code]) == ("negotiation-failed", 3)


async def test_slow_reader_loses_oldest_events_and_is_told(tmp_path: Path) -> None:
    """Somebody who watches and sleeps must not make the daemon's memory grow, nor miss that he missed."""
    host = FakeHost()
    total = MOST_WAITING * 3

    def watch(path: Path, go: Callable[[], None]) -> list[Json]:
        with Client(path, 30) as client:
            stream = client.stream("watch", events=["child-failed"])
            assert next(stream) == {"events": ["child-failed"]}
            go()
            found = []
            for line in stream:
                found.append(line)
                if line.get("n") == total - 1:
                    return found
        return []

    loop = asyncio.get_running_loop()

    def flood() -> None:
        for n in range(total):  # within one turn of the loop: nobody can read meanwhile
            host.watchers[0].send_event({"event": "child-failed", "n": n})

    async with serving(tmp_path / "c", host) as run:
        found = await run(watch, lambda: loop.call_soon_threadsafe(flood))
        await until(lambda: host.closed)
    assert found[0] == {"event": "lost", "count": total - MOST_WAITING}
    assert len(found) == MOST_WAITING + 1
    assert host.closed == 1


async def test_keys_only_for_root_and_the_daemons_user(tmp_path: Path) -> None:
    """Whoever may open the socket may ask for status, but not for keys."""
    host = FakeHost()
    async with serving(tmp_path / "c", host) as run:
        assert await run(lambda path: one(path, "log-keys", file="/x")) == {"file": "/x"}
        host.exporters = ()
        with pytest.raises(ControlError) as caught:
            await run(lambda path: one(path, "log-keys", file="/x"))
    assert EXIT_CODES[caught.value.code] == 5


def test_sa_is_found_by_every_name_people_use() -> None:
    """Rule, peer and SPI all name an SA; one that is not found looks as if it were down."""
    host = FakeHost()
    for match in ("db", "db.example", "c0000001", "0xC0000002", "c00000"):
        assert requests.sa(host, match=match)["quick"], match
    assert not requests.sa(host, match="hr")["quick"]
    assert "main" not in requests.sa(host, kind="quick")
    extended = requests.sa(host, kind="extended")
    assert {key: [one["id"] for one in found] for key, found in extended.items()} == {"extended": [2]}
    assert [one["id"] for one in requests.sa(host, kind="main", match="corp\\clerk")["main"]] == [2]
    with pytest.raises(ControlError, match="main, quick or extended"):
        requests.sa(host, kind="middle")


def test_second_owner_is_refused_and_stale_socket_replaced(tmp_path: Path) -> None:
    """Two daemons would fight over one TUN device; a crash must not need cleaning up by hand."""
    path = tmp_path / "run" / "control.sock"
    first = SocketFile(path, 0o660, None)
    sock = first.bind()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with pytest.raises(Occupied, match="another ikd is running"):
        SocketFile(path, 0o660, None).bind()
    sock.close()
    os.close(first._lock or -1)  # as when the process dies: the file stays, the lock does not
    second = SocketFile(path, 0o600, None)
    second.bind().close()
    second.release()
    assert not path.exists()


def listening(path: Path) -> socket.socket:
    """As systemd makes it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    path.chmod(0o600)
    sock.listen()
    return sock


async def test_given_socket_serves_and_outlives_the_server(tmp_path: Path) -> None:
    """Systemd listens on: with the file gone, ikctl would find nobody until somebody restarts the socket."""
    path = tmp_path / "control.sock"
    with listening(path) as systemd:
        async with serving(path, FakeHost(), given=systemd.dup()) as ask:
            assert await ask(one, "version")
            with pytest.raises(Occupied, match="another ikd is running"):
                SocketFile(path, 0o600, None).bind(systemd.dup())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_given_socket_must_be_the_one_of_the_configuration(tmp_path: Path) -> None:
    """Else ikctl is told of one place and the daemon listens at another; and a mode that is not in force is
    told."""
    path = tmp_path / "control.sock"
    with listening(path) as systemd:
        other = SocketFile(tmp_path / "other.sock", 0o600, None)
        with pytest.raises(OSError, match=r"ListenStream= of ikd-control\.socket"):
            other.bind(systemd.dup())
        for mode, group, told in ((0o600, None, False), (0o660, None, True), (0o600, "no such group", True)):
            file = SocketFile(path, mode, group)
            file.bind(systemd.dup()).close()
            file.release()
            assert bool(file.notice) == told
    assert path.is_socket()


def test_only_a_socket_is_ever_removed(tmp_path: Path) -> None:
    """A mistyped path must not delete somebody's file."""
    path = tmp_path / "important"
    path.write_text("x")
    with pytest.raises(OSError, match="cannot make the control socket"):
        SocketFile(path, 0o600, None).bind()
    assert path.read_text() == "x"


@pytest.mark.parametrize("greeting", [b"220 mail.example ESMTP\n", b'{"x": 1}\n', b"[1]\n", b""])
def test_somebody_else_answers(tmp_path: Path, greeting: bytes) -> None:
    """A wrong --socket is told as one, with status 2, not as a mistake in what was sent."""
    path = tmp_path / "other.sock"
    with listening(path) as server:
        server.listen()
        answering = Thread(target=lambda: server.accept()[0].sendall(greeting))
        answering.start()
        with pytest.raises(ControlError) as caught:
            Client(path, 5)
        answering.join()
    assert caught.value.code == "not-reachable"


def test_client_says_what_to_do_without_a_daemon(tmp_path: Path) -> None:
    """The first thing most people see is that no daemon runs."""
    with pytest.raises(ControlError, match="no daemon answers") as caught:
        Client(tmp_path / "nothing")
    assert EXIT_CODES[caught.value.code] == 2
    assert "systemctl start ikd" in caught.value.remedy


def test_key_material_never_becomes_json() -> None:
    """An event that carries a key must fail loudly instead of printing it."""
    with pytest.raises(TypeError, match="Secret"):
        plain({"key": Secret(b"k")})


def test_forms_of_plain_values() -> None:
    """Octets in hexadecimal, times in RFC 3339, names with hyphens."""
    assert plain({"a": b"\x01\xff", "b": (SocketAddress(parse("::1"), 500),)}) == {
        "a": "01ff",
        "b": ["[::1]:500"],
    }
    assert plain({3, 1, 2}) == [1, 2, 3]
    assert stamp(1767322985.678) == "2026-01-02T03:03:05.678Z"
    assert hyphened("ChildEstablished") == hyphened("CHILD_ESTABLISHED") == "child-established"
    assert hyphened("IKEStarted") == "ike-started"
