"""The hot loop of the software engine, compiled from `offload/native/`; see `native.h` there.

Slots are accounts of the ledger. Nothing here is safe to call from two threads at once; `carry`
releases the interpreter's lock.
"""

from mmap import mmap

REASONS: tuple[str, ...]
ACCOUNT: int
CIPHERS: str

# spi, packet: decrypted and not counted, for `SoftwareEngine.admitted`
Packet = tuple[int, bytes]
# a packet received as it was in the ring, slot and octets, for `offload.nic.reader.NativeReader.value`
Arrival = bytes
# data, source address and port, destination address, traffic class, IPv4 header, whether it came in UDP
Datagram = tuple[bytes, bytes, int, bytes, int, bytes, bool]

class Aead:
    """AES-GCM (0) or ChaCha20-Poly1305 (1) with one key, which has no salt; check values of 16 octets. Raises
    `ValueError` for what is none."""

    def __init__(self, cipher: int, key: bytes) -> None: ...
    def seal(self, nonce: bytes, aad: bytes, data: bytes, /) -> bytes:
        """Ciphertext and check value."""

    def open(self, nonce: bytes, aad: bytes, data: bytes, /) -> bytes:
        """Plaintext; raises `ValueError` when the check value is wrong."""

def openssl_only() -> str:
    """Make AES-GCM by OpenSSL from now on, whatever else there is; its name. An environment can tell it to do
    without instructions of the processor, which is for measurements."""

class Ring:
    """The reader of packets received of `offload.nic.rings.HostPort`, over its memory: where the rings for
    transmission, completions and packets received begin, the sizes, and the doorbells. Raises `ValueError`
    for what cannot be, and for all use after `close`."""

    def __init__(
        self,
        memory: mmap,
        transmit: int,
        completed: int,
        received: int,
        slots: int,
        room: int,
        bell: int,
        other_bell: int,
    ) -> None: ...
    @property
    def moved(self) -> bool: ...
    @property
    def broken(self) -> bool:
        """What is in the memory cannot be, or the other side is gone: nothing more comes."""

    def tell(self) -> None: ...
    def awaited(self) -> bool: ...
    def sleep(self) -> None: ...
    def wake(self) -> None: ...
    def stirred(self) -> bool: ...
    def take(self, limit: int, octets: int, /) -> list[Arrival]:
        """Up to so many, or fewer that have so many octets together."""

    def hand_on(self, fileno: int, protocol: int, limit: int, /) -> tuple[int, int, int, Arrival | None]:
        """Write the data of up to so many to a descriptor, each with a system call, as they are: what a host
        does that protects nothing, for measurements. How many were taken and how many of them, and octets,
        were written; and the one of another protocol that ended it."""

    def wait(self) -> None:
        """Publish what was taken, and sleep until there may be more, or the other side is gone: as the loop
        sleeps, for measurements."""

    def close(self) -> None: ...

class Table:
    """What the loop knows. `ledger` is memory of `ACCOUNT` octets for each slot, `seed` 16 unpredictable
    octets."""

    def __init__(self, ledger: mmap, seed: bytes) -> None: ...
    def add_outbound(
        self,
        slot: int,
        spi: int,
        cipher: int,
        key: bytes,
        salt: bytes,
        esn: bool,
        tunnel: bool,
        udp: bool,
        fileno: int,
        fileno_without_df: int,
        wildcard: bool,
        dscp: int,
        dont_fragment: int,
        local: bytes,
        local_port: int,
        peer: bytes,
        peer_port: int,
        most_octets: int,
        most_packets: int,
        /,
    ) -> None:
        """An SA to send with, or one that has moved. -1 copies DSCP or DF from the inner packet."""

    def add_inbound(
        self,
        slot: int,
        spi: int,
        cipher: int,
        key: bytes,
        salt: bytes,
        esn: bool,
        tunnel: bool,
        window: int,
        most_octets: int,
        most_packets: int,
        /,
    ) -> None:
        """An SA to receive with, or one that has moved."""

    def remove(self, slot: int, /) -> None:
        """Forget both SAs of a slot."""

    def limit(self, slot: int, inbound: bool, most_octets: int, most_packets: int, /) -> None:
        """Packets with which an SA would reach one of these are handed up."""

    def place(self, slot: int, outbound: bool, handle: int, high: int, /) -> None:
        """Whether an adapter has the outbound SA of a slot: then its packets are handed up. An adapter's
        marks with the inbound SA's handle, 0 for none, and this upper half of the number are believed."""

    def marked(self, slot: int, /) -> tuple[int, int]:
        """Octets and packets that were believed, since it was last asked."""

    def add_route(self, key: bytes, slot: int, fits: int, /) -> bool:
        """A flow (`offload.ip.flow_key`) leaves on a slot's SA if its packets have at most `fits` octets."""

    def remove_route(self, key: bytes, /) -> None: ...
    def clear_routes(self) -> None: ...
    def admit(self, slot: int, key: bytes, /) -> None:
        """A slot's inbound SA is for this flow."""

    def clear_admitted(self) -> None:
        """No inbound SA is for any flow, until it is admitted."""

    def count(self, slot: int, inbound: bool, octets: int, packets: int, /) -> tuple[int, int]:
        """Add to an account; octets and packets afterwards. Negative ones take back."""

    def read(self, slot: int, inbound: bool, /) -> tuple[int, int, int]:
        """Octets, packets, and the last number sent or the highest one authenticated."""

    def number(self, slot: int, esn: bool, count: int = 1, /) -> int | None:
        """The first of the next `count` numbers to send with, None when they are used up."""

    def check(self, slot: int, window: int, esn: bool, low: int, /) -> int:
        """The whole number for 32 bits on the wire; minus an index into `REASONS` when it may not be."""

    def accept(self, slot: int, window: int, number: int, /) -> bool:
        """Note an authenticated number; False when it was noted before."""

    def drops(self) -> tuple[int, ...]:
        """Packets that came to nothing, for each of `REASONS`."""

    def add_source(self, fileno: int, kind: int, /) -> None:
        """`carry` serves this descriptor: the queue of the TUN device (1), a UDP socket (2), or a raw socket
        for ESP (3). Raises `ValueError`."""

    def remove_source(self, fileno: int, /) -> bool:
        """Serve it no more; whether it was served."""

    def add_ring(self, ring: Ring, /) -> None:
        """Serve a ring, whose source is its doorbell; what it took before is forgotten with it. One at a
        time, else `ValueError`."""

    def carry(
        self, poll: int, idle: float, busy: float, /
    ) -> tuple[int, bytes | Packet | Datagram | None] | None:
        """Carry packets between the sources among the descriptors of a poll, until another one of them is
        ready, or so many seconds are over without a packet, or so many from the first one on: then None. What
        is ready at the beginning is served in any case.

        Otherwise the source that Python has to do something for, and what was handed up: a frame, a packet to
        be admitted, a datagram to be opened, what came in the ring; or None when the socket has an error to
        fetch, or the ring is broken. Everything before it has been sent. With a ring it also comes back when
        there are completions, or perhaps place for what found none."""

    def receive(
        self, ring: Ring, device: int, limit: int, together: bool, /
    ) -> tuple[int, int, int, Arrival | Packet | None]:
        """What `carry` does with up to so many packets received, frames going to `device`, without waiting;
        how many that were, frames and octets that were written, and what was handed up. Not `together`: a
        frame for each packet, to measure what a packet costs."""

    def frame(self, frame: bytes, /) -> list[tuple[bytes, bytes, int, bool]] | None:
        """Count, number and frame the packets of a frame whose SA an adapter has, with zeros for the check
        value, or None when there is something to decide first. Each as what leaves, which is an IP packet or
        the payload of UDP; the packet itself; traffic class; and DF (of UDP)."""

    def seal(self, frame: bytes, /) -> list[tuple[int, int, int, bool, bytes]] | None:
        """What `carry` would do with a frame: trains as slot, segment, traffic class, DF (of UDP) and
        octets. None: it would be handed up. For tests."""

    def open(
        self, data: bytes, segment: int, header: bytes, traffic_class: int, udp: bool, /
    ) -> tuple[list[bytes | Packet | tuple[bytes]], int]:
        """What `carry` would do with a train: frames, and at the end perhaps a packet to be admitted or a
        datagram to be opened, after which it waits for Python; and how many octets that was. For tests."""
