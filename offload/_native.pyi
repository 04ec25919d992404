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

    def add_route(self, key: bytes, slot: int, fits: int, /) -> bool:
        """A flow (`offload.ip.flow_key`) leaves on a slot's SA if its packets have at most `fits` octets."""

    def remove_route(self, key: bytes, /) -> None: ...
    def clear_routes(self) -> None: ...
    def admit(self, slot: int, key: bytes, /) -> None:
        """A slot's inbound SA is for this flow."""

    def count(self, slot: int, inbound: bool, octets: int, packets: int, /) -> tuple[int, int]:
        """Add to an account; octets and packets afterwards. Negative ones take back."""

    def read(self, slot: int, inbound: bool, /) -> tuple[int, int, int]:
        """Octets, packets, and the last number sent or the highest one authenticated."""

    def number(self, slot: int, esn: bool, /) -> int | None:
        """The next number to send with, None when they are used up."""

    def check(self, slot: int, window: int, esn: bool, low: int, /) -> int:
        """The whole number for 32 bits on the wire; minus an index into `REASONS` when it may not be."""

    def accept(self, slot: int, window: int, number: int, /) -> bool:
        """Note an authenticated number; False when it was noted before."""

    def drops(self) -> tuple[int, ...]:
        """Packets that came to nothing, for each of `REASONS`."""

    def add_source(self, fileno: int, kind: int, /) -> None:
        """`carry` serves this descriptor: the queue of the TUN device (1), a UDP socket (2), or a raw socket
        for ESP (3). Raises `ValueError`."""

    def carry(
        self, poll: int, idle: float, busy: float, /
    ) -> tuple[int, bytes | Packet | Datagram | None] | None:
        """Carry packets between the sources among the descriptors of a poll, until another one of them is
        ready, or so many seconds are over without a packet, or so many from the first one on: then None. What
        is ready at the beginning is served in any case.

        Otherwise the source that Python has to do something for, and what was handed up: a frame, a packet to
        be admitted, a datagram to be opened; or None when the socket has an error to fetch. Everything before
        it has been sent."""

    def seal(self, frame: bytes, /) -> list[tuple[int, int, int, bool, bytes]] | None:
        """What `carry` would do with a frame: trains as slot, segment, traffic class, DF (of UDP) and
        octets. None: it would be handed up. For tests."""

    def open(
        self, data: bytes, segment: int, header: bytes, traffic_class: int, udp: bool, /
    ) -> tuple[list[bytes | Packet | tuple[bytes]], int]:
        """What `carry` would do with a train: frames, and at the end perhaps a packet to be admitted or a
        datagram to be opened, after which it waits for Python; and how many octets that was. For tests."""
