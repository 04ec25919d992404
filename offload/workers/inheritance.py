"""Shell. What a daemon that is gone has left: its workers, who go on with everything they have.

`claim` finds them by their sockets beside the control socket and takes everything over, or, when the new
daemon is to be another than the old one was, ends them first. All of them or none: each may send on any SA,
so whether a number is used up nobody could say without the others. `offload.workers.line` is the other end.

They are believed no more than workers usually are: what they say has to be of the language, what they give
has to be what it is given for, and their process is the one the kernel names, not one they name."""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from offload import channel
from offload.channel import Answer, Decoder, Garbled, Handover, Held
from offload.ledger import ACCOUNT, check_sealed

GREETING_SECONDS: Final = 3.0  # for an orphan to say what it has
INVENTORY_SECONDS: Final = 20.0  # for all of them to name their pairs
FAREWELL_SECONDS: Final = 2.0  # for them to end
LONGEST_ANSWER: Final = 1 << 20  # octets; a pair may have many selectors
MOST_DESCRIPTORS: Final = 4096
MOST_SAID: Final = 10_000  # messages of a worker besides its pairs, before it is taken
_CREDENTIALS: Final = struct.Struct("=iII")  # SO_PEERCRED: process, user, group


def place_of(control: Path, number: int) -> Path:
    """The file of a worker's socket, beside the control socket."""
    return control.with_suffix(f".worker{number}")


@dataclass(slots=True, eq=False)
class Orphan:
    """A worker that has outlived its daemon: its process, the channel to it and what it gave. `said` is what
    it said besides its pairs."""

    pid: int
    pidfd: int
    channel: socket.socket
    decoder: Decoder
    handover: Handover
    ledger: int
    queue: int
    raw: list[socket.socket]
    natt: list[socket.socket]
    hints: list[socket.socket]
    kept: list[socket.socket]
    slots: int  # of the ledger
    rest: list[object]  # what came with the handover
    pairs: dict[int, Held] = field(default_factory=dict)  # by slot
    said: list[object] = field(default_factory=list)

    def take(self, messages: Iterable[object]) -> None:
        """Pairs, out of what it says; raises `Garbled` for one that cannot be counted, and for too much of
        anything else."""
        for message in messages:
            if isinstance(message, Held):
                if not 0 <= message.pair.slot < self.slots:
                    raise Garbled("a pair without an account")
                self.pairs[message.pair.slot] = message
            elif len(self.said) < MOST_SAID:
                self.said.append(message)
            else:
                raise Garbled("it does not stop talking")

    def close(self) -> None:
        """Let go of it; unless it was told that it is taken, it waits on."""
        for one in (self.channel, *self.raw, *self.natt, *self.hints, *self.kept):
            one.close()
        _close((self.pidfd, self.ledger, self.queue))


@dataclass(frozen=True, slots=True)
class Estate:
    """All workers of a former daemon, in their order."""

    orphans: Sequence[Orphan]

    def pairs(self) -> Iterator[tuple[int, Held, bool]]:
        """Slots and what is there according to the first worker that has something, and whether all agree."""
        every = [orphan.pairs for orphan in self.orphans]
        for slot in sorted(set().union(*every)):
            found = [pairs.get(slot) for pairs in every]
            some = next(one for one in found if one is not None)
            yield slot, some, all(one == some for one in found)

    def close(self) -> None:
        """Let go of all of them."""
        for one in self.orphans:
            one.close()


def claim(
    control: Path, wanted: Mapping[str, str], unfit: Callable[[Orphan], str]
) -> tuple[Estate | None, str]:
    """What there is beside a control socket for a daemon of these circumstances, and why not when it has been
    ended instead; `unfit` says what is wrong with what a worker gave. Whoever calls owns the control socket,
    so that nobody else does this."""
    places = sorted(control.parent.glob(place_of(control, 0).name[:-1] + "*"))
    orphans = [one for one in map(_greeted, places) if one is not None]
    if not orphans:
        return None, ""
    orphans.sort(key=lambda one: one.handover.number)
    reasons = (_differ(orphans, wanted), *map(unfit, orphans))
    reason = next(filter(None, reasons), "") or _listed(orphans)
    if not reason:
        return Estate(orphans), ""
    _end(orphans)
    for one in orphans:
        one.close()
    return None, reason


def _greeted(place: Path) -> Orphan | None:
    """The worker behind a socket's file, which is removed when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with ExitStack() as undo:
        undo.callback(sock.close)
        sock.settimeout(GREETING_SECONDS)
        ours = (0, os.geteuid())
        try:
            found = place.lstat()
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in ours:
                return None
            sock.connect(str(place))
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, user, _ = _CREDENTIALS.unpack(credentials)
            if user not in ours:
                return None
            pidfd = os.pidfd_open(pid)
        except (ConnectionRefusedError, ProcessLookupError):
            place.unlink(missing_ok=True)
            return None
        except OSError:
            return None
        filenos: list[int] = []
        undo.callback(_close, filenos)
        undo.callback(os.close, pidfd)
        decoder = Decoder(Answer, LONGEST_ANSWER)
        try:
            handover, rest = _handover(sock, decoder, filenos)
            orphan = _made(pid, pidfd, sock, decoder, handover, rest, filenos)
        except (OSError, Garbled):  # it hangs, or is no worker of ours
            kill(pidfd)
            ended(pidfd, FAREWELL_SECONDS)
            return None
        undo.pop_all()
        return orphan


def _handover(sock: socket.socket, decoder: Decoder, filenos: list[int]) -> tuple[Handover, list[object]]:
    """The first message, with its descriptors put into `filenos`, and others that came with it; raises
    `OSError` or `Garbled`."""
    space = socket.CMSG_SPACE(253 * array.array("i").itemsize)
    deadline = time.monotonic() + GREETING_SECONDS  # for all of it, or an octet now and then would do
    while True:
        sock.settimeout(_left(deadline))
        data, ancillary, _, _ = sock.recvmsg(1 << 16, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                got = array.array("i")
                got.frombytes(value[: len(value) - len(value) % got.itemsize])
                filenos += got
        if not data or len(filenos) > MOST_DESCRIPTORS:
            raise ConnectionError("it hung up")
        messages = list(decoder.feed(data))
        if messages:
            first = messages[0]
            counts = (*first.sockets, first.kept) if isinstance(first, Handover) else (-1,)
            if not isinstance(first, Handover) or min(counts) < 0 or len(filenos) != 2 + sum(counts):
                raise Garbled("no handover")
            return first, messages[1:]


def _left(deadline: float) -> float:
    """Seconds until then; raises `TimeoutError` when there are none, however much may be there to read."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("it is too slow")
    return seconds


def _made(
    pid: int,
    pidfd: int,
    sock: socket.socket,
    decoder: Decoder,
    handover: Handover,
    rest: list[object],
    filenos: list[int],
) -> Orphan:
    """A worker with what it gave; raises `OSError` when something that should be a socket or a ledger is
    none, and takes no descriptor then."""
    check_sealed(filenos[0])
    for one in filenos[2:]:
        socket.socket(fileno=one).detach()
    made = iter([socket.socket(fileno=one) for one in filenos[2:]])
    raw, natt, hints, kept = (list(islice(made, count)) for count in (*handover.sockets, handover.kept))
    ledger, queue = filenos[:2]
    slots = os.fstat(ledger).st_size // ACCOUNT
    return Orphan(pid, pidfd, sock, decoder, handover, ledger, queue, raw, natt, hints, kept, slots, rest)


def _differ(orphans: Sequence[Orphan], wanted: Mapping[str, str]) -> str:
    """Why these workers are not those that a daemon wants; empty when they are."""
    first = orphans[0]
    if [one.handover.number for one in orphans] != list(range(first.handover.count)):
        return f"{len(orphans)} of {first.handover.count} workers are left"
    for one in orphans:
        theirs = one.handover.circumstances
        for name in {**wanted, **theirs}:
            if theirs.get(name) != wanted.get(name):
                return f"{name} was {theirs.get(name, 'not set')} and is {wanted.get(name, 'not set')}"
        if not os.path.sameopenfile(one.ledger, first.ledger):
            return "workers count in different places"
    return ""


def _listed(orphans: Sequence[Orphan]) -> str:
    """Take the inventories; why that does not work."""
    deadline = time.monotonic() + INVENTORY_SECONDS
    try:
        for one in orphans:
            one.take(one.rest)
            while len(one.pairs) < one.handover.pairs:
                one.channel.settimeout(_left(deadline))
                data = one.channel.recv(1 << 18)
                if not data:
                    return "a worker ended"
                one.take(one.decoder.feed(data))
            one.channel.setblocking(False)
    except TimeoutError:
        return "a worker does not say what it has"
    except (OSError, Garbled) as error:
        return f"a worker does not say what it has: {error}"
    return ""


def _end(orphans: Sequence[Orphan]) -> None:
    """End workers that are not wanted, and wait until they have: they hold addresses and the device."""
    for one in orphans:
        with suppress(OSError):
            one.channel.settimeout(FAREWELL_SECONDS)
            one.channel.sendall(channel.encoded(channel.End()))
    deadline = time.monotonic() + FAREWELL_SECONDS
    for one in orphans:
        if not ended(one.pidfd, deadline - time.monotonic()):
            kill(one.pidfd)
            ended(one.pidfd, FAREWELL_SECONDS)


def _close(filenos: Iterable[int]) -> None:
    for one in filenos:
        os.close(one)


def kill(pidfd: int) -> None:
    """End a process at once, if it is there and we may."""
    with suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def ended(pidfd: int, seconds: float) -> bool:
    """Whether a process ends within some seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))
