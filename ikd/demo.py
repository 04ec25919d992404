"""Shell. `make demo`: two hosts, one policy each, and a look at what is on the wire between them.

Each host is a network namespace with an `ikd` started from `conf/demo/`; a ping starts the negotiation, TCP
follows, and a raw socket beside the left daemon counts what leaves and enters. Without root or TUN the same
two daemons run in this process on loopback, with packet devices in memory (`ikd.demo_memory`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pyroute2.netns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from ikd.control.client import Client
from ikd.control.protocol import ControlError
from ikd.demo_memory import with_memory
from ikd.demo_steps import MARKER, SIDES, DemoFailed, Seen, Steps, ikctl, judge, prepare

MEGABYTES: Final = 4
PORT: Final = 8080
ETH_P_ALL: Final = 3
PATIENCE: Final = 20.0


# The hosts -----------------------------------------------------------------------------------------------


def ip(*arguments: str) -> None:
    """One `ip` command; raises `DemoFailed` with its message."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def why_not() -> str:
    """Why namespaces cannot be used here, or nothing. Tried rather than guessed."""
    if shutil.which("ip") is None or shutil.which("ping") is None:
        return "iproute2 and ping are not installed"
    if os.geteuid() != 0:
        return "not root"
    probe = f"ikd-probe-{os.getpid()}"
    try:
        ip("netns", "add", probe)
    except DemoFailed as error:
        return str(error)
    try:
        ip("-n", probe, "tuntap", "add", "dev", "t0", "mode", "tun")
    except DemoFailed as error:
        return str(error)
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return ""


@contextlib.contextmanager
def namespaces() -> Iterator[dict[str, str]]:
    """A namespace for each side, joined by a link `e0`; gone afterwards, whatever happens."""
    names = {side: f"ikd-demo-{os.getpid()}-{side}" for side in SIDES}
    try:
        for name in names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        left, right = names.values()
        ip("link", "add", "e0", "netns", left, "type", "veth", "peer", "name", "e0", "netns", right)
        for side, name in names.items():
            ip("-n", name, "addr", "add", f"{SIDES[side]}/24", "dev", "e0")
            ip("-n", name, "link", "set", "e0", "up")
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def socket_in(namespace: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in a namespace; a thread enters it, since the namespace is the thread's."""
    made: list[socket.socket] = []

    def make() -> None:
        pyroute2.netns.setns(namespace)
        made.append(socket.socket(family, kind, protocol))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


@contextlib.contextmanager
def daemon(namespace: str, home: Path) -> Iterator[Path]:
    """An ikd in a namespace; yields its control socket once it answers."""
    control = home.parent / f"{home.name}.sock"
    log = home / "log"
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "ikd", "--config", str(home)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not answers(control):
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed(f"ikd on {home.name} does not start")
            time.sleep(0.02)
        yield control
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(control: Path) -> bool:
    """Whether a daemon is behind a control socket."""
    try:
        with Client(control, 5) as client:
            client.call("version")
    except ControlError:
        return False
    return True


# The traffic ---------------------------------------------------------------------------------------------


def ping(namespace: str, destination: str, count: int) -> list[float]:
    """Round trips in milliseconds; raises `DemoFailed` when one is missing."""
    arguments = ["-n", "-c", str(count), "-i", "0.2", "-W", "10", destination]
    command = ["ip", "netns", "exec", namespace, "ping", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    times = [float(one) for one in re.findall(r"time=([\d.]+) ms", done.stdout)]
    if len(times) < count:
        raise DemoFailed(f"{len(times)} of {count} pings were answered:\n{done.stdout}{done.stderr}")
    return times


def transfer(client: str, server: str, data: bytes) -> float:
    """Send `data` over TCP to an echo server on the right host, check every octet of the answer; seconds."""
    with (
        socket_in(server, socket.AF_INET, socket.SOCK_STREAM) as listener,
        socket_in(client, socket.AF_INET, socket.SOCK_STREAM) as sender,
    ):
        for one in (listener, sender):
            one.settimeout(PATIENCE)
        listener.bind((SIDES["right"], PORT))
        listener.listen()
        threads = [threading.Thread(target=echo, args=(listener,), daemon=True)]
        threads[0].start()
        began = time.monotonic()
        sender.connect((SIDES["right"], PORT))
        threads.append(threading.Thread(target=send, args=(sender, data), daemon=True))
        threads[1].start()
        received = bytearray()
        while part := sender.recv(1 << 16):
            received += part
        took = time.monotonic() - began
        for thread in threads:
            thread.join(PATIENCE)
    if bytes(received) != data:
        raise DemoFailed(f"{len(data)} octets were sent, {len(received)} came back, or they differ")
    return took


def send(sender: socket.socket, data: bytes) -> None:
    """Everything, then the end of the stream."""
    with contextlib.suppress(OSError):
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)


def echo(listener: socket.socket) -> None:
    """Serve one connection: send back what comes."""
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            while part := connection.recv(1 << 16):
                connection.sendall(part)


# The wire ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(namespace: str) -> Iterator[Seen]:
    """Look at every frame of a namespace's link while the block runs."""
    seen = Seen()
    stop = threading.Event()
    link = socket_in(namespace, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    link.bind(("e0", ETH_P_ALL))
    link.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE: nothing may escape the count
    link.settimeout(0.1)

    def read() -> None:
        while True:
            try:
                seen.take(link.recv(1 << 16))
            except TimeoutError:
                if stop.is_set():
                    return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(5)
        link.close()


# The whole -----------------------------------------------------------------------------------------------


def with_namespaces(steps: Steps, directory: Path) -> None:
    """The real thing: two namespaces, two processes, TUN devices."""
    homes = prepare(directory)
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(namespaces())
        steps.done(
            "two hosts, [b]left[/b] 192.0.2.1 and [b]right[/b] 192.0.2.2, a link between them, "
            "a certificate for each"
        )
        seen = stack.enter_context(watching(names["left"]))
        controls = {side: stack.enter_context(daemon(names[side], homes[side])) for side in SIDES}
        steps.done("an [b]ikd[/b] runs on each, from these files:")
        for home in homes.values():
            steps.policy(home)
        first, *others = ping(names["left"], SIDES["right"], 4)
        steps.done(
            f"the first ping waited for the negotiation and was answered after [b]{first:.0f} ms[/b], "
            f"the next after {min(others):.1f} ms"
        )
        data = MARKER * (MEGABYTES * 1_000_000 // len(MARKER))
        took = transfer(names["left"], names["right"], data)
        rate = 2 * len(data) * 8 / took / 1e6
        steps.done(
            f"TCP: {len(data) / 1e6:.0f} MB there and back, every octet right, in {took:.1f} s "
            f"({rate:.0f} Mbit/s)"
        )
        time.sleep(0.3)  # the last frames reach the raw socket
        judge(steps, seen, len(data) // len(MARKER))
        for side, control in controls.items():
            steps.output(f"ikctl status      (on {side})", ikctl(control, "status"))
        steps.console.print()
    steps.done("both daemons told each other goodbye; hosts, devices and files are gone")


def interrupted(*_: Any) -> None:
    """SIGTERM and SIGINT alike unwind everything that was made."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the demonstration; the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    steps = Steps(console)
    reason = "--memory was given" if "--memory" in sys.argv[1:] else why_not()
    run: Callable[[Steps, Path], None] = with_namespaces
    if reason:
        console.print(
            f"Without network namespaces ({reason}): the same two daemons run on loopback, "
            "with packet devices in memory instead of TUN."
        )
        run = with_memory
    with tempfile.TemporaryDirectory(prefix="ikd-demo-") as name:
        try:
            run(steps, Path(name))
        except KeyboardInterrupt:
            console.print("stopped; everything is cleaned up")
            return 130
        except DemoFailed as error:
            console.print(Text(f"failed: {error}", style="bold red"))
            for log in sorted(Path(name).glob("*/log")):
                console.print(
                    Panel(log.read_text(errors="replace")[-4000:], title=f"log of {log.parent.name}")
                )
            return 1
    console.print(
        f"\nThat took {steps.elapsed():.1f} s. Next: [b]docs/operator.md[/b] for two real hosts, "
        "[b]docs/policy.md[/b] for the rules."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
