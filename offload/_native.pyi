"""The hot loop of the software engine, compiled from `offload/native/`; see `native.h` there.

Slots are accounts of the ledger. Nothing here is safe to call from two threads at once; `pump_out` and
`pump_in` release the interpreter's lock.
"""

from mmap import mmap

REASONS: tuple[str, ...]
ACCOUNT: int
CIPHERS: str

# spi, packet: decrypted and not counted, for `SoftwareEngine.admitted`
Packet = tuple[int, bytes]
# data, source address and port, destination address, traffic class, IPv4 header, whether it came in UDP
Datagram = tuple[bytes, bytes, int, bytes, int, bytes, bool]

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

    def pump_out(self, device: int, budget: int, /) -> bool | bytes:
        """Read frames and send what they come to, until nothing waits (False) or `budget` is used up (True).
        A frame that is to be looked at is returned, everything before it having been sent."""

    def pump_in(self, fileno: int, udp: bool, device: int, budget: int, /) -> bool | Packet | Datagram | None:
        """The same from a socket to the device; None when the socket has an error to fetch."""

    def seal(self, frame: bytes, /) -> list[tuple[int, int, int, bool, bytes]] | None:
        """What `pump_out` would do with a frame: trains as slot, segment, traffic class, DF (of UDP) and
        octets. None: it would be handed up. For tests."""

    def open(
        self, data: bytes, segment: int, header: bytes, traffic_class: int, udp: bool, /
    ) -> tuple[list[bytes | Packet | tuple[bytes]], int]:
        """What `pump_in` would do with a train: frames, and at the end perhaps a packet to be admitted or a
        datagram to be opened, after which it waits for Python; and how many octets that was. For tests."""
