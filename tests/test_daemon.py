"""Two real daemons on loopback, in memory mode: packets, requests, reload, failure and stopping, through
sockets and files as an administrator has them."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.loopback import INSIDE, Running, datagram, free_ports, pair, start, until, write

from ikd.control.client import Client
from ikd.control.protocol import ControlError, Json
from ikd.daemon import CannotStart
from ikd.driver import MOST_NOTICES
from ikd.events import (
    Broken,
    ChildEstablished,
    DatagramDropped,
    IkeClosed,
    IkeEstablished,
    NegotiationFailed,
    Reloaded,
    ReloadRefused,
)
from ikd.transport import NON_ESP_MARKER
from sadb.sa import Expire

PING = datagram(INSIDE["left"], INSIDE["right"], b"a text nobody else may read")
PONG = datagram(INSIDE["right"], INSIDE["left"], b"an answer")
BLOCKED = '[[rule]]\nname = "closed"\naction = "block"\nremote = "203.0.113.9"\n'
ANOTHER = '[[rule]]\nname = "another"\nremote = "203.0.113.7"\n'

Sides = tuple[Running, Running]


@pytest.fixture
async def sides(tmp_path: Path) -> AsyncIterator[Sides]:
    """Both daemons with matching files."""
    async with pair(tmp_path) as both:
        yield both


async def refused(side: Running, code: str, do: str, **parameters: Json) -> ControlError:
    """The error of a request that must fail with this code."""
    with pytest.raises(ControlError) as caught:
        await side.ask(do, **parameters)
    assert caught.value.code == code, caught.value.message
    return caught.value


async def arrives(side: Running, packet: bytes) -> None:
    """The next packet out of a device is this one."""
    assert await asyncio.wait_for(side.tun.next(), 30) == packet


def healthy(side: Running) -> None:
    """Nothing of ours broke."""
    assert not side.happened(Broken), side.happened(Broken)[0].text


async def test_first_packet_is_held_and_delivered(sides: Sides) -> None:
    """The whole journey: a packet starts the negotiation, arrives as it was, and the wire carries no text."""
    left, right = sides
    seen: list[bytes] = []
    original = left.daemon.transport.send_esp
    left.daemon.transport.send_esp = lambda datagrams: original(  # type: ignore[method-assign]
        [(seen.append(data), (data, path))[1] for data, path in datagrams]  # type: ignore[func-returns-value]
    )
    left.tun.inject(PING)
    await arrives(right, PING)
    right.tun.inject(PONG)
    await arrives(left, PONG)
    assert seen
    assert all(b"nobody else" not in data for data in seen)
    for side in sides:
        healthy(side)


async def test_status_and_sa_say_what_is_there(sides: Sides) -> None:
    """The two commands everybody runs first; `ikctl` renders exactly these keys."""
    left, _ = sides
    assert (await left.ask("status"))["peers"] == []
    left.tun.inject(PING)
    await until(lambda: left.daemon.database.by_owner(1))
    status = await left.ask("status")
    (peer,) = status["peers"]
    assert (peer["peer"], peer["rules"], peer["state"], peer["plane"]) == (
        "right.test",
        ["net"],
        "established",
        "memory",
    )
    assert (status["peers_up"], status["quick"]) == (1, 1)
    answer = await left.ask("sa")
    (main,), (quick,) = answer["main"], answer["quick"]
    assert (main["authenticated_as"], main["role"], main["suite"]) == (
        "right.test",
        "initiator",
        "x25519 aes256gcm sha384",
    )
    assert (quick["local"], quick["remote"], quick["octets_out"]) == (["10.1.0.1"], ["10.2.0.1"], len(PING))
    assert 0 < quick["rekey_in"] < quick["expires_in"] <= 3600
    for match in ("net", "right.test", "127.0.0.2", quick["spi_in"], quick["spi_out"][:6]):
        assert (await left.ask("sa", kind="quick", match=match))["quick"], match


async def test_human_output_of_every_command(sides: Sides) -> None:
    """A key that the daemon and the rendering spell differently is a traceback for the reader."""
    left, _ = sides
    await left.ask("up", name="net")
    for words, expected in (
        (["status"], "right.test"),
        (["sa"], "aes128gcm"),
        (["policy", "show"], "tunnel"),
        (["explain", INSIDE["left"], INSIDE["right"], "tcp/80"], 'secured by rule "net"'),
        (["why"], "nothing has failed"),
        (["reload", "--dry-run"], "no rule differs"),
        (["log"], "debug"),
        (["metrics"], "ikd_ike_sas"),
        (["version"], "protocol 1"),
        (["up", "net"], "is up already"),
        (["rekey", "net"], "rekeyed"),
        (["down", "net"], "deleted"),
    ):
        for form in ([], ["--json"]):
            text = await asyncio.to_thread(ikctl, left.home, *words, *form)
            assert expected in text or form, text


def ikctl(home: Path, *words: str) -> str:
    """The output of a command; it must succeed."""
    command = [
        sys.executable,
        "-c",
        "from ikd.control.cli import main; main()",
        "--socket",
        str(home / "c.sock"),
    ]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


async def test_up_shows_progress_and_ends_with_the_sa(sides: Sides) -> None:
    """`ikctl up` is how people find out whether it works; it must tell each step and not end early."""
    left, _ = sides

    def stream() -> list[Json]:
        with Client(left.home / "c.sock", 30) as client:
            return list(client.stream("up", name="net", timeout=25))

    *progress, answer = await asyncio.to_thread(stream)
    names = [line["event"] for line in progress]
    assert names[0] == "negotiation-started"
    assert names[-1] == "child-established"
    assert "ike-established" in names
    assert answer["spi_in"] == left.happened(ChildEstablished)[0].spi_in
    assert "already" in (await left.ask("up", name="net"))["text"]
    assert len(left.happened(ChildEstablished)) == 1


async def test_up_twice_at_once_makes_one_sa(sides: Sides) -> None:
    """An impatient administrator must not get two of everything."""
    left, _ = sides
    await asyncio.gather(left.ask("up", name="net"), left.ask("up", name="net"))
    assert len((await left.ask("sa"))["quick"]) == 1


async def test_childless_then_the_first_packet_brings_the_child(sides: Sides) -> None:
    """RFC 6023: an IKE SA alone, then a Child SA on it and no second IKE SA."""
    left, right = sides
    answer = await left.ask("up", name="net", childless=True)
    assert "IKE SA" in answer["text"]
    assert not (await left.ask("sa"))["quick"]
    left.tun.inject(PING)
    await arrives(right, PING)
    assert len((await left.ask("sa"))["main"]) == 1


async def test_down_by_every_name(sides: Sides) -> None:
    """A rule, a peer's identity or address, and an SPI; each deletes what it names, at both ends."""
    left, right = sides
    for name in ("net", "right.test", "127.0.0.2", "main", "quick"):
        await left.ask("up", name="net")
        sa = await left.ask("sa")
        target = {"main": sa["main"][0]["spi_i"], "quick": sa["quick"][0]["spi_in"]}.get(name, name)
        answer = await left.ask("down", name=target)
        assert answer["confirmed"], name
        await until(lambda: not right.daemon.database.by_owner(1) and not len(right.daemon.database))
        assert bool(left.daemon.endpoint.associations) == (name == "quick")
        assert bool(right.daemon.endpoint.associations) == (name == "quick")
        await left.ask("down", name="net")
    assert "nothing is up" in (await left.ask("down", name="net"))["text"]


async def test_rekey_by_every_name_loses_no_packet(sides: Sides) -> None:
    """New keys for the rule, the IKE SA and the peer; packets go on, and the numbers are new."""
    left, right = sides
    await left.ask("up", name="net")
    for kind in ("rule", "ike", "peer"):
        before = await left.ask("sa")
        spis = {one["spi_in"] for one in before["quick"] if one["state"] == "mature"}
        (main,) = [one for one in before["main"] if one["state"] == "established"]
        name = {"rule": "net", "ike": main["spi_i"], "peer": "right.test"}[kind]
        await left.ask("rekey", name=name)
        left.tun.inject(PING)
        await arrives(right, PING)
        after = await left.ask("sa")
        new = {one["spi_in"] for one in after["quick"] if one["state"] == "mature"}
        assert (new.isdisjoint(spis), len(new)) == ((kind != "ike"), 1), kind
        mains = {one["spi_i"] for one in after["main"] if one["state"] == "established"}
        assert (main["spi_i"] in mains) == (kind == "rule"), kind
    healthy(left)
    healthy(right)


async def test_names_that_are_nobodys(sides: Sides) -> None:
    """A typing error gets the nearest name and an exit code of its own."""
    left, _ = sides
    error = await refused(left, "no-such-rule", "up", name="nett")
    assert "net" in error.remedy
    error = await refused(left, "no-such-sa", "down", name="nett")
    assert "net" in error.remedy
    await refused(left, "no-such-sa", "rekey", name="net")
    await refused(left, "no-such-rule", "why", name="nett")
    await refused(left, "usage", "up", name="net", timeout=-1)


async def test_up_of_what_is_not_to_be_secured(tmp_path: Path) -> None:
    """Exit code 4: the policy forbids it; trying longer would not help."""
    off = '[[rule]]\nname = "off"\nenabled = false\nremote = "203.0.113.8"\n'
    async with pair(tmp_path, extra=BLOCKED + off) as (left, _):
        for name in ("closed", "off"):
            await refused(left, "refused-by-policy", "up", name=name)


async def test_wrong_key_is_explained_and_then_mended(tmp_path: Path) -> None:
    """`up` exits 3, `why` knows the reason under every name, status points there; a success ends that."""
    async with pair(tmp_path, secret="not the same as the peer has") as (left, right):
        await refused(left, "negotiation-failed", "up", name="net", timeout=25)
        for name in ("net", "127.0.0.2"):
            (failure,) = (await left.ask("why", name=name))["failures"]
            assert failure["notify"] == "AUTHENTICATION_FAILED"
        (failure,) = (await right.ask("why", name="left.test"))["failures"]
        assert "key" in failure["reason"]
        status = await left.ask("status")
        assert [one["state"] for one in status["peers"]] == ["failed"]
        assert any("ikctl why net" in sentence for sentence in status["wrong"])
        good = (right.home / "secrets.toml").read_text().replace("left.test", "right.test")
        (left.home / "secrets.toml").write_text(good)
        await left.ask("reload")
        await left.ask("up", name="net", timeout=25)
        (failure,) = (await left.ask("why", name="net"))["failures"]
        assert failure["mended_ago"] is not None
        assert not any("ikctl why" in sentence for sentence in (await left.ask("status"))["wrong"])


async def test_up_times_out_and_says_what_it_waits_for(tmp_path: Path) -> None:
    """A peer that is silent: the answer comes in time, with what is missing."""
    home = write(tmp_path, "left", free_ports())
    left = await start(home)
    try:
        error = await refused(left, "negotiation-failed", "up", name="net", timeout=0.3)
        assert "IKE_SA_INIT response" in error.message
    finally:
        await left.stop()


async def test_reload_keeps_unchanged_and_ends_changed_rules(sides: Sides) -> None:
    """The reason to reload instead of restarting: only what differs is touched, and a dry run touches
    nothing."""
    left, right = sides
    await left.ask("up", name="net")
    (spi,) = [one["spi_in"] for one in (await left.ask("sa"))["quick"]]
    file = left.home / "policy.toml"
    text = file.read_text()
    file.write_text(text + ANOTHER)
    dry = await left.ask("reload", dry_run=True)
    assert (dry["added"], dry["touched"]) == (["another"], [])
    assert len((await left.ask("policy"))["rules"]) == 1
    await left.ask("reload")
    assert {one["name"] for one in (await left.ask("policy"))["rules"]} == {"net", "another"}
    assert [one["spi_in"] for one in (await left.ask("sa"))["quick"]] == [spi]
    file.write_text(text.replace('name   = "net"', 'name   = "net"\nencrypt = true') + ANOTHER)
    answer = await left.ask("reload")
    assert (answer["changed"], answer["touched"]) == (["net"], [{"id": spi, "rule": "net"}])
    await until(lambda: not len(left.daemon.database) and not len(right.daemon.database))
    assert left.happened(Reloaded)[-1].changed == ("net",)


async def test_bad_files_change_nothing(sides: Sides) -> None:
    """A mistake in any file refuses the whole reload, with every complaint."""
    left, _ = sides
    await left.ask("up", name="net")
    file = left.home / "policy.toml"
    file.write_text(file.read_text().replace("peer ", "pear ") + ANOTHER)
    (left.home / "secrets.toml").chmod(0o644)
    error = await refused(left, "configuration", "reload")
    assert "pear" in error.message
    assert "secrets.toml" in error.message
    assert [one["name"] for one in (await left.ask("policy"))["rules"]] == ["net"]
    assert len((await left.ask("sa"))["quick"]) == 1
    assert len(left.happened(ReloadRefused)[0].complaints) >= 2


async def test_settings_that_wait_for_a_start_are_told(sides: Sides) -> None:
    """Who changes the port and reloads must not believe that the port has changed."""
    left, _ = sides
    file = left.home / "ikd.toml"
    file.write_text(
        file.read_text().replace('level = "debug"', 'level = "error"') + "[limits]\nhalf_open = 7\n"
    )
    file.write_text(file.read_text().replace('backend = "memory"', 'backend = "memory"\nmtu = 1300'))
    answer = await left.ask("reload")
    assert any("dataplane.mtu" in warning and "next start" in warning for warning in answer["warnings"])
    assert left.daemon.endpoint.settings.half_open == 7
    assert left.daemon.log.levels.default == "error"


async def test_stop_deletes_at_the_peer_and_leaves_no_socket(tmp_path: Path) -> None:
    """A peer that keeps SAs of a host that is gone sends into nothing for an hour."""
    async with pair(tmp_path) as (left, right):
        await left.ask("up", name="net")
        await left.stop()
        await until(lambda: not right.daemon.endpoint.associations)
        assert right.happened(IkeClosed)[0].by_peer
        assert not (left.home / "c.sock").exists()


async def test_stop_does_not_wait_for_a_silent_peer(tmp_path: Path) -> None:
    """An update must not hang because a peer is switched off."""
    async with pair(tmp_path) as (left, right):
        await left.ask("up", name="net")
        right.daemon.transport.close()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await left.stop()
        assert loop.time() - began < 15  # repetitions end after minutes


async def test_second_daemon_touches_nothing(sides: Sides) -> None:
    """It must be refused before it takes ports or devices from the first."""
    left, _ = sides
    with pytest.raises(CannotStart, match="another ikd is running"):
        await start(left.home)
    assert (await left.ask("version"))["protocol"] == 1


async def test_occupied_port_is_a_clear_error(tmp_path: Path) -> None:
    """Most hosts that fail to start have another IKE daemon."""
    ports = free_ports()
    first = await start(write(tmp_path, "left", ports))
    home = write(tmp_path / "left", "left", ports)
    try:
        with pytest.raises(CannotStart, match="another IKE daemon"):
            await start(home)
        assert not (home / "c.sock").exists()
    finally:
        await first.stop()


def test_main_says_every_complaint_and_ends_with_78(tmp_path: Path) -> None:
    """What systemd's journal shows when the files have mistakes."""
    (tmp_path / "ikd.toml").write_text('[daemon]\nlisten = ["nowhere"]\n')
    (tmp_path / "policy.toml").write_text('[[rule]]\nnam = "x"\n')
    done = subprocess.run(
        [sys.executable, "-m", "ikd", "--config", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78
    assert "daemon.listen" in done.stderr
    assert "nam" in done.stderr
    assert "Traceback" not in done.stderr


async def test_hostile_octets_are_counted_and_survived(sides: Sides) -> None:
    """Garbage on both ports: the SA goes on, a counter and a line say what happened, the log is not
    flooded."""
    left, right = sides
    await left.ask("up", name="net")
    loop = asyncio.get_running_loop()
    path = left.daemon.endpoint.associations[1].path
    stranger, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    port, nat_port = right.daemon.transport.port, right.daemon.transport.nat_port
    for n in range(400):
        data = bytes((n * 7 + at * n) % 256 for at in range(n % 80))
        stranger.sendto(data, (str(path.peer.address), port))
        stranger.sendto((NON_ESP_MARKER if n % 2 else b"") + data, (str(path.peer.address), nat_port))
    await until(lambda: len(right.happened(DatagramDropped)) >= 300)
    stranger.close()
    left.tun.inject(PING)
    await arrives(right, PING)
    text = (await right.ask("metrics"))["text"]
    dropped = [line for line in text.splitlines() if line.startswith("ikd_datagrams_dropped_total{")]
    assert sum(float(line.split()[-1]) for line in dropped) >= 300
    await until(lambda: "more of datagram-dropped" in right.said.getvalue())
    assert right.said.getvalue().count("dropped a datagram") < 250
    healthy(right)


async def test_bug_in_a_callback_is_told_and_survived(sides: Sides) -> None:
    """An exception of ours must not end the daemon, whichever way it is reached."""
    left, right = sides

    def fault(*_: object) -> object:
        raise ZeroDivisionError("a bug of ours")

    normal = left.daemon.endpoint.tick, left.daemon.plane.engine.outbound
    left.daemon.endpoint.tick = fault  # type: ignore[method-assign,assignment]
    left.daemon.plane.engine.outbound = fault  # type: ignore[method-assign,assignment]
    left.tun.inject(PING)
    left.daemon.driver._tick()
    await until(lambda: len(left.happened(Broken)) >= 2)
    assert "ZeroDivisionError" in left.happened(Broken)[0].traceback
    left.daemon.endpoint.tick, left.daemon.plane.engine.outbound = normal  # type: ignore[method-assign]
    left.tun.inject(PING)
    await arrives(right, PING)


async def test_watch_streams_events(sides: Sides) -> None:
    """What monitoring builds on: the events named, as they happen, and no listener is left when it ends."""
    left, _ = sides

    def watch() -> Json:
        with Client(left.home / "c.sock", 30) as client:
            stream = client.stream("watch", events=["ike-established"])
            next(stream)
            with Client(left.home / "c.sock", 30) as other:
                other.call("up", name="net")
            return next(stream)

    before = len(left.daemon.publisher._listeners)
    line = await asyncio.to_thread(watch)
    assert (line["event"], line["peer"], line["group"]) == ("ike-established", "right.test", "ike")
    assert left.happened(IkeEstablished)
    await until(lambda: len(left.daemon.publisher._listeners) == before)


async def test_keys_are_exported_to_the_owner_alone(sides: Sides, tmp_path: Path) -> None:
    """Off until asked for; then a private file with a line for the IKE SA and one for each direction."""
    left, _ = sides
    file = tmp_path / "keys"
    answer = await left.ask("log-keys", file=str(file))
    assert "read" in answer["warning"]
    assert any(str(file) in sentence for sentence in (await left.ask("status"))["wrong"])
    await left.ask("up", name="net")
    await left.ask("log-keys")
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    quick = (await left.ask("sa"))["quick"][0]
    assert [line.split(",")[3] for line in lines if line.startswith('"IPv4"')] == [
        f'"0x{quick["spi_in"]}"',
        f'"0x{quick["spi_out"]}"',
    ]
    main = (await left.ask("sa"))["main"][0]
    assert any(line.startswith(f"{main['spi_i']},{main['spi_r']},") for line in lines)
    await left.ask("rekey", name="net")
    assert len([line for line in file.read_text().splitlines() if not line.startswith("#")]) == len(lines)


async def test_nobody_there_is_in_why(sides: Sides) -> None:
    """A rule whose tunnel has no address cannot be negotiated for: said by `up` and, for packets, by
    `why`."""
    left, _ = sides
    file = left.home / "policy.toml"
    text = file.read_text().replace('"127.0.0.1"', '"192.0.2.1"')
    file.write_text(text.replace('"127.0.0.2"', '"any"'))
    await left.ask("reload")
    error = await refused(left, "negotiation-failed", "up", name="net")
    assert "only answers" in error.message
    left.tun.inject(PING)
    await until(lambda: left.happened(NegotiationFailed))
    (failure,) = (await left.ask("why", name="net"))["failures"]
    assert "only answers" in failure["reason"]


async def test_a_pair_is_replaced_however_much_is_noticed(sides: Sides) -> None:
    """A worker that died makes a notice for each of its pairs, once: of more than fit into the queue the rest
    would never have been sent on again."""
    left, right = sides
    left.tun.inject(PING)
    await arrives(right, PING)
    (one,) = left.daemon.database.pairs()
    for n in range(MOST_NOTICES):
        left.daemon.driver.notice(Expire(one.inbound.spi ^ (n + 1), True, False, "restart"))
    left.daemon.driver.notice(Expire(one.inbound.spi, True, False, "restart"))
    await until(lambda: len(left.happened(ChildEstablished)) == 2)
    healthy(left)


async def test_a_second_watch_takes_the_place_of_the_first(sides: Sides) -> None:
    """Whoever asks again and again on one connection would be told everything as often."""
    left, _ = sides
    before = len(left.daemon.publisher._listeners)

    def watch() -> int:
        with Client(left.home / "c.sock", 20) as client:
            for _ in range(20):
                assert next(client.stream("watch", events=["reloaded"])) == {"events": ["reloaded"]}
            return len(left.daemon.publisher._listeners)

    assert await asyncio.to_thread(watch) == before + 1
    await until(lambda: len(left.daemon.publisher._listeners) == before)
    healthy(left)
