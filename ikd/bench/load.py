"""Shell. The initiator of `ikctl bench ike`: a process of its own that makes many IKE SAs with a responder.

It reads an order a line, JSON, from standard input and answers each with what it measured. Every
establishment is an endpoint of its own, so that each has a fresh SPI and its own IKE SA. None says
INITIAL_CONTACT, which would make the responder look through what it has, and delete it; in AuthIP each is for
traffic of its own, because a pair for the same traffic replaces the other. Deleting comes after the measured
part.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path as File
from statistics import median
from typing import Any, Final

from ikd.association import Association
from ikd.auth import Authenticate
from ikd.auth.credentials import Credentials
from ikd.bench.machine import cpu_seconds
from ikd.endpoint import Endpoint
from ikd.events import ChildEstablished, IkeClosed, IkeEstablished, NegotiationFailed
from ikd.loading import Configuration
from ikd.loading import load as load_configuration
from ikd.outputs import AllocateSpi, Ask, Install, Output, Transmit, Ways
from policy.rules import Rule
from sadb.address import IKE_PORT, NATT_PORT, Path, SocketAddress
from sadb.selector import TrafficSelector

MARKER: Final = bytes(4)
SWEEP: Final = 0.1  # seconds between looks at deadlines; only a lost datagram has one
SETTLE: Final = 0.05  # the responder may still write its log when the last answer is here
FAREWELL: Final = 3.0


@dataclass(frozen=True, slots=True)
class Order:
    """One batch: `count` establishments, `parallel` at a time, for the rule named after the responder."""

    directory: str
    rule: str
    local: str
    peer: str
    pid: int  # the responder's
    count: int
    parallel: int


@dataclass(slots=True)
class Measured:
    """What a batch gave. Times are in seconds; those of the processor cover all establishments, `complete`
    is the median of how long each took."""

    established: int = 0
    failed: int = 0
    seconds: float = 0.0
    complete: float = 0.0
    responder_cpu: float = 0.0
    initiator_cpu: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)


class Modest(Endpoint):
    """An endpoint that never says it has no other IKE SA with its peer."""

    def first_contact(self, association: Association) -> bool:
        """Always no."""
        return False


class Slot:
    """One establishment. It stands in for the daemon: answers questions, sends, and watches for the end."""

    __slots__ = ("_child", "_ike", "began", "endpoint", "failure", "rule", "seconds")

    def __init__(self, configuration: Configuration, credentials: Credentials, rule: Rule) -> None:
        self.endpoint = Modest(configuration.settings.ike, configuration.policy, credentials, os.urandom)
        self.rule = rule
        self.began = self.seconds = 0.0
        self.failure = ""
        self._ike = self._child = False

    def begin(self, path: Path, now: float) -> tuple[bytes, list[Output]]:
        """Start; the SPI by which answers find back."""
        self.began = now
        outputs = self.endpoint.initiate(self.rule, path, now)
        (association,) = self.endpoint.associations.values()
        return association.own_spi, outputs

    def another(self, rule: Rule, path: Path, now: float) -> list[Output]:
        """One more Child SA on the IKE SA that is up."""
        self._child = False
        return self.endpoint.initiate(rule, path, now)

    @property
    def done(self) -> bool:
        """Whether it is over: both SAs are up and nothing is awaited any more, or it has failed. In AuthIP
        the pair is up before the peer has synchronised, and not sent on."""
        return bool(self.failure) or (self._ike and self._child and self.endpoint.idle)

    def note(self, output: Output) -> None:
        """An event that may be the end."""
        if isinstance(output, ChildEstablished):
            self._child = True
        elif isinstance(output, IkeEstablished):
            self._ike = True
        elif isinstance(output, NegotiationFailed | IkeClosed) and not self.seconds:
            self.failure = self.failure or output.reason


class Load:
    """The sockets, and the slots that wait for something."""

    def __init__(self) -> None:
        self._sockets = {port: _socket(port) for port in (IKE_PORT, NATT_PORT)}
        self._poll = select.poll()
        for one in self._sockets.values():
            self._poll.register(one, select.POLLIN)
        self._slots: dict[bytes, Slot] = {}
        self._swept = 0.0
        self._configurations: dict[str, tuple[Configuration, Credentials]] = {}

    def run(self, order: Order) -> Measured:
        """One batch: establish, measured; then delete, not measured."""
        configuration, credentials = self._configuration(order.directory)
        rule = configuration.policy.rule(order.rule)
        if rule is None:
            raise ValueError(f"no rule {order.rule}")
        rules = (part(rule, n) if "authip" in rule.keying else rule for n in range(order.count))
        slots = deque(Slot(configuration, credentials, one) for one in rules)
        finished: list[Slot] = []
        result = Measured()
        gc.collect()
        gc.disable()  # garbage of the initiator is not what is measured
        began = time.monotonic(), time.process_time(), cpu_seconds(order.pid)
        self._establish(slots, finished, order)
        result.seconds = time.monotonic() - began[0]
        result.initiator_cpu = time.process_time() - began[1]
        time.sleep(SETTLE)
        result.responder_cpu = cpu_seconds(order.pid) - began[2]
        gc.enable()
        reasons = Counter(one.failure for one in finished if one.failure)
        result.failed, result.reasons = reasons.total(), dict(reasons)
        result.established = len(finished) - result.failed
        established = [one for one in finished if not one.failure]
        result.complete = median([one.seconds for one in established] or [0.0])
        left = self._delete(established, order)
        self._slots.clear()
        if left:  # one that replaces what the initiator has would have worked more than was measured
            raise RuntimeError(f"{left} of {order.count} IKE SAs were gone before they were deleted")
        return result

    def _establish(self, slots: deque[Slot], finished: list[Slot], order: Order) -> None:
        """Keep `parallel` negotiations under way until all have come to an end."""
        path = Path(
            SocketAddress(ip_address(order.local), IKE_PORT), SocketAddress(ip_address(order.peer), IKE_PORT)
        )
        running: dict[Slot, None] = {}
        while slots or running:
            while slots and len(running) < order.parallel:
                slot = slots.popleft()
                running[slot] = None
                spi, outputs = slot.begin(path, time.monotonic())
                self._slots[spi] = slot
                self._perform(slot, outputs)
            for slot in self._wait(path, running):
                if slot.done and slot in running:
                    slot.seconds = time.monotonic() - slot.began
                    del running[slot]
                    finished.append(slot)

    def _delete(self, slots: list[Slot], order: Order) -> int:
        """Delete the IKE SAs at the responder, a few at a time; how many it did not confirm."""
        path = Path(
            SocketAddress(ip_address(order.local), IKE_PORT), SocketAddress(ip_address(order.peer), IKE_PORT)
        )
        waiting = deque(slots)
        running: dict[Slot, None] = {}
        deadline = time.monotonic() + FAREWELL
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < order.parallel:
                slot = waiting.popleft()
                running[slot] = None
                self._perform(slot, slot.endpoint.shutdown(time.monotonic()))
                deadline = time.monotonic() + FAREWELL
            for slot in self._wait(path, running):
                if slot.endpoint.idle:
                    running.pop(slot, None)
        return len(waiting) + len(running)

    def _wait(self, path: Path, running: Iterable[Slot]) -> list[Slot]:
        """Take what has come, and see to deadlines now and then; the slots to which something happened."""
        touched: list[Slot] = []
        for fileno, _ in self._poll.poll(SWEEP * 1000):
            port = next(port for port, one in self._sockets.items() if one.fileno() == fileno)
            self._read(port, path, touched)
        now = time.monotonic()
        if now - self._swept >= SWEEP:
            self._swept = now
            for slot in list(running):
                due = slot.endpoint.deadline()
                if due is not None and due <= now:
                    self._perform(slot, slot.endpoint.tick(now))
                    touched.append(slot)
        return touched

    def _read(self, port: int, path: Path, touched: list[Slot]) -> None:
        """All datagrams of a socket."""
        arrived = Path(SocketAddress(path.local.address, port), SocketAddress(path.peer.address, port))
        receive = self._sockets[port].recv
        while True:
            try:
                data = receive(65535)
            except BlockingIOError:
                return
            if port == NATT_PORT:
                if data[:4] != MARKER:  # a keepalive
                    continue
                data = data[4:]
            slot = self._slots.get(data[:8])
            if slot is not None:
                self._perform(slot, slot.endpoint.receive(data, arrived, time.monotonic()))
                touched.append(slot)

    def _perform(self, slot: Slot, outputs: Iterable[Output]) -> None:
        """Do what an endpoint wants done."""
        pending = deque(outputs)
        while pending:
            output = pending.popleft()
            if isinstance(output, Transmit):
                port = output.path.local.port
                data = MARKER + output.data if port == NATT_PORT else output.data
                peer = output.path.peer
                self._sockets[port].sendto(data, (str(peer.address), peer.port))
            elif isinstance(output, Ask):
                value = _answer(output.question)
                pending.extend(slot.endpoint.answer(output.ticket, value, time.monotonic()))
            else:
                slot.note(output)

    def _configuration(self, directory: str) -> tuple[Configuration, Credentials]:
        found = self._configurations.get(directory)
        if found is None:
            loaded = load_configuration(File(directory))
            found = self._configurations[directory] = (loaded, Credentials(loaded.material, time.time))
        return found


def part(rule: Rule, number: int) -> Rule:
    """The rule for one address of its local traffic."""
    selector = rule.selector
    low = int(selector.local[0].low) + number
    return replace(rule, selector=replace(selector, local=(TrafficSelector.of(IPv4Address(low)),)))


def _answer(question: Any) -> Any:
    """An initiator that sends no packets needs no SADB; an exception is an answer, too."""
    match question:
        case AllocateSpi():
            return 0x100 + int.from_bytes(os.urandom(4), "big") % 0xFFFFFE00
        case Authenticate():
            try:
                return question.side.step(question.token)
            except Exception as error:
                return error
        case Install():
            return None
        case Ways():  # it stays where it is
            return {}
    return TypeError(f"nobody here answers {type(question).__name__}")


def _socket(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    made.bind(("0.0.0.0", port))
    return made


def main() -> int:
    """Serve orders until standard input ends."""
    load = Load()
    for line in sys.stdin:
        try:
            answer = asdict(load.run(Order(**json.loads(line))))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
