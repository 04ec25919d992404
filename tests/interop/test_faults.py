"""What a host does to a daemon: it is suspended, its disks are full, somebody deletes the TUN device or takes
a key away. Each is survived, told, and heals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import lab
from support.capture import Capture
from support.daemon import IKD, ROOT, Ikd
from support.lab import Lab
from support.scenario import Twins, eventually, tunnel_policy, twins

from ikd.state_file import FILE
from offload.workers.pool import FIRST_PAUSE

pytestmark = pytest.mark.interop

DATA = bytes(range(256)) * 1024
DROP = b"marker-in-clear-text"
SIDES = lab.INSIDE_LEFT, lab.INSIDE_RIGHT

# Runs where CLOCK_BOOTTIME is far ahead of CLOCK_MONOTONIC, as on a host that was suspended.
AHEAD = 100_000
CLOCKS = """
import asyncio, os, time
from ikd.loop import Loop
from offload._native import Table
from offload.ledger import Ledger
from sadb import clock

async def now():
    return asyncio.get_running_loop().time()

with asyncio.Runner(loop_factory=Loop) as runner:
    loop = runner.run(now())
ledger = Ledger(1)
Table(ledger.memory, os.urandom(16)).count(0, True, 1, 1)
print(time.monotonic(), clock.now(), loop, ledger.usage(0, True).last)
"""


def test_the_daemon_and_both_engines_have_one_clock() -> None:
    """When an SA was used last is written by a worker and compared by the daemon: on a host that has slept,
    two clocks would make it look idle, or in use for ever."""
    done = subprocess.run(
        ["unshare", "--time", "--fork", "--boottime", str(AHEAD), sys.executable, "-c", CLOCKS],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    awake, *ours = map(float, done.stdout.split())
    assert all(one - awake == pytest.approx(AHEAD, abs=10) for one in ours)


# The TUN device ------------------------------------------------------------------------------------------


def tunnel(hosts: Lab, place: Path, **settings: dict[str, object]) -> Twins:
    """Two daemons with a tunnel between their networks."""
    left = tunnel_policy(lab.LEFT, lab.RIGHT, peer="right.lab")
    right = tunnel_policy(
        lab.RIGHT, lab.LEFT, local_net=lab.NET_RIGHT, remote_net=lab.NET_LEFT, peer="left.lab"
    )
    return twins(hosts, place, left, right, settings=settings)


def check(both: Twins) -> None:
    """A quarter of a megabyte there and back."""
    near, far = SIDES
    assert lab.tcp(both.lab.left, both.lab.right, far, DATA, near) == DATA


@pytest.mark.parametrize(("engine", "workers"), [("native", 2), ("python", 1)])
def test_a_deleted_device_is_made_anew(hosts: Lab, place: Path, engine: str, workers: int) -> None:
    """Whoever deletes it, a script that tidies up or a network manager: traffic goes on by itself, nothing
    has left in the clear, and everything that leads into the device is there again."""
    near, far = SIDES
    with tunnel(hosts, place, dataplane={"engine": engine, "workers": workers}) as both:
        check(both)
        before = {one["spi_out"] for one in both.left.quick()}
        with Capture(hosts.right, "e0", place / "wire.pcap") as wire:
            with lab.dripping(hosts.left, hosts.right, far, DROP, near):
                lab.ip("-n", hosts.left, "link", "del", "ikd0")
                eventually(lambda: "TUN device was deleted" in both.left.log(), "it is told")
            eventually(lambda: {one["spi_out"] for one in both.left.quick()}.isdisjoint(before), "new pairs")
            check(both)
        assert not wire.holds(DROP)
        assert not wire.holds(DATA[:256])
        assert "internal error" not in both.left.log()
        assert "cannot be made" not in both.left.log()


def test_a_device_that_cannot_be_made_is_told_and_waited_for(hosts: Lab, place: Path) -> None:
    """Somebody has taken its name: that is told, nothing leaves in the clear, and once the name is free it
    goes on."""
    near, far = SIDES
    with tunnel(hosts, place) as both:
        check(both)
        with Capture(hosts.right, "e0", place / "wire.pcap") as wire:
            commands = "link del ikd0\nlink add ikd0 type veth peer name other\n"
            done = subprocess.run(
                ["ip", "-n", hosts.left, "-batch", "-"], input=commands, text=True, check=True
            )
            assert done.returncode == 0
            eventually(lambda: "no packets are carried" in both.left.log(), "it is told")
            lab.ping(hosts.left, far, near, count=3, wait=0.2)
            assert both.left.log().count("no packets are carried") == 1
            lab.ip("-n", hosts.left, "link", "del", "ikd0")
            eventually(
                lambda: "TUN device was deleted" in both.left.log(), "it is back", 60 * FIRST_PAUSE + 10
            )
            check(both)
        assert not wire.holds(DATA[:64])
        assert not [one for one in wire.frames() if one[12:14] == b"\x08\0" and one[23] == 1], (
            "a ping in the clear"
        )


# Disks ---------------------------------------------------------------------------------------------------


def on_small_disk(daemon: Ikd, *directories: str) -> Ikd:
    """The daemon in a mount namespace of its own, with small disks at these places below its directory; what
    it writes to standard output goes to `log/out`, if that is one of them."""
    mounts = " && ".join(
        f"mkdir -p {daemon.directory / one} && mount -t tmpfs -o size=64k tmpfs {daemon.directory / one}"
        for one in directories
    )
    output = f">> {daemon.directory}/log/out 2>&1" if "log" in directories else ""
    script = f'mount --make-rprivate / && {mounts} && exec "$@" {output}'
    daemon.program = ("unshare", "-m", "sh", "-c", script, "sh", *IKD)
    return daemon


def inside(daemon: Ikd, *parts: str) -> Path:
    """A path as the daemon sees it."""
    return Path(f"/proc/{daemon.pid}/root", str(daemon.directory).lstrip("/"), *parts)


def fill(disk: Path) -> Path:
    """Leave no room on a disk; the file that takes it."""
    waste = disk / "waste"
    with waste.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return waste


# The daemon, which writes its state more often than it does: how often is nobody's setting.
EAGER = "import ikd.daemon as daemon; daemon.KEEP_EVERY = 0.2; from ikd.__main__ import main; main()"


def test_full_disks_stop_nothing(hosts: Lab, place: Path) -> None:
    """The disk of the state, of the log and of exported keys is full: negotiating and traffic go on, what
    could not be written is told, and when there is room it is written again."""
    with tunnel(hosts, place) as both:
        both.left.stop()
        left = on_small_disk(both.left, "state", "log", "keys")
        left.program = (*left.program[: -len(IKD)], sys.executable, "-c", EAGER)
        left.start()
        check(both)
        left.ctl("log", "--keys", str(left.directory / "keys" / "file"))
        waste = [fill(inside(left, one)) for one in ("state", "log", "keys")]

        def told() -> bool:
            left.ask("rekey", name="net")  # which is written to both
            wrong = "\n".join(left.ask("status")["wrong"])
            state, log = (f"{one} cannot be written: No space left" in wrong for one in (FILE, "the log"))
            return state and log and "keys of new SAs" not in wrong

        eventually(told, "all three are told of")
        check(both)
        for one in waste:
            one.unlink()
        left.ctl("rekey", "net")
        log = inside(left, "log", "out")
        eventually(lambda: "lines are missing here" in log.read_text(errors="replace"), "the log goes on")
        eventually(
            lambda: "state.json is written again" in log.read_text(errors="replace"), "so does the state"
        )
        assert not left.ask("status")["wrong"]
        assert inside(left, "state", FILE).stat().st_size > 100
        assert not [one for one in inside(left, "state").iterdir() if one.name.startswith(".")]
        assert "internal error" not in log.read_text(errors="replace")


def test_a_capture_that_cannot_be_written(hosts: Lab, place: Path) -> None:
    """It ends with the reason and without a traceback, and what it has can be read: as far as a packet's
    end."""
    with tunnel(hosts, place) as both:
        check(both)
        target = place / "wire.pcap"
        arguments = [sys.executable, "-c", "from ikd.control.cli import main; main()"]
        arguments += ["--socket", str(both.left.socket), "capture", "net", str(target)]
        with subprocess.Popen(
            ["ip", "netns", "exec", hosts.left, "sh", "-c", 'ulimit -f 100; exec "$@"', "sh", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as made:
            assert made.stdout is not None
            output = ""
            while "end with Ctrl-C" not in output and (line := made.stdout.readline()):
                output += line
            check(both)
            output += made.stdout.read()
        assert made.returncode == 1
        assert "cannot write the capture: File too large" in output
        assert "Traceback" not in output
        data, at = target.read_bytes(), 24
        while at < len(data):
            at += 16 + int.from_bytes(data[at + 8 : at + 12], sys.byteorder)
        assert at == len(data) > 10_000


# Keys ----------------------------------------------------------------------------------------------------


def test_a_key_that_cannot_be_read(hosts: Lab, place: Path) -> None:
    """At the start it is a clear error; at a reload what runs goes on with what it has."""
    with tunnel(hosts, place) as both:
        check(both)
        secrets = both.left.directory / "secrets.toml"
        text = secrets.read_text()
        secrets.unlink()
        secrets.mkdir()  # root may read what has no mode
        reload = both.left.try_ctl("reload")
        assert reload.returncode == 1
        assert f"{secrets}: Is a directory" in reload.stderr
        check(both)
        both.left.ctl("rekey", "net")
        both.left.stop()
        once = both.left.run_once()
        assert once.returncode == 78
        assert f"{secrets}: Is a directory" in once.stderr
        assert "Traceback" not in once.stderr
        secrets.rmdir()
        secrets.write_text(text)
        secrets.chmod(0o644)
        assert f"chmod 600 {secrets}" in both.left.run_once().stderr
        secrets.chmod(0o600)
        both.left.start()
        check(both)
