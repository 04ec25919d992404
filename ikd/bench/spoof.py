"""Shell. The flood of `ikctl bench flood`: first messages of IKEv2 from addresses that are nobody's.

    python -m ikd.bench.spoof ORDER      JSON; in a namespace of its own, with the right to raw sockets

Each message is well formed and has an SPI, a nonce and a source address of its own, so that nothing but the
responder's rules against strangers tells it from an honest one. It says in JSON lines that it is ready,
begins with a line on standard input, and tells how many it sent in which time.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from ikd.ikev2.channel import VERSION, clear
from ikd.ikev2.numbers import Exchange
from ikd.ikev2.payloads import KeyExchange, Nonce
from ikd.ikev2.proposals import offer_main
from ikd.wire.isakmp import ZERO_SPI, Flags, Header
from policy.values import main_suite
from sadb.address import IKE_PORT

SUITE: Final = "x25519 aes128gcm sha256"
GROUP: Final = 31  # x25519
SOURCES: Final = int(IPv4Address("10.64.0.0"))  # the first of them
ADDRESSES: Final = 1 << 22
BATCH: Final = 0.002  # seconds between two looks at the clock
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_UDP: Final = struct.Struct("!HHHH")
_WORD: Final = struct.Struct("!I")
_SPI: Final = struct.Struct("!Q")
_SOURCE_AT: Final = 12
_SPI_AT: Final = _IPV4.size + _UDP.size


@dataclass(frozen=True, slots=True)
class Order:
    """So many first messages to an address, so many a second."""

    peer: str
    count: int
    rate: float


def packet(peer: str) -> bytearray:
    """One with the SPI and the source still to be filled in; its nonce is at the end."""
    header = Header(bytes(8), ZERO_SPI, 0, VERSION, Exchange.IKE_SA_INIT, int(Flags.INITIATOR), 0, 0)
    message = clear(
        header,
        [
            offer_main((main_suite(SUITE),)),
            KeyExchange(group=GROUP, public=os.urandom(32)),
            Nonce(data=os.urandom(32)),
        ],
    )
    size = _UDP.size + len(message)
    udp = _UDP.pack(IKE_PORT, IKE_PORT, size, 0)
    whole = _IPV4.size + size
    # the kernel writes the checksum
    ip = _IPV4.pack(0x45, 0, whole, 0, 0, 64, socket.IPPROTO_UDP, 0, bytes(4), IPv4Address(peer).packed)
    return bytearray(ip + udp + message)


def flood(order: Order) -> dict[str, float]:
    """Send them; how many of them the system took, and the seconds."""
    octets, sent = packet(order.peer), 0
    target = order.peer, 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        began = time.monotonic()
        for number in range(order.count):
            due = began + number / order.rate
            if (early := due - time.monotonic()) > BATCH:
                time.sleep(early)
            _WORD.pack_into(octets, _SOURCE_AT, SOURCES + number * 7919 % ADDRESSES)
            _SPI.pack_into(octets, _SPI_AT, number + 1)
            _WORD.pack_into(octets, len(octets) - _WORD.size, number)
            try:
                sock.sendto(octets, target)
                sent += 1
            except BlockingIOError:
                continue
        return {"sent": sent, "seconds": time.monotonic() - began}


def main(text: str) -> int:
    """Do one order."""
    order = Order(**json.loads(text))
    print(json.dumps({"ready": True}), flush=True)
    if sys.stdin.readline():
        print(json.dumps(flood(order)), flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
