"""Containers without a registry: podman, with an image of a megabyte that borrows the host's `/usr`.

Python, `ip`, `ping` and `nft` in the container are the host's own, mounted read-only; so are the virtual
environment and this source tree, at the same paths. Everything podman needs to know stands in a configuration
of ours.
"""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from support import leftovers
from support.alone import subnet
from support.hosts import Container

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/ikd-host-usr"
TARGET = "basic.target"
CAPABILITIES = "NET_ADMIN,NET_RAW,NET_BIND_SERVICE"
_numbers = itertools.count()
WAIT = ("sleep", "infinity")
LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
COPIED = [
    "passwd",
    "group",
    "nsswitch.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "os-release",
    "protocols",
    "services",
    "alternatives",
    "ssl/openssl.cnf",
    "localtime",
    "python3",
    "iproute2",
    "gai.conf",
    "host.conf",
    "terminfo",
]
EMPTY = [
    "usr",
    "etc",
    "var/log",
    "var/tmp",
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "root",
    "opt",
    "mnt",
    "home",
    "srv",
]


class Podman:
    """podman with our configuration; internal networks and the containers on them, removed together."""

    def __init__(self, directory: Path) -> None:
        self.network = f"ikdnet{os.getpid()}n{next(_numbers)}"
        self.subnet = subnet()
        self._containers: list[str] = []
        self._networks: list[str] = []
        configuration = directory / "containers.conf"
        configuration.write_text(_configuration())
        self.environment = os.environ | {"CONTAINERS_CONF": str(configuration)}

    def full(self, name: str) -> str:
        """A container's name as podman knows it."""
        return f"{self.network}-{name}"

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 120) -> str:
        """One podman command's output; raises with its message when it fails."""
        done = self.attempt(*arguments, timeout=timeout)
        if check and done.returncode != 0:
            raise RuntimeError(f"podman {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def attempt(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """One podman command, whatever its status."""
        return subprocess.run(
            ["podman", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def works(self, *arguments: str) -> bool:
        """Whether a podman command succeeds."""
        return self.attempt(*arguments).returncode == 0

    def logs(self, full: str) -> str:
        """What the first process of a container has said, on either stream."""
        done = self.attempt("logs", full, timeout=20)
        return done.stdout + done.stderr

    def start(self) -> Podman:
        """Make image and network where they are missing; raises when this machine cannot."""
        leftovers.remove_containers(self)
        if not self.works("image", "exists", IMAGE):
            self._make_image()
        self.add_network(self.network, f"{self.subnet}.0/24")
        return self

    def add_network(self, name: str, prefix: str) -> None:
        """A network that leads nowhere else."""
        self._networks.append(name)
        self("network", "create", "--internal", "--subnet", prefix, name)

    def run(
        self,
        name: str,
        number: int,
        *mounts: Path,
        options: Sequence[str] = (),
        command: Sequence[str] = WAIT,
    ) -> str:
        """Start a container, which waits unless told what to do; returns its address. It has three
        capabilities and nothing writable but /run, /tmp and `mounts`."""
        address = f"{self.subnet}.{number}"
        self.run_at(name, self.network, address, *mounts, options=options, command=command)
        return address

    def run_at(
        self,
        name: str,
        network: str,
        address: str,
        *mounts: Path,
        options: Sequence[str] = (),
        command: Sequence[str] = WAIT,
    ) -> None:
        """The same on any of the networks."""
        read_only = {Path("/usr"), ROOT, Path(sys.prefix), Path(sys.base_prefix)}
        volumes = [
            f"--volume={path}:{path}:ro"
            for path in sorted(read_only)
            if path == Path("/usr") or not path.is_relative_to("/usr")
        ]
        self._run(
            *(name, network, address, "--cap-drop", "ALL", "--cap-add", CAPABILITIES),
            *("--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/run", "--tmpfs", "/tmp"),
            *volumes,
            *(f"--volume={path}:{path}" for path in mounts),
            *(f"--env=PYTHONPATH={ROOT}", *options, IMAGE, *command),
        )

    def boot(self, name: str, number: int, files: Mapping[str, Path]) -> str:
        """Start a container whose first process is systemd, with what podman gives a container and what
        systemd needs to shut services in; returns its address. `files` are mounted at the paths that are
        their keys. Python, packages and this source tree are in /opt, where hardened services see them."""
        address, site = f"{self.subnet}.{number}", sysconfig.get_path("purelib")
        places = {"/usr": "/usr", "/opt/python": sys.base_prefix, "/opt/site": site, "/opt/ikd": ROOT}
        self._run(
            *(name, self.network, address, "--systemd=always", "--cap-add", f"SYS_ADMIN,{CAPABILITIES}"),
            *(f"--volume={Path(path).resolve()}:{there}:ro" for there, path in places.items()),
            *(f"--volume={path}:{there}" for there, path in files.items()),
            *(IMAGE, "/lib/systemd/systemd", f"--unit={TARGET}"),
        )
        return address

    def _run(self, name: str, network: str, address: str, *arguments: str) -> None:
        full = self.full(name)
        self._containers.append(full)
        named = ("--name", full, "--network", network, "--ip", address, "--device", "/dev/net/tun")
        self("run", "--detach", "--pull=never", *named, *arguments)

    def connect(self, name: str, network: str, address: str) -> None:
        """One more link of a container."""
        self("network", "connect", "--ip", address, network, self.full(name))

    def inspect(self, name: str, wanted: str) -> str:
        """What podman says of a container, by a template such as `{{.State.Pid}}`."""
        return self("inspect", "--format", wanted, self.full(name)).strip()

    def host(self, name: str, directory: Path) -> Container:
        """A running container as a machine of a test; `directory` is one of its mounts."""
        pid, key = self.inspect(name, "{{.State.Pid}} {{.NetworkSettings.SandboxKey}}").split()
        return Container(self, name, Path(key).name, int(pid), directory)

    def execute(self, name: str, *command: str, check: bool = True) -> str:
        """A command in a container, with this source tree importable; its output."""
        return self("exec", self.full(name), *command, check=check)

    def background(self, name: str, *command: str) -> None:
        """A command in a container that goes on by itself."""
        self("exec", "--detach", self.full(name), *command)

    def close(self) -> None:
        """Remove containers and networks; the image stays for the next time."""
        if self._containers:
            self._remove(*self._containers)
        for name in self._networks:
            self("network", "rm", "--force", name, check=False)

    def remove(self, *names: str) -> None:
        """Remove some of the containers."""
        self._remove(*map(self.full, names))

    def _remove(self, *full: str) -> None:
        self("rm", "--force", "--ignore", "--time", "0", *full, check=False)

    def __enter__(self) -> Podman:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_image(self) -> None:
        """A skeleton of empty directories, links into /usr and a few files of /etc; no keys, no password
        hashes."""
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            for one in EMPTY:
                (root / one).mkdir(parents=True, exist_ok=True)
            for link in LINKS:
                if (host := Path("/") / link).is_symlink():
                    (root / link).symlink_to(host.readlink())
            for one in COPIED:
                source, target = Path("/etc") / one, root / "etc" / one
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, target, symlinks=True)
                elif source.exists():
                    shutil.copy2(source, target, follow_symlinks=source.name != "localtime")
            archive = shutil.make_archive(str(root.with_suffix("")) + "-image", "tar", root)
            try:
                self("import", "--change", 'CMD ["/bin/sh"]', archive, IMAGE)
            finally:
                Path(archive).unlink()


def _configuration() -> str:
    """containers.conf: a runtime that starts here, and limits this process may hand on."""
    hybrid = not Path("/sys/fs/cgroup/cgroup.controllers").exists()
    runtime = "runc" if hybrid or shutil.which("crun") is None else "crun"
    files, processes = (_limit(one) for one in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    return f"""\
[engine]
runtime = "{runtime}"
cgroup_manager = "cgroupfs"
events_logger = "file"

[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile={min(1024, files)}:{files}", "nproc={processes}:{processes}"]

[network]
network_backend = "netavark"
"""


def _limit(which: int) -> int:
    """A hard limit of ours, at most 16384: without CAP_SYS_RESOURCE a container cannot get more than we
    have."""
    hard = resource.getrlimit(which)[1]
    return 16384 if hard == resource.RLIM_INFINITY else min(hard, 16384)


def why_not(directory: Path) -> str:
    """Why containers cannot be used here, or nothing: one is started and thrown away."""
    if shutil.which("podman") is None:
        return "podman is not installed"
    try:
        with Podman(directory) as podman:
            podman.run("probe", 9)
            podman.execute("probe", sys.executable, "-c", "import cryptography")
            podman.execute("probe", "ip", "tuntap", "add", "dev", "t0", "mode", "tun")
    except (RuntimeError, subprocess.SubprocessError, OSError) as error:
        return str(error)
    return ""
