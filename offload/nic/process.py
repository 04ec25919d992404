"""Shell. The simulated adapter: a process of its own that owns the wire of its ports.

    python -m offload.nic.process ORDER      started by `offload.switch.adapters`; inherits descriptors

Each port is the host's or a virtual machine's: rings for its packets, a socket for its requests, and the
sockets through which it reaches the network, opened by whoever is behind the port, in that one's network.
`offload.nic.adapter` does the work. Whoever manages the adapter attaches and detaches ports, sets limits, and
may have it fail. It has no rights and no keys but those in its table, and ends with its manager."""

from __future__ import annotations

import os
import select
import socket
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from offload import rights
from offload.channel import ALIVE_SECONDS, Decoder, Garbled, address, framed
from offload.host.natt import NattSockets
from offload.host.raw import RawSockets
from offload.meter import Bucket
from offload.nic import requests
from offload.nic.adapter import Adapter
from offload.nic.capabilities import PROFILES
from offload.nic.cipher import maker
from offload.nic.descriptors import Completion
from offload.nic.management import (
    LONGEST,
    Attach,
    Command,
    Detach,
    Fault,
    Gone,
    News,
    Order,
    Quota,
    Reset,
    SetLink,
    Status,
    command_of,
    encode,
)
from offload.nic.rings import AdapterPort, Plug
from offload.nic.slots import Broken
from offload.outer import Arrived, Outgoing

TURNS: Final = 32  # descriptors of one port before others have a turn
READ: Final = 128  # packets of one source, likewise: about as many, for they come in trains
TRAINS: Final = 4  # that are read at once
MOUTHFUL: Final = 4096  # octets of requests, likewise
MOST_DONE: Final = 512  # completions that a port does not take: then nothing more is sent for it
REPORT_SECONDS: Final = 0.25
MOST_WAITING: Final = 1 << 20  # octets of answers that a port does not take: then it is detached


class Port:
    """One port of the adapter, with all that belongs to it."""

    def __init__(self, name: str, plug: Plug, control: int, raw: Sequence[int], natt: Sequence[int]) -> None:
        self.name = name
        self.rings = AdapterPort(plug)
        self.control = socket.socket(fileno=control)
        self.control.setblocking(False)
        self.decoder = Decoder(requests.Request, LONGEST)
        self.raw = RawSockets(_sockets(raw, socket.SOCK_RAW))
        self.natt = NattSockets(_sockets(natt, socket.SOCK_DGRAM))
        self.waiting = bytearray()
        self.arrived: deque[Arrived] = deque()  # found no place
        self.done: deque[Completion] = deque()
        self.paused = False
        self.sources = [(one, True) for one in self.natt.filenos()]
        self.sources += [(one, False) for one, _ in self.raw.receivers()]

    def send(self, packets: Sequence[Outgoing]) -> None:
        """To the network."""
        self.natt.write_batch([one for one in packets if one.path is not None])
        self.raw.write_batch(one for one in packets if one.path is None)

    def read(self, fileno: int, udp: bool) -> list[Arrived]:
        """From the network: not too many packets, of which a train has up to 64."""
        source, found, packets = self.natt if udp else self.raw, list[Arrived](), 0
        while packets < READ and (some := source.read_batch(fileno, TRAINS)):
            found += some
            packets += sum(-(-len(one.data) // (one.segment or len(one.data) or 1)) for one in some)
        return found

    def answer(self, message: requests.Answer) -> None:
        """Tell who is behind the port; what is not taken now waits."""
        self.waiting += framed(message)
        self.hand_over()
        if len(self.waiting) > MOST_WAITING:
            raise Broken("answers are not taken")

    def hand_over(self) -> None:
        """What waits goes into the rings, as far as there is place, and answers behind what arrived: who
        hears that an SA is deleted, and finds no packet with a mark of its handle, forgets that."""
        while self.done and self.rings.completed.put(self.done[0]):
            self.done.popleft()
        while self.arrived and self.rings.received.put(self.arrived[0]):
            self.arrived.popleft()
        if self.waiting and not self.arrived:
            self.rings.publish()
            with suppress(BlockingIOError):
                while self.waiting:
                    del self.waiting[: self.control.send(self.waiting)]

    def close(self) -> None:
        """Let everything go."""
        self.rings.close()
        self.control.close()
        self.raw.close()
        self.natt.close()


def _sockets(filenos: Sequence[int], kind: socket.SocketKind) -> list[socket.socket]:
    """A guest's sockets, which may be anything: raises `OSError` when they are not of this kind and of IP."""
    made = [socket.socket(fileno=one) for one in filenos]
    for one in made:
        if one.type != kind or one.family not in (socket.AF_INET, socket.AF_INET6):
            raise OSError("not a socket of the network")
    return made


def _shut(fileno: int) -> bool:
    """Whether somebody who has the same socket has shut it for reading (shutdown(2)): then it is readable for
    ever, and nothing comes."""
    poll = select.poll()
    poll.register(fileno, select.POLLRDHUP)
    return bool(poll.poll(0))


class Nic:
    """The adapter, from inherited descriptors to the end of its manager."""

    def __init__(self, order: Order) -> None:
        self.manager = socket.socket(fileno=order.manager)
        self.manager.setblocking(False)
        self.adapter = Adapter(PROFILES[order.profile], os.urandom, address, maker())
        self.ports: dict[str, Port] = {}
        self.poll = select.epoll()
        self.work: dict[int, Callable[[], object]] = {}
        self.late: deque[tuple[float, Port, requests.Request]] = deque()  # of the fault `slow_add`
        self.dropped: Counter[str] = Counter()  # of ports that are gone
        self.complaints = Bucket(1.0, 5.0)
        self.report_at = 0.0
        self.reported: tuple[Status | None, float] = None, 0.0
        self._watch(self.manager.fileno(), self._commands)

    def run(self) -> None:
        """Until the manager is gone."""
        while True:
            self.turn()

    def turn(self, seconds: float = REPORT_SECONDS) -> None:
        """Sleep until there is something to do, at most so long, and do it."""
        now = time.monotonic()
        self._report(now)
        dozing = self._doze()
        wait = min([seconds, self.report_at - now, *(when - now for when, _, _ in self.late)])
        ready = self.poll.poll(max(0.0, wait) if dozing else 0.0)
        for port in list(self.ports.values()):
            self._guarded(port, port.rings.wake)
        for fileno, _ in ready:
            if work := self.work.get(fileno):
                work()
        for port in list(self.ports.values()):
            self._guarded(port, lambda: self._transmit(port))  # noqa: B023 - called at once
        while self.late and self.late[0][0] <= time.monotonic():
            _, port, message = self.late.popleft()
            self._guarded(port, lambda: self._request(port, message))  # noqa: B023 - called at once

    def _doze(self) -> bool:
        """Whether there is nothing to do for any port."""
        idle = True
        for port in list(self.ports.values()):
            self._guarded(port, port.hand_over)
            port.rings.transmit.waits = len(port.done) < MOST_DONE
            if port.paused and not port.arrived:
                self._guarded(port, lambda: self._pause(port, False))  # noqa: B023 - called at once
            idle &= self._guarded(port, port.rings.doze) is not False
        return idle

    def _pause(self, port: Port, paused: bool) -> None:
        """While the receive ring is full packets wait in the sockets, where a full queue is counted. Errors
        wait, too: epoll tells of them and of a shut socket also where nothing is asked for."""
        port.paused = paused
        for fileno, _ in port.sources:
            if paused:
                self.poll.unregister(fileno)
            else:
                self.poll.register(fileno, select.EPOLLIN)

    def _watch(self, fileno: int, work: Callable[[], object]) -> None:
        self.work[fileno] = work
        self.poll.register(fileno, select.EPOLLIN)

    def _guarded(self, port: Port, work: Callable[[], object]) -> object:
        """Work for one port: what that side breaks, perhaps a bug of ours, costs nobody else anything."""
        if self.ports.get(port.name) is not port:
            return None
        try:
            return work()
        except Exception as error:
            if not isinstance(error, Broken | Garbled | OSError) and self.complaints.take(time.monotonic()):
                traceback.print_exception(error)
            self._detach(port.name)
            self._tell(Gone(port.name))
            return None

    # Packets ---------------------------------------------------------------------------------------------

    def _transmit(self, port: Port) -> None:
        found = port.rings.transmit.take(TURNS) if len(port.done) < MOST_DONE else []
        if found:
            wire, done = self.adapter.transmit(port.name, found)
            port.send(wire)
            port.done += done

    def _receive(self, port: Port, fileno: int, udp: bool) -> None:
        if port.arrived:
            if not port.paused:  # by another source of this turn
                self._pause(port, True)
            return
        found = port.read(fileno, udp)
        if not found and _shut(fileno):
            raise Broken("a socket that will never be anything but readable")
        port.arrived += self.adapter.receive(port.name, found)
        for report in port.raw.told():
            port.answer(requests.TooBig(report.destination.packed, report.mtu, report.spi))

    def _requests(self, port: Port) -> None:
        try:
            data = port.control.recv(MOUTHFUL)
        except BlockingIOError:
            return
        if not data:
            raise Broken("the other side is gone")
        for message in port.decoder.feed(data):
            assert isinstance(message, requests.Request)
            if isinstance(message, requests.AddSa) and self.adapter.faults.slow_add:
                self.late.append((time.monotonic() + self.adapter.faults.slow_add, port, message))
            else:
                self._request(port, message)

    def _request(self, port: Port, message: requests.Request) -> None:
        answer = self.adapter.request(port.name, message)
        if answer is not None:
            port.answer(answer)

    # The manager -----------------------------------------------------------------------------------------

    def _commands(self) -> None:
        while True:
            data, filenos = b"", list[int]()
            try:
                data, filenos, _, _ = socket.recv_fds(self.manager, LONGEST, 64)
            except BlockingIOError:
                return
            except OSError:
                pass
            if not data:
                raise SystemExit(0)
            self._command(command_of(data), filenos)

    def _command(self, command: Command, filenos: list[int]) -> None:
        match command:
            case Attach():
                self._attach(command, filenos)
            case Detach(name):
                self._detach(name)
            case Quota(name):
                self.adapter.quotas[name] = command
            case SetLink(up):
                self._link(up)
            case Reset():
                self._link(False)
                self._link(True)
            case Fault(name, value):
                self.adapter.faults.set(name, value)

    def _attach(self, command: Attach, filenos: list[int]) -> None:
        self._detach(command.port)
        try:
            if len(filenos) != 4 + command.raw + command.natt:
                raise Broken("more than this process may have open")
            memory, bell, other_bell, control, *sockets = filenos
            plug = Plug(memory, bell, other_bell, command.slots, command.room)
            port = Port(command.port, plug, control, sockets[: command.raw], sockets[command.raw :])
        except (Broken, OSError):
            for one in filenos:
                with suppress(OSError):
                    os.close(one)
            self._tell(Gone(command.port))
            return
        self.ports[port.name] = port
        self._guarded(port, lambda: self._serve(port))

    def _serve(self, port: Port) -> None:
        self._watch(port.rings.fileno(), lambda: None)
        self._watch(port.control.fileno(), lambda: self._guarded(port, lambda: self._requests(port)))
        for fileno, udp in port.sources:
            self._watch_source(port, fileno, udp)
        if not self.adapter.up:
            port.answer(requests.Link(False))

    def _watch_source(self, port: Port, fileno: int, udp: bool) -> None:
        self._watch(fileno, lambda: self._guarded(port, lambda: self._receive(port, fileno, udp)))

    def _detach(self, name: str) -> None:
        port = self.ports.pop(name, None)
        self.adapter.detach(name)
        if port is None:
            return
        for fileno in (port.rings.fileno(), port.control.fileno(), *(one for one, _ in port.sources)):
            if self.work.pop(fileno, None) is not None:
                with suppress(FileNotFoundError):  # its port is paused
                    self.poll.unregister(fileno)
        self.dropped.update(_counted(port))
        port.close()

    def _link(self, up: bool) -> None:
        if up == self.adapter.up:
            return
        self.adapter.up = up
        if not up:
            self.adapter.reset()
        for port in list(self.ports.values()):
            self._guarded(port, lambda: port.answer(requests.Link(up)))  # noqa: B023 - called at once

    def _tell(self, news: News) -> None:
        with suppress(OSError):  # it is busy, and hears the next; or gone, which `_commands` finds
            self.manager.send(encode(news))

    def _report(self, now: float) -> None:
        if now < self.report_at:
            return
        self.report_at = now + REPORT_SECONDS
        dropped = Counter(self.dropped)
        for port in self.ports.values():
            dropped.update(_counted(port))
        used = {name: self.adapter.used(name) for name in self.ports}
        counters = dict(self.adapter.counters)
        table = self.adapter.table
        news = Status(counters, dict(+dropped), used, table.in_use, table.addresses, self.adapter.up)
        found, alive_at = self.reported
        if news != found or now >= alive_at:
            self.reported = news, now + ALIVE_SECONDS
            self._tell(news)


def _counted(port: Port) -> Counter[str]:
    """What came to nothing at a port's sockets."""
    found = Counter({f"raw: {reason}": number for reason, number in port.raw.counters.items()})
    found.update(port.natt.counters)
    return found


def main(arguments: Sequence[str]) -> None:
    """Be the adapter that is ordered."""
    rights.ignore_signals()
    nic = Nic(msgspec.json.decode(arguments[0], type=Order))
    rights.give_up()
    nic.run()


if __name__ == "__main__":
    main(sys.argv[1:])
