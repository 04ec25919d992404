"""Two daemons with something between them: a router, narrow or wide links, one of the two ways to carry
ESP."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path

from support import lab
from support.capture import Recording
from support.lab import Lab
from support.scenario import Twins, tunnel_policy, twins

OUTER = {4: (lab.NATTED, lab.RIGHT), 6: (lab.ROUTED6, lab.RIGHT6)}
SEEN = {4: lab.NAT, 6: lab.ROUTER6}  # the left host behind a NAT
INNER = {4: (lab.INSIDE_LEFT, lab.INSIDE_RIGHT), 6: (lab.INSIDE_LEFT6, lab.INSIDE_RIGHT6)}
NETS = {4: (lab.NET_LEFT, lab.NET_RIGHT), 6: (lab.NET_LEFT6, lab.NET_RIGHT6)}
DATA = bytes(range(256)) * 4096
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DO, _PMTUDISC_DONT = 10, 23, 2, 0
_ANCILLARY = 128


def across(
    hosts: Lab,
    place: Path,
    *,
    udp: bool,
    outer: int = 4,
    inner: int = 4,
    suite: str = "aes128gcm",
    left: Mapping[str, Mapping[str, object]] | None = None,
    **dataplane: object,
) -> Twins:
    """A tunnel through the router, which is made a NAT when ESP is to go in UDP, and sees packets one by one;
    `dataplane` are settings of both, `left` those of the left one alone."""
    here, there = OUTER[outer]
    if udp:
        hosts.masquerade()
    hosts.no_trains()
    extra = f'crypto = "one"\n\n[crypto.one]\nmain = ["x25519 aes128gcm sha256"]\nquick = ["{suite}"]\n'
    near, far = NETS[inner]
    seen = SEEN[outer] if udp else here
    return twins(
        hosts,
        place,
        tunnel_policy(here, there, local_net=near, remote_net=far, peer="right.lab", extra=extra),
        tunnel_policy(there, seen, local_net=far, remote_net=near, peer="left.lab", extra=extra),
        settings={"dataplane": dataplane},
        left=left,
    )


def stream(hosts: Lab, inner: int = 4, data: bytes = DATA) -> None:
    """TCP from the left to the right and back."""
    near, far = INNER[inner]
    assert lab.tcp(hosts.left, hosts.right, far, data, near) == data


class Datagrams:
    """UDP from one inside to the other; "left" sends unless it is `back`."""

    def __init__(self, hosts: Lab, inner: int = 4, *, back: bool = False) -> None:
        self.four = inner == 4
        near, far = INNER[inner][::-1] if back else INNER[inner]
        here, there = (hosts.right, hosts.left) if back else (hosts.left, hosts.right)
        family = socket.AF_INET if self.four else socket.AF_INET6
        self.sender = lab.socket_in(here, family, socket.SOCK_DGRAM)
        self.receiver = lab.socket_in(there, family, socket.SOCK_DGRAM)
        self.sender.bind((near, 0))
        self.receiver.bind((far, 0))
        self.receiver.settimeout(20)
        self.receiver.setsockopt(*self._option(socket.IP_RECVTOS, socket.IPV6_RECVTCLASS), 1)
        self.sender.connect(self.receiver.getsockname()[:2])

    def _option(self, four: int, six: int) -> tuple[int, int]:
        return (socket.IPPROTO_IP, four) if self.four else (socket.IPPROTO_IPV6, six)

    def traffic_class(self, value: int) -> None:
        """What leaves from now on has it."""
        self.sender.setsockopt(*self._option(socket.IP_TOS, socket.IPV6_TCLASS), value)

    def may_be_cut(self, allowed: bool) -> None:
        """Whether IP may fragment what leaves from now on; for IPv6 that is this host's stack."""
        wish = _PMTUDISC_DONT if allowed else _PMTUDISC_DO
        self.sender.setsockopt(*self._option(_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER), wish)

    def passed(self, data: bytes) -> int:
        """Send it; the traffic class it came with. Fails when it does not come as it was sent."""
        self.sender.send(data)
        got, ancillary, _, _ = self.receiver.recvmsg(65535, _ANCILLARY)
        assert got == data
        levels = socket.IPPROTO_IP, socket.IPPROTO_IPV6
        (value,) = (value for level, _, value in ancillary if level in levels)
        return value[0]  # an octet, or a number of this machine's byte order

    def largest(self, size: int) -> int:
        """Send datagrams of a size that must not be cut until the stack refuses them; then the largest
        payload that it says it takes."""
        self.may_be_cut(False)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                self.sender.send(bytes(size))
            except OSError:
                self.sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # said once more else
                mtu = self.sender.getsockopt(*self._option(14, 24))  # IP_MTU, IPV6_MTU
                return mtu - (28 if self.four else 48)
            time.sleep(0.05)
        raise AssertionError("nobody told the sender that its datagrams are too large")

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sizes(wire: Recording) -> list[int]:
    """Octets of each IP packet in a capture of an Ethernet link, without what is no IP."""
    found = []
    for frame in wire.frames():
        kind = frame[12:14]
        if kind == b"\x08\0":
            found.append(int.from_bytes(frame[16:18], "big"))
        elif kind == b"\x86\xdd":
            found.append(40 + int.from_bytes(frame[18:20], "big"))
    return found


def fragments(wire: Recording) -> int:
    """How many parts of IP packets a capture has."""
    return len(wire.tshark("-Y", "ip.flags.mf == 1 || ip.frag_offset > 0 || ipv6.fraghdr").splitlines())
