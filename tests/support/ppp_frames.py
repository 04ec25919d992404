"""In the place of pppd where the kernel has no PPP: speaks frames over the terminal that xl2tpd gives it.

Frames are those of PPP on a serial line (RFC 1662). The caller's end sends numbered ones and writes down
those that come back; the other end sends every frame back. So a session is seen to carry data both ways, and
to whom it belongs. Started by `support.l2tp`, with the role and the file for what came in the environment.
"""

from __future__ import annotations

import os
import select
import sys
import time
import tty
from collections.abc import Iterator
from pathlib import Path

FLAG, ESCAPE, FLIP = 0x7E, 0x7D, 0x20
HEADER = b"\xff\x03\x00\x21"  # address, control, and the number of IPv4
INTERVAL = 0.1


def checksum(data: bytes) -> int:
    """The frame check sequence, RFC 1662 appendix C.2."""
    value = 0xFFFF
    for octet in data:
        value ^= octet
        for _ in range(8):
            value = value >> 1 ^ (0x8408 if value & 1 else 0)
    return value ^ 0xFFFF


def encode(payload: bytes) -> bytes:
    """A frame for the line."""
    data = HEADER + payload
    data += checksum(data).to_bytes(2, "little")
    out = bytearray([FLAG])
    for octet in data:
        if octet in (FLAG, ESCAPE) or octet < FLIP:
            out += bytes((ESCAPE, octet ^ FLIP))
        else:
            out.append(octet)
    out.append(FLAG)
    return bytes(out)


class Line:
    """What came so far, as frames."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._escaped = False

    def feed(self, octets: bytes) -> Iterator[bytes]:
        """Payloads of the frames that are whole now."""
        for octet in octets:
            if octet == FLAG:
                frame, self._data = bytes(self._data), bytearray()
                if frame.startswith(HEADER) and checksum(frame[:-2]) == int.from_bytes(frame[-2:], "little"):
                    yield frame[len(HEADER) : -2]
            elif octet == ESCAPE:
                self._escaped = True
            else:
                self._data.append(octet ^ FLIP if self._escaped else octet)
                self._escaped = False


def main() -> None:
    """Until the terminal closes, or the caller of this program does."""
    name, record = os.environ["FRAMES_NAME"], Path(os.environ["FRAMES_RECORD"])
    calling = os.environ["FRAMES_ROLE"] == "caller"
    tty.setraw(0)
    line, number, due = Line(), 0, 0.0
    while True:
        if calling and time.monotonic() >= due:
            number, due = number + 1, time.monotonic() + INTERVAL
            os.write(1, encode(f"frame {number} of {name}".encode()))
        if not select.select([0], [], [], INTERVAL)[0]:
            continue
        try:
            octets = os.read(0, 4096)
        except OSError:
            return
        if not octets:
            return
        for payload in line.feed(octets):
            if calling:
                with record.open("ab") as output:
                    output.write(payload + b"\n")
            else:
                os.write(1, encode(payload))


if __name__ == "__main__":
    sys.exit(main())
