"""Shell. `ikctl capture`: a pcap file of the IKE and ESP of one peer, with a file of its keys beside it.

Packets are taken from every interface by a packet socket, as IP packets without the link's header; the kernel
lets only those through that have the peer's address. Keys are written by the daemon (`control.capturing`),
which stops when this process ends, however it ends.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

from ikd.control.client import Client
from ikd.control.protocol import ControlError, Json, file_error
from sadb.address import Address, parse

RAW_IP: Final = 101  # link type: frames are IP packets
LONGEST: Final = 65_535
ESP, AH, UDP = 50, 51, 17
_EXTENSIONS: Final = frozenset((0, 43, 60))  # headers of IPv6 before the payload, but for fragments
_FRAGMENT: Final = 44
_ALL: Final = 3  # ETH_P_ALL
_OUTGOING: Final = 4  # PACKET_OUTGOING
_ATTACH_FILTER: Final = 26  # SO_ATTACH_FILTER
_INSTRUCTION: Final = struct.Struct("=HBBI")
_WORD, _OCTET, _AND, _EQUAL, _RETURN = 0x20, 0x30, 0x54, 0x15, 0x06  # of classic BPF
_RECORD: Final = struct.Struct("=IIII")


def run(client: Client, name: str, target: Path, told: Callable[[Json], None], seconds: float | None) -> int:
    """Capture until interrupted, or for some seconds; how many packets. `told` hears what is captured once it
    begins. Raises `ControlError`."""
    keys = target.with_name(target.name + ".keys")
    for one in (target, keys):
        if os.path.lexists(one):
            raise ControlError("usage", f"{one} is there already", "name another file")
    with _socket() as sock:
        answer = client.call("capture", name=name, file=str(keys.absolute()))
        if not keys.exists():  # the daemon has a /tmp of its own
            raise ControlError(
                "configuration",
                f"the daemon cannot write {keys} where you would see it",
                "name a file in a directory that it may write, such as /var/lib/ikd",
            )
        _attach(sock, parse(answer["peer"]))
        with _new(target) as file:
            _write(file, struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, LONGEST, RAW_IP))
            told(answer)
            return _record(sock, file, frozenset(answer["ports"]), seconds)


def _record(sock: socket.socket, file: FileIO, ports: frozenset[int], seconds: float | None) -> int:
    count, end = 0, None if seconds is None else time.monotonic() + seconds
    try:
        for packet in _packets(sock, end):
            if wanted(packet, ports):
                now = time.time_ns() // 1000
                _write(file, _RECORD.pack(*divmod(now, 1_000_000), len(packet), len(packet)) + packet)
                count += 1
    except KeyboardInterrupt:
        return count
    return count


def _write(file: FileIO, octets: bytes) -> None:
    """Append; raises `ControlError` when that cannot be done, and then the file ends as it was."""
    end = file.tell()
    try:
        while octets:
            octets = octets[file.write(octets) :]
    except OSError as error:
        with suppress(OSError):
            file.truncate(end)
        why = f"cannot write the capture: {error.strerror}"
        raise ControlError("unavailable", why, "what it has until here can be read") from None


def _packets(sock: socket.socket, end: float | None) -> Iterator[bytes]:
    while end is None or time.monotonic() < end:
        sock.settimeout(None if end is None else max(0.001, end - time.monotonic()))
        try:
            packet, (interface, _, kind, *_) = sock.recvfrom(LONGEST)
        except TimeoutError:
            return
        if kind != _OUTGOING or interface != "lo":  # there each is seen twice
            yield packet


def wanted(packet: bytes, ports: frozenset[int]) -> bool:
    """Whether an IP packet is ESP, AH, or UDP from or to one of the ports; later fragments are."""
    if len(packet) < 20:
        return False
    if packet[0] >> 4 == 4:
        start, protocol = (packet[0] & 15) * 4, packet[9]
        later = int.from_bytes(packet[6:8], "big") & 0x1FFF
    else:
        start, protocol, later = 40, packet[6], 0
        while protocol in _EXTENSIONS and len(packet) >= start + 8:
            start, protocol = start + 8 + packet[start + 1] * 8, packet[start]
        if protocol == _FRAGMENT and len(packet) >= start + 8:
            later = int.from_bytes(packet[start + 2 : start + 4], "big") & 0xFFF8
            start, protocol = start + 8, packet[start]
    if protocol != UDP or later:
        return protocol in (ESP, AH, UDP)
    ends = packet[start : start + 2], packet[start + 2 : start + 4]
    return any(int.from_bytes(one, "big") in ports for one in ends)


def program(peer: Address) -> bytes:
    """Instructions of a filter that lets IP packets from and to an address through."""
    version, places = (0x40, (12, 16)) if peer.version == 4 else (0x60, (8, 24))
    words = [int.from_bytes(peer.packed[at : at + 4], "big") for at in range(0, len(peer.packed), 4)]
    lines = [(_OCTET, 0, 0, 0), (_AND, 0, 0, 0xF0), (_EQUAL, 1, 0, version), (_RETURN, 0, 0, 0)]
    for place in places:
        for n, word in enumerate(words):
            behind = 2 * (len(words) - n - 1) + 1  # instructions of this address that are left
            lines += [(_WORD, 0, 0, place + 4 * n), (_EQUAL, 0, behind, word)]
        lines.append((_RETURN, 0, 0, LONGEST))
    lines.append((_RETURN, 0, 0, 0))
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)


def _attach(sock: socket.socket, peer: Address) -> None:
    """From now on only packets of the peer; those that have come before are thrown away."""
    import ctypes

    octets = program(peer)
    buffer = ctypes.create_string_buffer(octets, len(octets))
    length = len(octets) // _INSTRUCTION.size
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", length, ctypes.addressof(buffer)))
    sock.setblocking(False)
    try:
        while True:
            sock.recv(1)
    except BlockingIOError:
        return


def _socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL))
    except PermissionError:
        raise ControlError("not-permitted", "only root may capture packets", "use sudo") from None


def _new(target: Path) -> FileIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return FileIO(os.open(target, flags, 0o600), "wb")
    except OSError as error:
        raise file_error(error, "name a file that is not there yet", "cannot make ") from None


def warn(answer: Json) -> None:
    """Say what begins, on standard error."""
    print(f"warning: {answer['warning']}", file=sys.stderr)
    print(f"capturing {answer['peer']}, keys are in {answer['keys']}; end with Ctrl-C", file=sys.stderr)
