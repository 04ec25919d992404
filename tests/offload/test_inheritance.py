"""Workers that outlive their daemon, and the daemon that comes next: real processes without a device.

If one of these fails, a restart loses SAs, keeps those of somebody else, or hands keys to a stranger."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support import engines
from support.loopback import until
from support.require import require

from offload import channel
from offload.host.tun import Queue, Tun
from offload.ledger import Ledger
from offload.workers import inheritance
from offload.workers.inheritance import Estate, Orphan, claim, ended, place_of
from offload.workers.pool import Workers
from offload.workers.processes import Bequest, Kind, spawn
from offload.workers.shares import Share
from sadb.sa import SaPair, State

pytestmark = engines.ONE_ENGINE

SAME = {"the version": "1", "daemon.listen": "192.0.2.1"}
SLOTS = 8


class Former:
    """A daemon that is about to be gone, with its workers."""

    def __init__(self, place: Path, *, count: int = 1, seconds: float = 30.0) -> None:
        self.control = place / "control.sock"
        self.ledger = Ledger(SLOTS)
        self.kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.kept.bind(("127.0.0.1", 0))
        self.queues = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
        self.tun = cast(
            Tun, SimpleNamespace(queues=[Queue(one.fileno()) for one, _ in self.queues], segments_udp=False)
        )
        bequest = Bequest(self.control, seconds, SAME, [self.kept])
        shares = [Share((), [], ()) for _ in range(count)]
        self.workers = [
            spawn(Kind("python", 32, 32), n, shares, self.tun, self.ledger.fileno, bequest, 0.0)
            for n in range(count)
        ]

    def tell(self, message: channel.Order, *numbers: int) -> None:
        """Give an order to these workers, or to all."""
        for n in numbers or range(len(self.workers)):
            self.workers[n].channel.setblocking(True)
            self.workers[n].channel.sendall(channel.encoded(message))

    def has(self, pair: SaPair, slot: int, *numbers: int) -> None:
        """Install a pair that may be used."""
        self.tell(channel.add(slot, pair, digest="meaning"), *numbers)
        self.tell(channel.Update(slot, "mature", False, pair.owner), *numbers)

    def die(self) -> None:
        """Let workers hear nothing more; when each has said that it lives it has read everything."""
        for one in self.workers:
            one.channel.settimeout(60)
            assert one.channel.recv(1 << 16)
            one.channel.shutdown(socket.SHUT_WR)
        for one in self.workers:
            while one.channel.recv(1 << 16):
                pass
            one.channel.close()

    def claimed(self, wanted: dict[str, str] = SAME) -> tuple[Estate | None, str]:
        """What the next daemon gets."""
        return claim(self.control, wanted, lambda orphan: "")

    def alive(self) -> list[bool]:
        """Which workers have not ended."""
        return [not ended(one.pidfd, 0.0) for one in self.workers]

    def close(self) -> None:
        """Leave nothing behind."""
        for one in self.workers:
            one.kill()
            assert one.child is not None
            one.child.wait()
            os.close(one.pidfd)
            one.channel.close()
        for pair in self.queues:
            for end in pair:
                end.close()
        self.kept.close()
        self.ledger.close()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[list[Former]]:
    """Closes what a test made."""
    found: list[Former] = []
    yield found
    for one in found:
        one.close()


def former(made: list[Former], place: Path, **how: Any) -> Former:
    """A daemon with workers."""
    one = Former(place, **how)
    made.append(one)
    return one


def said(orphan: Orphan, seconds: float = 60.0) -> object:
    """What a worker says next."""
    orphan.channel.settimeout(seconds)
    while True:
        found = list(orphan.decoder.feed(orphan.channel.recv(1 << 16)))
        if other := [one for one in found if not isinstance(one, channel.Report)]:
            return other[0]


def test_next_daemon_gets_everything(made: list[Former], tmp_path: Path) -> None:
    """A pair without its slot would be counted elsewhere from then on, and numbers used twice; without its
    rule's digest it might serve a rule that does not want it any more."""
    old, pair = former(made, tmp_path), engines.hosts(install=False)[0].pair
    old.has(pair, 3)
    old.die()
    estate, reason = old.claimed()
    assert estate is not None, reason
    (orphan,) = estate.orphans
    assert orphan.pid == old.workers[0].pid
    ((slot, held, agreed),) = estate.pairs()
    assert (slot, agreed, held.state, held.standby) == (3, True, "mature", False)
    assert held.pair == channel.add(3, pair, digest="meaning")
    assert os.path.sameopenfile(orphan.ledger, old.ledger.fileno)
    assert [one.getsockname() for one in orphan.kept] == [old.kept.getsockname()]
    orphan.channel.sendall(channel.encoded(channel.Taken(30.0)) + channel.encoded(channel.Remove(3)))
    assert said(orphan) == channel.Removed(3)
    estate.close()


def test_worker_that_was_taken_over_waits_again(made: list[Former], tmp_path: Path) -> None:
    """A daemon that is restarted twice must find its workers twice, those it was given among them."""
    old = former(made, tmp_path)
    old.has(engines.hosts(install=False)[0].pair, 0)
    old.die()
    for _ in range(2):
        estate, reason = old.claimed()
        assert estate is not None, reason
        assert len(list(estate.pairs())) == 1
        estate.orphans[0].channel.sendall(channel.encoded(channel.Taken(30.0)))
        estate.close()


def test_claim_that_breaks_off_costs_nothing(made: list[Former], tmp_path: Path) -> None:
    """A daemon that dies while it takes over must not take the workers with it."""
    old = former(made, tmp_path)
    old.has(engines.hosts(install=False)[0].pair, 0)
    old.die()
    for _ in range(3):
        estate, reason = old.claimed()
        assert estate is not None, reason
        estate.close()
    assert old.alive() == [True]


def test_nobody_comes(made: list[Former], tmp_path: Path) -> None:
    """Keys must not stay in memory for longer than was said."""
    old = former(made, tmp_path, seconds=0.5)
    began = time.monotonic()
    old.die()
    assert ended(old.workers[0].pidfd, 20.0)
    assert time.monotonic() - began >= 0.5
    assert old.claimed() == (None, "")
    assert not place_of(old.control, 0).exists()


def test_other_daemon_ends_them(made: list[Former], tmp_path: Path) -> None:
    """Workers of other addresses or another version would carry what nobody asked for, and those that are
    left hold the ports and the device."""
    old = former(made, tmp_path, count=2)
    old.die()
    estate, reason = old.claimed(SAME | {"daemon.listen": "192.0.2.9"})
    assert estate is None
    assert reason == "daemon.listen was 192.0.2.1 and is 192.0.2.9"
    assert old.alive() == [False, False]


def test_all_or_none(made: list[Former], tmp_path: Path) -> None:
    """How far a worker that is dead had counted nobody knows; its share of packets has nobody either."""
    old = former(made, tmp_path, count=2)
    old.die()
    old.workers[1].kill()
    assert ended(old.workers[1].pidfd, 30.0)
    assert old.claimed() == (None, "1 of 2 workers are left")
    assert old.alive() == [False, False]


def test_pair_without_an_account_is_no_pair(made: list[Former], tmp_path: Path) -> None:
    """What a worker says may be a stranger's who has taken it over: no slot of it is looked up elsewhere."""
    old = former(made, tmp_path)
    old.has(engines.hosts(install=False)[0].pair, SLOTS)
    old.die()
    estate, reason = old.claimed()
    assert (estate, "a pair without an account" in reason) == (None, True)
    assert old.alive() == [False]


def test_worker_that_does_not_stop_talking(made: list[Former], tmp_path: Path) -> None:
    """What it says before it is taken is kept for its daemon to hear, but not without end."""
    old = former(made, tmp_path)
    old.die()
    estate, _ = old.claimed()
    assert estate is not None
    with pytest.raises(channel.Garbled):
        estate.orphans[0].take(channel.Report({}, 0) for _ in range(1_000_000))
    estate.close()


def test_workers_go_on_under_another_daemon(made: list[Former], tmp_path: Path) -> None:
    """A slot that an old pair has must not be given to a new one: two keys would count the same numbers. Nor
    may what cannot be used keep its slot for ever, or be used."""
    old, pairs = former(made, tmp_path), [engines.hosts(install=False)[0].pair for _ in range(4)]
    for n, one in enumerate(pairs):
        one.inbound.spi = 5000 + n
    old.has(pairs[0], 1)
    old.tell(channel.add(2, pairs[1], digest="meaning"))  # nobody knows whether the peer has it
    old.has(pairs[2], 4)
    old.tell(channel.Update(4, "dying", True, 1))
    old.die()
    estate, reason = old.claimed()
    assert estate is not None, reason

    async def serve() -> None:
        assert estate is not None
        workers = Workers(SLOTS, Kind("python", 32, 32))
        shares = [Share((), [], ())]
        bequest = Bequest(old.control, 30.0, SAME, ())
        found = workers.open(asyncio.get_running_loop(), old.tun, shares, bequest, estate)
        assert [(pair.inbound.spi, digest) for pair, digest in found] == [
            (5000, "meaning"),
            (5002, "meaning"),
        ]
        first, second = (pair for pair, _ in found)
        assert (first.inbound.state, second.inbound.state) == (State.MATURE, State.DYING)
        assert (first.standby, second.standby) == (False, True)
        for slot, wanted in ((0, 0), (1, 3), (2, 2)):
            await until(lambda: not workers._leaving)  # the worker has let go of what it should
            fresh = engines.hosts(install=False)[0].pair
            fresh.inbound.spi = 6000 + slot
            workers.install(fresh)
            assert workers._held[fresh].slot == wanted
        workers.remove(first)
        await until(lambda: not workers._leaving)
        workers.install(pairs[3])
        assert workers._held[pairs[3]].slot == 1
        workers.close()
        os.close(estate.orphans[0].queue)
        estate.orphans[0].kept[0].close()

    asyncio.run(serve())
    assert old.alive() == [False]


def test_ledger_that_can_be_shortened_is_none(tmp_path: Path) -> None:
    """Whoever shortens it later ends the daemon that looks at it; and one that refused it only when it is
    opened would be refused itself at each start."""
    control = tmp_path / "control.sock"
    says = channel.encoded(channel.Handover(SAME, 0, 1, False, (0, 0, 0), 0, 0))
    gives = (
        "socket.send_fds(other, ["
        + repr(says)
        + "], [os.memfd_create('a', os.MFD_ALLOW_SEALING), 1]) and b''"
    )
    with liar(place_of(control, 0), gives, os.getuid()) as process:
        assert claim(control, SAME, lambda orphan: "") == (None, "")
        assert process.wait(30) == -9


def test_orphan_that_says_what_cannot_be_is_ended(made: list[Former], tmp_path: Path) -> None:
    """Beside its pairs it may say what it likes; a daemon that stopped at it would never start."""
    old = former(made, tmp_path)
    old.die()
    estate, reason = old.claimed()
    assert estate is not None, reason
    estate.orphans[0].said.append(channel.Unknown(1, b"no address", None))

    async def serve() -> None:
        workers = Workers(SLOTS, Kind("python", 32, 32))
        bequest = Bequest(old.control, 30.0, SAME, ())
        loop = asyncio.get_running_loop()
        assert workers.open(loop, old.tun, [Share((), [], ())], bequest, estate) == []
        workers.close()

    asyncio.run(serve())
    assert old.alive() == [False]
    os.close(estate.orphans[0].queue)
    estate.orphans[0].kept[0].close()


def test_pair_that_not_all_have_is_told(made: list[Former], tmp_path: Path) -> None:
    """The daemon died between two of them: packets of that pair that came to the other one would be lost."""
    old, pairs = former(made, tmp_path, count=2), [engines.hosts(install=False)[0].pair for _ in range(2)]
    pairs[1].inbound.spi = 4711
    old.has(pairs[0], 0)
    old.has(pairs[1], 1, 0)
    old.die()
    estate, reason = old.claimed()
    assert estate is not None, reason
    assert [(slot, agreed) for slot, _, agreed in estate.pairs()] == [(0, True), (1, False)]
    estate.close()


LIAR = """
import os, socket, sys, time
os.setuid(int(sys.argv[3]))
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print(flush=True)
other, _ = sock.accept()
for one in eval(sys.argv[2]):
    other.sendall(one)
    time.sleep(0.005)
time.sleep(60)
"""


def liar(place: Path, says: str, user: int) -> subprocess.Popen[bytes]:
    """A process of a user where a worker might be."""
    command = [sys.executable, "-c", LIAR, str(place), says, str(user)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize(
    "says",
    ["[b'\\xff' * 100]", "[bytes((0, 0, 0, 1, 0x90))]", "[bytes((0, 0, 16, 0)), *[b'x'] * 4096]"],
    ids=["garbage", "no handover", "an octet now and then"],
)
def test_what_speaks_nonsense_is_ended(tmp_path: Path, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a worker that somebody has taken over, or of a version whose language nobody knows. The next
    daemon does not wait for it longer than it would for any other."""
    monkeypatch.setattr(inheritance, "GREETING_SECONDS", 0.5)
    control = tmp_path / "control.sock"
    with liar(place_of(control, 0), says, os.getuid()) as process:
        began = time.monotonic()
        assert claim(control, SAME, lambda orphan: "") == (None, "")
        assert time.monotonic() - began < 10  # what it says takes twenty
        assert process.wait(30) == -9


STRANGER = 12345


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may write to."""
    require(os.geteuid() == 0, "root")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        yield Path(directory)


def test_socket_of_somebody_else_is_left_alone(public: Path) -> None:
    """Else another user could have the daemon take what he likes, or end what he points it at."""
    control = public / "control.sock"
    with liar(place_of(control, 0), "b''", STRANGER) as process:
        assert claim(control, SAME, lambda orphan: "") == (None, "")
        assert process.poll() is None
        process.kill()


ASKING = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sys.exit(min(1, len(sock.recv(1000))))
"""


def test_stranger_gets_nothing(made: list[Former], public: Path) -> None:
    """The keys of all SAs are behind this socket: neither its mode nor its directory may be all that keeps
    them."""
    old = former(made, public)
    old.die()
    place = place_of(old.control, 0)
    assert place.stat().st_mode & 0o777 == 0o600
    place.chmod(0o666)
    for user, got in ((STRANGER, 0), (0, 1)):
        asking = [sys.executable, "-c", ASKING, str(place), str(user)]
        assert subprocess.run(asking, timeout=60, check=False).returncode == got


def test_language_is_part_of_the_circumstances() -> None:
    """Else a daemon of another version would misread what it gets; keys do not show when it is printed."""
    assert channel.language() == channel.language()
    pair = engines.hosts(install=False)[0].pair
    held = channel.Held(channel.add(0, pair), "mature", False)
    assert bytes(pair.inbound.encryption_key).hex() not in repr(held)
    assert repr(bytes(pair.inbound.encryption_key))[2:-1] not in repr(held)
