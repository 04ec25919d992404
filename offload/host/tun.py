"""Shell. The TUN device: packets that the host's routing leads to us, and packets we hand to the host.

A layer 3 device (Linux `Documentation/networking/tuntap.rst`) whose packets have a header of `offload.vnet`:
the host leaves segmentation and checksums to us, and takes segments that we put together. It has a queue for
each worker. It lives as long as one of its descriptors is open, unless somebody deletes it: the daemon keeps
them all, so that it outlives a worker, and each worker its own; when all of them are gone, the device and
every route through it go. `MemoryTun` is a device in memory with plain packets, for tests and for the data
plane without root. What is led here is `offload.host.network`'s business."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import socket
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from sadb.backend import Unavailable

LARGEST: Final = 65_535
HEADER: Final = 10  # struct virtio_net_hdr
MOST_SEGMENTS: Final = 64  # of a train, UDP_MAX_SEGMENTS
QUEUE: Final = 1024  # packets the kernel, or a device in memory, holds for us

_DEVICE: Final = "/dev/net/tun"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", re.ASCII)  # it goes into nftables text, too
_TUNSETIFF, _TUNSETOFFLOAD, _TUNGETIFF = 0x400454CA, 0x400454D0, 0x800454D2
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE, _IFF_UP = 0x0001, 0x1000, 0x4000, 0x0100, 0x1
_SEGMENTATION = 0x01 | 0x02 | 0x04 | 0x08  # TUN_F_CSUM, TSO4, TSO6, TSO_ECN
_UDP_SEGMENTATION = 0x20 | 0x40  # TUN_F_USO4, USO6: Linux 6.2
_IFREQ: Final = struct.Struct("16sH22x")

_CAPABILITY: Final = "CAP_NET_ADMIN is missing: run as root or with the rights in systemd/ikd.service"
_REMEDIES: Final = {
    errno.ENOENT: f"{_DEVICE} is missing: modprobe tun, or give a container --device {_DEVICE}",
    errno.ENODEV: "the kernel has no TUN driver: modprobe tun",
    errno.EPERM: _CAPABILITY,
    errno.EACCES: _CAPABILITY,
    errno.EBUSY: "the device is in use: another ikd runs, or set dataplane.device to another name",
    errno.EINVAL: "a device of another kind has this name: set dataplane.device to another one",
}


class Tun:
    """A TUN device of its own, up and with nothing routed into it yet; `overhead` is what protection adds to
    a packet, so that the host's large packets become trains that one system call sends."""

    def __init__(self, name: str = "ikd0", mtu: int = 1400, queues: int = 1, overhead: int = 64) -> None:
        if not _NAME.fullmatch(name):
            raise Unavailable(f"{name!r} is no name for a device: up to 15 letters, digits, '_', '.' and '-'")
        self.name, self.mtu = name, mtu
        self.queues: list[Queue] = []
        self.segments_udp = False
        self._index = 0
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
        try:
            for _ in range(queues):
                fileno = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self.queues.append(Queue(fileno))
                fcntl.ioctl(fileno, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
            self.segments_udp = _offload(self.queues[0].fileno())
            self._index = socket.if_nametoindex(name)
            _configure(self._index, mtu, overhead)
        except OSError as error:
            self.close()
            remedy = _REMEDIES.get(error.errno or 0, error.strerror or str(error))
            raise Unavailable(f"no TUN device {name}: {remedy}") from None

    @classmethod
    def inherited(cls, name: str, mtu: int, filenos: Sequence[int], *, segments_udp: bool) -> Tun:
        """A device that is there, by descriptors of its queues."""
        tun = cls.__new__(cls)
        tun.name, tun.mtu = name, mtu
        tun.queues = [Queue(one) for one in filenos]
        tun.segments_udp = segments_udp
        tun._index = socket.if_nametoindex(name)
        return tun

    @property
    def there(self) -> bool:
        """Whether nobody has deleted it."""
        try:
            return socket.if_nametoindex(self.name) == self._index
        except OSError:
            return False

    def dropped(self) -> int:
        """Packets the host could not put into a queue because it was full."""
        try:
            return int(Path(f"/sys/class/net/{self.name}/statistics/tx_dropped").read_text())
        except (OSError, ValueError):
            return 0

    def close(self) -> None:
        """Remove the device; safe to repeat."""
        for queue in self.queues:
            queue.close()
        self.queues.clear()


def device_of(fileno: int) -> str:
    """The name of the device that a descriptor is a queue of; raises `OSError`."""
    found = fcntl.ioctl(fileno, _TUNGETIFF, bytes(_IFREQ.size))
    return found[:16].rstrip(b"\0").decode("ascii", "replace")


class Queue:
    """One queue of a TUN device: frames of `offload.vnet`."""

    def __init__(self, fileno: int) -> None:
        self._fd = fileno
        self.refused = 0
        self.gone = False  # the device was deleted under us

    def fileno(self) -> int:
        """Readable when frames wait."""
        return self._fd

    def read_batch(self, limit: int) -> list[bytes]:
        """Up to `limit` frames that wait. Never waits or raises."""
        frames: list[bytes] = []
        for _ in range(limit):
            try:
                frames.append(os.read(self._fd, LARGEST + HEADER))
            except OSError as error:
                self.gone = error.errno == errno.EBADFD  # else EAGAIN: no more
                break
        return frames

    def write_batch(self, frames: Iterable[bytes]) -> None:
        """Hand frames to the host; those it refuses are counted."""
        for frame in frames:
            try:
                os.write(self._fd, frame)
            except OSError:  # EINVAL: not an IP packet; EIO: the device is down
                self.refused += 1

    def close(self) -> None:
        """Close the descriptor; safe to repeat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class MemoryTun:
    """A device without a kernel: what a test injects is read, what is written can be awaited."""

    def __init__(self, name: str = "memory", mtu: int = 1400) -> None:
        self.name, self.mtu = name, mtu
        self._inward: deque[bytes] = deque()
        self._outward: asyncio.Queue[bytes] = asyncio.Queue(QUEUE)
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Readable when injected packets wait."""
        return self._fd

    def inject(self, packet: bytes) -> bool:
        """A packet as an application would send it; whether there was room."""
        if len(self._inward) >= QUEUE:
            return False
        self._inward.append(packet)
        os.eventfd_write(self._fd, 1)
        return True

    async def next(self) -> bytes:
        """The next packet an application would receive."""
        return await self._outward.get()

    def read_batch(self, limit: int) -> list[bytes]:
        """Up to `limit` injected packets."""
        packets = [self._inward.popleft() for _ in range(min(limit, len(self._inward)))]
        if not self._inward:
            with suppress(BlockingIOError):
                os.eventfd_read(self._fd)
        return packets

    def write_batch(self, packets: Iterable[bytes]) -> int:
        """Hand packets over; how many there was room for."""
        taken = 0
        for packet in packets:
            with suppress(asyncio.QueueFull):
                self._outward.put_nowait(packet)
                taken += 1
        return taken

    def close(self) -> None:
        """Give the descriptor back; safe to repeat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# Setting the device up --------------------------------------------------------------------------------------

_NLMSGHDR: Final = struct.Struct("=IHHII")
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_RTM_SETLINK, _NLM_F_REQUEST_ACK, _NLMSG_ERROR = 19, 5, 2
_IFLA_MTU, _IFLA_TXQLEN, _IFLA_AF_SPEC = 4, 13, 26
_IFLA_GSO_MAX_SIZE, _IFLA_GSO_IPV4_MAX_SIZE = 41, 63
_IFLA_INET_CONF = 1
_RP_FILTER, _SRC_VALID_MARK = 8, 24  # linux/ip.h, IPV4_DEVCONF_...
_IFLA_INET6_ADDR_GEN_MODE, _NO_ADDRESS = 8, 1


def _offload(fileno: int) -> bool:
    """Ask for segmentation and checksums to be left to us; whether that includes UDP. Raises `OSError`."""
    try:
        fcntl.ioctl(fileno, _TUNSETOFFLOAD, _SEGMENTATION | _UDP_SEGMENTATION)
    except OSError:
        fcntl.ioctl(fileno, _TUNSETOFFLOAD, _SEGMENTATION)
        return False
    return True


def _configure(index: int, mtu: int, overhead: int) -> None:
    """Size, filters, then up.

    These few attributes are encoded here because pyroute2 cannot write per-family settings of a device, and
    /proc/sys is closed to a hardened service. The sources of decrypted packets may be routed elsewhere, in
    transport mode through the link the ESP came from. So this device has no reverse path filter, and because
    `net.ipv4.conf.all` can still impose one (loose does not help either: it is strict where a device has no
    address), the filter shall look at the mark that `offload.host.filter` gives these packets
    (src_valid_mark), for which `offload.host.routes` leads back here. Without an address generation mode IPv6
    neither invents addresses nor sends router solicitations into the device."""
    sizes = _attribute(_IFLA_MTU, struct.pack("=I", mtu)) + _attribute(_IFLA_TXQLEN, struct.pack("=I", QUEUE))
    filters = _attribute(_RP_FILTER, struct.pack("=I", 0)) + _attribute(_SRC_VALID_MARK, struct.pack("=I", 1))
    # A train has at most 64 KiB and 64 datagrams; what protection adds must fit in, too.
    segments = max(1, min(LARGEST // (mtu + overhead), MOST_SEGMENTS))
    large = struct.pack("=I", max(mtu, segments * mtu))
    inet = _attribute(socket.AF_INET, _attribute(_IFLA_INET_CONF, filters))
    inet6 = _attribute(socket.AF_INET6, _attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes((_NO_ADDRESS,))))
    _set_link(index, sizes + _attribute(_IFLA_AF_SPEC, inet))
    for attribute in (_IFLA_GSO_MAX_SIZE, _IFLA_GSO_IPV4_MAX_SIZE):
        with suppress(OSError):  # an older kernel: some trains are sent in two
            _set_link(index, _attribute(attribute, large))
    with suppress(OSError):  # a host without IPv6, or with it switched off
        _set_link(index, _attribute(_IFLA_AF_SPEC, inet6))
    _set_link(index, b"", _IFF_UP)


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def _set_link(index: int, attributes: bytes, flags: int = 0) -> None:
    """One RTM_SETLINK; raises `OSError` when the kernel refuses it."""
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, flags, flags) + attributes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
        netlink.send(
            _NLMSGHDR.pack(_NLMSGHDR.size + len(body), _RTM_SETLINK, _NLM_F_REQUEST_ACK, 1, 0) + body
        )
        answer = netlink.recv(LARGEST)
    kind = _NLMSGHDR.unpack_from(answer)[1]
    (code,) = struct.unpack_from("=i", answer, _NLMSGHDR.size)
    if kind == _NLMSG_ERROR and code:
        raise OSError(-code, os.strerror(-code))
