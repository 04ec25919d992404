"""What was on the wire, looked at with tshark: a capture with tcpdump in a namespace, or datagrams that were
never on one."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from support.lab import socket_in

from offload import ip
from sadb.address import Path as Ends

TOOLS = ("tcpdump", "tshark")
RAW_IP = 101  # link type: frames are IP packets


class Recording:
    """A pcap file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def holds(self, marker: bytes) -> bool:
        """Whether these octets went over the wire as they are."""
        return marker in self.path.read_bytes()

    def frames(self) -> list[bytes]:
        """The frames as they were on the wire (a pcap file in this machine's byte order)."""
        data = self.path.read_bytes()
        found, at = [], 24
        while at + 16 <= len(data):
            length = int.from_bytes(data[at + 8 : at + 12], sys.byteorder)
            found.append(data[at + 16 : at + 16 + length])
            at += 16 + length
        return found

    def keepalives(self) -> int:
        """NAT keepalives over IPv4 until now (RFC 3948 section 2.3)."""
        found = [one for one in self.frames() if one[12:14] == b"\x08\0" and one[23] == 17]
        return sum(one[38:40] == b"\0\x09" and one[42:43] == b"\xff" for one in found)

    def tshark(self, *arguments: str, configuration: Path | None = None) -> str:
        """tshark's output for the capture; `configuration` is a directory with a folder `wireshark` in it."""
        environment = os.environ | ({"XDG_CONFIG_HOME": str(configuration)} if configuration else {})
        result = subprocess.run(
            ["tshark", "-n", "-r", str(self.path), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def protocols(self) -> Counter[str]:
        """Packets by what they are for the outside: esp, isakmp, udpencap, icmp, tcp, ... Address resolution
        and neighbour discovery, which every link has, are left out."""
        counts: Counter[str] = Counter()
        for line in self.tshark("-T", "fields", "-e", "frame.protocols").splitlines():
            names = [
                name
                for name in line.split(":")
                if name not in ("eth", "ethertype", "ip", "ipv6", "ipv6.hopopts")
            ]
            name = "isakmp" if "isakmp" in names else "esp" if "esp" in names else names[0]
            if name not in ("arp", "icmpv6", "llc"):
                counts[name] += 1
        return counts


class Capture(Recording):
    """Records one interface of a namespace between `with` and its end: all that was on it until then."""

    _MARK = b"\xff" * 6 + bytes(6) + b"\x88\xb5"  # a frame for experiments (IEEE 802), which nobody takes

    def __init__(self, namespace: str, interface: str, path: Path) -> None:
        super().__init__(path)
        self._place = namespace, interface
        tcpdump = ("tcpdump", "-U", "--immediate-mode", "-B", "8192", "-n", "-i", interface, "-w", str(path))
        self._command = ["ip", "netns", "exec", namespace, *tcpdump]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Capture:
        errors = self.path.with_suffix(".stderr")
        with errors.open("wb") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 30
        while b"listening on" not in errors.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise RuntimeError(f"tcpdump does not start: {errors.read_text()}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        time.sleep(0.05)  # what has been sent is received
        try:
            end = self._end(self._MARK + os.urandom(46))
        finally:
            self._process.terminate()
            self._process.wait(30)
        os.truncate(self.path, end)

    def _end(self, mark: bytes) -> int:
        """Where a frame of ours that is sent now begins in the file: it has all that was before it."""
        namespace, interface = self._place
        read, deadline = b"", time.monotonic() + 30
        with (
            socket_in(namespace, socket.AF_PACKET, socket.SOCK_RAW) as link,
            self.path.open("rb") as file,
        ):
            link.bind((interface, 0))
            while (at := read.find(mark)) < 0:
                assert time.monotonic() < deadline, "tcpdump does not keep up"
                link.send(mark)  # again: there may have been no room
                time.sleep(0.01)
                read += file.read()
        return at - 16  # the header of the record


def written(path: Path, datagrams: Iterable[tuple[Ends, bytes]]) -> Recording:
    """A pcap file with UDP datagrams from one end to the other, a second apart."""
    octets = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0xFFFF, RAW_IP)
    for n, (ends, data) in enumerate(datagrams):
        size = 8 + len(data)
        udp = struct.pack("!HHHH", ends.local.port, ends.peer.port, size, 1) + data
        header = ip.Outer(ends.local.address, ends.peer.address, ip.UDP).header(0, size, n)
        packet = ip.with_transport_checksum(header + udp, len(header), ip.UDP)
        octets += struct.pack("=IIII", n, 0, len(packet), len(packet)) + packet
    path.write_bytes(octets)
    return Recording(path)


def wireshark_tables(keys: Path, directory: Path) -> Path:
    """The exported lines sorted into the tables in which tshark looks for them."""
    assert keys.stat().st_mode & 0o077 == 0, "exported keys are readable by others"
    lines = [one for one in keys.read_text().splitlines() if one and not one.startswith("#")]
    esp = [one for one in lines if one.startswith('"IP')]
    (directory / "wireshark").mkdir()
    (directory / "wireshark" / "esp_sa").write_text("\n".join(esp) + "\n")
    ike = [one for one in lines if one not in esp]
    (directory / "wireshark" / "ikev2_decryption_table").write_text("\n".join(ike) + "\n")
    return directory
