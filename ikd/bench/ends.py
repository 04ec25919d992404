"""Shell. The two processes of `ikctl bench offload`, a host and a simulated adapter with rings between them.

    python -m ikd.bench.ends native|python|adapter PLUG CONTROL SINK CORE

`PLUG` is the JSON of an `offload.nic.rings.Plug`, `CONTROL` a socket between the two for requests and counts,
and `SINK` memory that stands for whoever takes packets from the host's data plane. Each is pinned to a core,
and does one order after the other, JSON lines on standard input; it ends with standard input.

The host has one loop for all series: take what is in the ring, let the engine open it where there is one,
hand it on with one system call and one copy for each packet or frame, as to a TUN device. There are two of
it, in C and in Python, by the names of the engines; `ENGINE` is the one to measure. The adapter plays a tape
to it, as fast as the link lets pass and the ring takes it; nothing is dropped, as TCP would have slowed down.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ikd.bench import tape
from ikd.bench.offload_report import DISABLED, DISABLED_SEGMENTED, OFFLOADED, SOFTWARE
from offload import vnet
from offload.accounts import Accounts, NativeAccounts
from offload.channel import address
from offload.ledger import Ledger
from offload.nic.adapter import Adapter
from offload.nic.capabilities import PROFILES, Direction
from offload.nic.driver import Driver
from offload.nic.hybrid import HybridEngine
from offload.nic.lanes import Stage
from offload.nic.requests import Answer, Request
from offload.nic.rings import AdapterPort, HostPort, Plug
from offload.nic.slots import Broken
from offload.outer import Arrived
from offload.software import Frame, SoftwareEngine
from sadb import clock
from sadb.sa import SaPair
from sadb.selector import TCP

if TYPE_CHECKING:
    from offload._native import Arrival, Packet

SINK: Final = 1 << 20  # octets of the sink; it is written round and round
TAKE: Final = 64  # descriptors at a time
DEPTH: Final = (
    0.01  # seconds of the rate that the link carries while the adapter is busy with what came before
)
WARM_UP: Final = 0.1  # of the tape, before the clocks are read
MARKER: Final = Arrived(255, tape.PEER, tape.HOST, b"")  # says that nothing more comes
PORT: Final = "host"

_PLAIN: Final = bytes(vnet.HEADER)
_NO_TEXT: Final = vnet.HEADER + tape.HEADERS  # octets of a frame that are none of the application's
_MESSAGE: Final = 1 << 16

_requests: Final = msgspec.msgpack.Decoder(list[Request])
_answers: Final = msgspec.msgpack.Decoder(list[Answer])


def tell(**words: Any) -> None:
    """One line to the bench."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def gcm_us(end: str) -> float:
    """Microseconds of sealing 16 KiB with AES-128-GCM as an end does it, the best of some."""
    seal, text = ENDS[end].cipher(), bytes(16384)
    best = float("inf")
    for number in range(40):
        began = time.perf_counter()
        seal(number.to_bytes(12, "big"), text)
        best = min(best, time.perf_counter() - began)
    return round(best * 1e6, 2)


def _cipher() -> Callable[[bytes, bytes], bytes]:
    """AES-128-GCM of Python's library: nonce and text."""
    seal = AESGCM(bytes(16)).encrypt
    return lambda nonce, text: seal(nonce, text, None)


# The host ------------------------------------------------------------------------------------------------


class Sink:
    """Whoever takes frames from the host's data plane: each is written behind the one before."""

    def __init__(self, fileno: int) -> None:
        self.fileno = fileno
        self._at = os.lseek(fileno, 0, os.SEEK_SET)
        self.octets = 0
        """Of the application, so far."""

    def put(self, frame: bytes | Frame) -> None:
        """Hand a packet with a header of `offload.vnet`, or several put together, on."""
        self.wrote(1, os.write(self.fileno, frame))

    def put_packet(self, packet: bytes) -> None:
        """The same with a packet that has no such header."""
        self.wrote(1, os.writev(self.fileno, (_PLAIN, packet)))

    def wrote(self, frames: int, octets: int) -> None:
        """So many were handed on."""
        self.octets += octets - frames * _NO_TEXT
        self._at += octets
        if self._at > SINK:
            self._at = os.lseek(self.fileno, 0, os.SEEK_SET)


Batch = Callable[[], tuple[bool, bool]]  # whether something was taken, and whether it was the last


class Host:
    """The host whose processor time is measured."""

    native = False
    cipher = staticmethod(_cipher)

    def __init__(self, plug: Plug, control: socket.socket, sink: int) -> None:
        self._port, self._control, self._sink = HostPort(plug, native=self.native), control, sink
        self._bell = select.poll()
        self._bell.register(self._port.fileno(), select.POLLIN)

    def order(self, series: str, key: str) -> None:
        """Receive one tape: its warm-up, then the rest."""
        engine = self._engine(series, bytes.fromhex(key))
        sink = Sink(self._sink)
        batch = self._batch(engine, sink)
        for _ in range(2):
            began, before = sink.octets, resource.getrusage(resource.RUSAGE_SELF)
            self._receive(batch)
            used = resource.getrusage(resource.RUSAGE_SELF)
            self._control.send(msgspec.msgpack.encode(sink.octets - began))
        tell(
            octets=sink.octets - began,
            cpu=used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
            dropped=dict(+self._drops(engine)),
        )

    def _accounts(self, pair: SaPair) -> Accounts:
        """Where the state of the pair is."""
        return Accounts()

    def _drops(self, engine: SoftwareEngine | None) -> Counter[str]:
        return Counter(engine.counters if engine else {})

    def _engine(self, series: str, key: bytes) -> SoftwareEngine | None:
        """What opens packets, its pair installed, and in the adapter where that is to be."""
        driver = Driver(PROFILES[OFFLOADED.get(series, "82576")])
        engine: SoftwareEngine | None = None
        pair = tape.pair(key, host=True)
        accounts = self._accounts(pair)
        if series in OFFLOADED:
            engine = HybridEngine(os.urandom, driver, accounts=accounts)
        elif series == SOFTWARE:
            engine = SoftwareEngine(os.urandom, accounts=accounts)
        if engine is not None:
            engine.install(pair)
        if series in OFFLOADED:
            driver.place(pair, (Direction.INBOUND,), 0.0)
        self._control.send(msgspec.msgpack.encode(driver.requests))
        for answer in _answers.decode(self._control.recv(_MESSAGE)):
            driver.answered(answer, 0.0)
        if series in OFFLOADED and driver.stage(pair, Direction.INBOUND) is not Stage.HARD:
            raise Broken(f"the adapter does not take the SA: {dict(driver.counters)}")
        return engine

    def _receive(self, batch: Batch) -> None:
        """All that comes, up to the marker."""
        port, ended = self._port, False
        while not ended:
            taken, ended = batch()
            if taken:
                port.publish()
                continue
            if port.doze():
                self._bell.poll()
            port.wake()

    def _batch(self, engine: SoftwareEngine | None, sink: Sink) -> Batch:
        """What is done with the next packets of the ring."""
        take, now, deliver = self._port.received.take, clock.now, _delivery(engine, sink)

        def batch() -> tuple[bool, bool]:
            arrived = take(TAKE)
            if not arrived:
                return False, False
            ended = arrived[-1].protocol == MARKER.protocol
            deliver(arrived[:-1] if ended else arrived, now())
            return True, ended

        return batch


def _delivery(engine: SoftwareEngine | None, sink: Sink) -> Callable[[list[Arrived], float], None]:
    """What is done with packets of the ring. Without protection the adapter's frames go on as they are."""
    put, put_packet = sink.put, sink.put_packet

    def plain(arrived: list[Arrived], now: float) -> None:
        for one in arrived:
            put(one.data)

    if engine is None:
        return plain
    inbound = engine.inbound

    def opened(arrived: list[Arrived], now: float) -> None:
        for one in inbound(arrived, now).local:
            if isinstance(one, Frame):
                put(one)
            else:
                put_packet(one)

    return opened


class NativeHost(Host):
    """The same in C; what that hands up, the first packet of a flow for example, is Python's. AES-GCM is
    OpenSSL's, whose speed an environment can make that of 2008."""

    native = True

    def __init__(self, plug: Plug, control: socket.socket, sink: int) -> None:
        super().__init__(plug, control, sink)
        self._ledger = Ledger(1)

    @staticmethod
    def cipher() -> Callable[[bytes, bytes], bytes]:
        """See `_cipher`."""
        from offload._native import Aead, openssl_only

        openssl_only()
        seal = Aead(0, bytes(16)).seal
        return lambda nonce, text: seal(nonce, b"", text)

    def _accounts(self, pair: SaPair) -> Accounts:
        from offload._native import Table

        self._table = Table(self._ledger.memory, os.urandom(16))
        accounts = NativeAccounts(self._table, lambda sa: (-1, -1, True))
        accounts.slots[pair] = 0
        self._ledger.begin(0, pair)
        return accounts

    def _receive(self, batch: Batch) -> None:
        """See `Host`; the loop tells of what was taken, and sleeps, by itself."""
        assert self._port.native is not None
        ring, ended = self._port.native.ring, False
        while not ended:
            taken, ended = batch()
            if not taken:
                ring.wait()
                if ring.broken:
                    raise Broken("the adapter is gone")
        self._port.publish()

    def _drops(self, engine: SoftwareEngine | None) -> Counter[str]:
        from offload._native import REASONS

        return super()._drops(engine) + Counter(dict(zip(REASONS, self._table.drops(), strict=True)))

    def _batch(self, engine: SoftwareEngine | None, sink: Sink) -> Batch:
        native, now, table = self._port.native, clock.now, self._table
        assert native is not None
        ring, deliver = native.ring, _delivery(engine, sink)

        def take() -> tuple[int, int, int, Arrival | Packet | None]:
            if engine is None:
                return ring.hand_on(sink.fileno, TCP, TAKE)
            return table.receive(ring, sink.fileno, TAKE, False)

        def batch() -> tuple[bool, bool]:
            taken, frames, octets, up = take()
            sink.wrote(frames, octets)
            if up is None:
                return taken > 0, False
            if isinstance(up, tuple):
                assert engine is not None
                for one in engine.admitted(*up, now()).local:
                    sink.put_packet(one)
                return True, False
            arrived = native.value(up)
            if arrived.protocol == MARKER.protocol:
                return True, True
            deliver([arrived], now())
            return True, False

        return batch


# The adapter ---------------------------------------------------------------------------------------------


class Player:
    """The adapter, with the wire and its traffic."""

    cipher = staticmethod(_cipher)

    def __init__(self, plug: Plug, control: socket.socket, sink: int) -> None:
        self._port, self._control = AdapterPort(plug), control
        self._bell = select.poll()
        self._bell.register(self._port.fileno(), select.POLLIN)
        self._tape: list[tape.Batch] = []

    def order(self, do: str, **words: Any) -> None:
        """Make a tape, or play it."""
        orders: Mapping[str, Callable[..., None]] = {"tape": self.make, "play": self.play}
        orders[do](**words)

    def make(self, size: int, packets: int, key: str) -> None:
        """A new tape, sealed before any clock is looked at."""
        self._tape.clear()
        self._tape = tape.tape(size, packets, bytes.fromhex(key), os.urandom)
        gc.collect()
        gc.freeze()
        tell(batches=len(self._tape), packets=sum(len(one.plain) for one in self._tape))

    def play(self, series: str, seconds: float, mbit: float) -> None:
        """Play the tape for so long at most; told when the clocks are to be read and it is to go on."""
        receive = self._receiver(series)
        sealed = series not in (DISABLED, DISABLED_SEGMENTED)
        warm = max(1, round(WARM_UP * len(self._tape)))
        self._play(self._tape[:warm], receive, sealed, float("inf"), mbit)
        tell(warm=True)
        sys.stdin.readline()
        tell(**self._play(self._tape[warm:], receive, sealed, seconds, mbit))

    def _receiver(self, series: str) -> Callable[[tape.Batch], Sequence[Arrived]]:
        """What comes of a batch on the wire, once the host's requests are answered."""
        adapter = Adapter(PROFILES[OFFLOADED.get(series, "82576")], os.urandom, address)
        requests = _requests.decode(self._control.recv(_MESSAGE))
        answers = [adapter.request(PORT, one) for one in requests]
        self._control.send(msgspec.msgpack.encode([one for one in answers if one is not None]))

        def plain(batch: tape.Batch) -> list[Arrived]:
            return [Arrived(TCP, tape.PEER, tape.HOST, _PLAIN + one) for one in batch.plain]

        def plain_segmented(batch: tape.Batch) -> list[Arrived]:
            return [Arrived(TCP, tape.PEER, tape.HOST, one) for one in vnet.frames(batch.plain)]

        def protected(batch: tape.Batch) -> list[Arrived]:
            return adapter.receive(PORT, batch.sealed)

        return {DISABLED: plain, DISABLED_SEGMENTED: plain_segmented}.get(series, protected)

    def _play(
        self,
        batches: Sequence[tape.Batch],
        receive: Callable[[tape.Batch], Sequence[Arrived]],
        sealed: bool,
        seconds: float,
        mbit: float,
    ) -> Mapping[str, Any]:
        """Batches through the link, until the host has handed on the last of them."""
        rate, octets, packets = mbit * 1e6 / 8, 0, 0
        began = due = time.monotonic()  # due: when the link has carried the batch
        for batch in batches:
            now = time.monotonic()
            if now - began > seconds:
                break
            due = max(due, now - DEPTH) + (batch.sealed_wire if sealed else batch.plain_wire) / rate
            if due > now:
                time.sleep(due - now)
            for one in receive(batch):
                self._put(one)
            self._port.publish()
            octets += batch.octets
            packets += len(batch.plain)
        self._put(MARKER)
        self._port.publish()
        delivered = msgspec.msgpack.decode(self._control.recv(_MESSAGE), type=int)
        return {
            "octets": octets,
            "packets": packets,
            "delivered": delivered,
            "seconds": time.monotonic() - began,
        }

    def _put(self, one: Arrived) -> None:
        port = self._port
        while not port.received.put(one):
            if port.doze():
                self._bell.poll()
            port.wake()


# Processes -----------------------------------------------------------------------------------------------

ENDS: Final[Mapping[str, type[Host] | type[Player]]] = {
    "native": NativeHost,
    "python": Host,
    "adapter": Player,
}
ENGINE: Final = "native" if find_spec("offload._native") else "python"


def main(end: str, plug: str, control: str, sink: str, core: str) -> int:
    """Do orders until there are no more."""
    os.sched_setaffinity(0, (int(core),))
    with socket.socket(fileno=int(control)) as sock:
        made = ENDS[end](msgspec.json.decode(plug, type=Plug), sock, int(sink))
        gc.collect()
        gc.freeze()
        tell(gcm_us=gcm_us(end))
        for line in sys.stdin:
            try:
                made.order(**json.loads(line))
            except (Broken, OSError, msgspec.DecodeError) as error:
                tell(error=f"{end}: {error}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
