"""`ikctl capture`: what its filter lets through, and that its keys are of one peer and end with it."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
from support.capture import Recording
from support.loopback import INSIDE, datagram, pair, until
from support.require import require

from ikd import keying
from ikd.control import capture
from ikd.control.cli import run
from ikd.control.client import Client
from ikd.control.protocol import ControlError
from ikd.events import Broken
from ikd.keylog import esp_line
from ikd.transport import NON_ESP_MARKER
from sadb.address import Address, parse

PING = datagram(INSIDE["left"], INSIDE["right"], b"ping")
PEERS = ["192.0.2.7", "2001:db8::7:1"]


def header(source: Address, destination: Address, protocol: int, body: bytes = bytes(8)) -> bytes:
    """An IP packet."""
    if source.version == 4:
        first = bytes((0x45, 0, 0, 20 + len(body), 0, 0, 0, 0, 64, protocol, 0, 0))
    else:
        first = bytes((0x60, 0, 0, 0, 0, len(body), protocol, 64))
    return first + source.packed + destination.packed + body


def passes(program: bytes, packet: bytes) -> bool:
    """What the kernel does with a classic BPF program."""
    lines = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, yes, no, value = lines[at]
        at += 1
        match code:
            case 0x20:
                accumulator = int.from_bytes(packet[value : value + 4], "big")
            case 0x30:
                accumulator = packet[value]
            case 0x54:
                accumulator &= value
            case 0x15:
                at += yes if accumulator == value else no
            case 0x06:
                return value > 0
            case _:
                raise AssertionError(code)


@pytest.mark.parametrize("text", PEERS)
def test_the_filter_knows_one_peer(text: str) -> None:
    """The traffic of others must not be in the file, and none of the peer's may be missing."""
    peer = parse(text)
    program = capture.program(peer)
    neighbours = [ip_address(int(peer) ^ (1 << bit)) for bit in range(peer.max_prefixlen)]
    here = ip_address(int(peer) ^ 0x1234)
    assert passes(program, header(peer, here, 50))
    assert passes(program, header(here, peer, 50))
    for other in neighbours:
        assert not passes(program, header(other, here, 50)), other
        assert not passes(program, header(here, other, 50)), other
    twin = parse(next(one for one in PEERS if one != text))
    assert not passes(program, header(twin, twin, 50))


@pytest.mark.parametrize("text", PEERS)
def test_only_ike_and_esp(text: str) -> None:
    """Other services of the peer are nobody's business; a fragment cannot show its ports."""
    peer = parse(text)
    ports = frozenset((500, 4500))

    def udp(source: int, destination: int) -> bytes:
        return header(peer, peer, 17, struct.pack("!HHHH", source, destination, 8, 0))

    for packet in (header(peer, peer, 50), header(peer, peer, 51), udp(500, 1), udp(1, 4500)):
        assert capture.wanted(packet, ports)
    for packet in (header(peer, peer, 6), udp(53, 53), b"", b"\x45" * 19, header(peer, peer, 17, b"")):
        assert not capture.wanted(packet, ports)
    later = bytearray(udp(53, 53))
    if peer.version == 4:
        later[6:8] = b"\0\x10"
    else:
        later = bytearray(header(peer, peer, 44, b"\x11\0\0\x10" + bytes(4) + bytes(8)))
    assert capture.wanted(bytes(later), ports)


async def test_keys_of_one_peer_while_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of SAs that are there and of new ones, of this peer only; none after the connection ends, even
    when whoever asked has died."""
    monkeypatch.setattr(keying, "LINGER", 0.05)
    async with pair(tmp_path) as (left, _):
        await left.ask("up", name="net")
        mine, other = tmp_path / "mine", tmp_path / "other"

        def open_both() -> list[Client]:
            clients = [Client(left.home / "c.sock", 20) for _ in range(2)]
            assert clients[0].call("capture", name="net", file=str(mine))["peer"] == "127.0.0.2"
            clients[1].call("capture", name="127.0.0.77", file=str(other))
            return clients

        clients = await asyncio.to_thread(open_both)
        assert stat.S_IMODE(mine.stat().st_mode) == 0o600
        (old,) = left.daemon.database.pairs()
        main = (await left.ask("sa"))["main"][0]
        lines = mine.read_text().splitlines()
        assert esp_line(old.inbound) in lines
        assert esp_line(old.outbound) in lines
        assert any(line.startswith(f"{main['spi_i']},{main['spi_r']},") for line in lines)
        await left.ask("rekey", name="net")
        await until(lambda: len([1 for one in left.daemon.database.pairs() if one is not old]))
        new = next(one for one in left.daemon.database.pairs() if one is not old)
        await until(lambda: esp_line(new.inbound) in mine.read_text().splitlines())
        assert all(line.startswith("#") for line in other.read_text().splitlines())
        for client in clients:
            client.close()
        await until(lambda: len(left.daemon.driver.keylogs) == 1)
        before = mine.read_text()
        await left.ask("rekey", name="net")
        await until(lambda: all(one is not new for one in left.daemon.database.pairs()))
        assert mine.read_text() == before
        with pytest.raises(ControlError, match="no rule, peer or SPI"):
            await left.ask("capture", name="nobody", file=str(tmp_path / "third"))
        assert not left.happened(Broken)


async def test_a_capture(tmp_path: Path) -> None:
    """The file has the IKE and the ESP that went over the wire meanwhile, each packet once."""
    require(os.geteuid() == 0, "root, for a packet socket")
    async with pair(tmp_path) as (left, _):
        target = tmp_path / "peer.pcap"
        words = ["--socket", str(left.home / "c.sock"), "capture", "net", str(target), "--seconds", "2.5"]
        running = asyncio.create_task(asyncio.to_thread(run, words))
        await until(lambda: target.exists() and target.stat().st_size)
        left.tun.inject(PING)
        assert await running == 0
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        frames = [one[28:] for one in Recording(target).frames()]
        esp = [one for one in frames if not one.startswith(NON_ESP_MARKER) and len(one) < 200]
        (made,) = left.daemon.database.pairs()
        assert len([one for one in esp if one[:4] == made.outbound.spi.to_bytes(4, "big")]) == 1
        main = (await left.ask("sa"))["main"][0]
        begun = bytes.fromhex(main["spi_i"])
        assert len([one for one in frames if one.removeprefix(NON_ESP_MARKER)[:8] == begun]) == 4
        assert await asyncio.to_thread(run, words) == 1, "what is there is not written over"
