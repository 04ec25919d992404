"""xl2tpd in network namespaces: an L2TP server (LNS) and its callers (LAC), each with files of its own.

The sessions carry PPP. Where the kernel has it, pppd runs in them and they are pinged through; else
`support.ppp_frames` stands in pppd's place, in the daemon's own mount namespace only, and frames go through
them and back.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support import lab
from support.scenario import eventually

TOOLS = ("xl2tpd", "pppd")
PORT = 1701
INSIDE = "10.9.0.1"  # the server within PPP

_LNS = """\
[global]
listen-addr = {address}
port = {port}
force userspace = {userspace}
access control = no
[lns default]
ip range = 10.9.0.10-10.9.0.20
local ip = {inside}
require authentication = no
name = lns
length bit = yes
pppoptfile = {options}
"""
_LAC = """\
[global]
listen-addr = {address}
port = {port}
force userspace = {userspace}
[lac lab]
lns = {server}
redial = yes
redial timeout = 1
require authentication = no
length bit = yes
pppoptfile = {options}
"""
_OPTIONS = "noauth\nnodefaultroute\nnoccp\nmtu 1280\nmru 1280\nipcp-accept-local\nipcp-accept-remote\n"


def kernel_ppp() -> bool:
    """Whether pppd can work here: the device can be opened, not only found."""
    try:
        os.close(os.open("/dev/ppp", os.O_RDWR))
    except OSError:
        return False
    return True


class Xl2tpd:
    """One xl2tpd. With `server` it calls that address, else it is called."""

    def __init__(
        self,
        namespace: str,
        directory: Path,
        address: str,
        *,
        server: str = "",
        port: int = PORT,
        name: str = "",
    ) -> None:
        self.namespace, self.directory, self.name = namespace, directory, name or namespace
        self.server = server
        self.log_file = directory / "xl2tpd.log"
        self.frames = directory / "frames"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        options = directory / "options"
        options.write_text(_OPTIONS)
        words = {"address": address, "port": port, "options": options, "server": server, "inside": INSIDE}
        # a kernel may have L2TP sessions and no PPP for us, as in a container
        words["userspace"] = "no" if kernel_ppp() else "yes"
        (directory / "xl2tpd.conf").write_text((_LAC if server else _LNS).format_map(words))
        (directory / "secrets").touch(mode=0o600)
        stand_in = directory / "pppd"
        program = Path(__file__).with_name("ppp_frames.py")
        stand_in.write_text(f"#!/bin/sh\nexec {sys.executable} {program}\n")
        stand_in.chmod(0o755)

    def start(self) -> Xl2tpd:
        """Start it; returns when it listens."""
        files = {"-c": "xl2tpd.conf", "-s": "secrets", "-p": "pid", "-C": "control"}
        arguments = " ".join(f"{option} {self.directory / file}" for option, file in files.items())
        command = f"exec xl2tpd -D {arguments}"
        if not kernel_ppp():
            # the mount is gone with the namespace that `ip netns exec` makes for the command
            command = f'mount --bind {self.directory / "pppd"} "$(readlink -f /usr/sbin/pppd)" && {command}'
        role = "caller" if self.server else "called"
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "sh", "-c", command],
                env=os.environ
                | {"FRAMES_NAME": self.name, "FRAMES_RECORD": str(self.frames), "FRAMES_ROLE": role},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        eventually(lambda: "Listening on IP address" in self.log() or self._ended(), "xl2tpd listens")
        assert not self._ended(), self.log()
        return self

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def stop(self) -> None:
        """End it, by its pid; its sessions end with it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def __enter__(self) -> Xl2tpd:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self) -> str:
        """Everything it wrote."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def _say(self, command: str) -> None:
        with (self.directory / "control").open("w") as pipe:
            pipe.write(f"{command} lab\n")

    def dial(self) -> None:
        """Call the server; returns when the session is there on this side."""
        before = self.calls()
        self._say("c")
        eventually(lambda: self.calls() > before, f"{self.name} has a session")

    def hang_up(self) -> None:
        """End the call; it dials no more by itself."""
        self._say("d")

    def calls(self) -> int:
        """How many sessions there have been."""
        return len(re.findall(r"Call established with", self.log()))

    def peers(self) -> list[tuple[str, int]]:
        """Address and port of the other end of every control connection there has been."""
        found = re.findall(r"Connection established to ([\d.]+), (\d+)\.", self.log())
        return [(address, int(port)) for address, port in found]

    def carries(self, count: int = 5, seconds: float = 30) -> None:
        """Wait until the session has carried data to the server and back this often from now on."""
        if kernel_ppp():
            once = ("ping", "-n", "-c", "1", "-W", "1", INSIDE)  # fails while there is no route to it
            eventually(lambda: lab.run(self.namespace, *once).returncode == 0, "PPP is up", seconds)
            pinged = lab.ping(self.namespace, INSIDE, count=count)
            assert pinged.received == count, pinged
            return
        before = len(self.echoes())
        eventually(lambda: len(self.echoes()) >= before + count, f"{self.name} gets its frames back", seconds)
        strangers = [echo for echo in self.echoes() if not echo.endswith(f" of {self.name}")]
        assert not strangers, f"{self.name} got frames of others: {strangers[:3]}"

    def echoes(self) -> list[str]:
        """The frames that came back, where the kernel has no PPP."""
        return self.frames.read_text().splitlines() if self.frames.exists() else []
