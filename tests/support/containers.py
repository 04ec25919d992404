"""Containers without a registry: podman, with an image of a megabyte that borrows the host's `/usr`.

Python, `ip`, `ping` and `nft` in the container are the host's own, mounted read-only; so are the virtual
environment and this source tree, at the same paths. Everything podman needs to know stands in a configuration
of ours.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/ikd-host-usr"
TARGET = "basic.target"
CAPABILITIES = "NET_ADMIN,NET_RAW,NET_BIND_SERVICE"
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
    """podman with our configuration; one internal network, and the containers on it, removed together."""

    def __init__(self, directory: Path) -> None:
        number = os.getpid()
        self.network = f"ikdnet{number}"
        self.subnet = f"198.{18 + number // 256 % 2}.{number % 256}"  # of the range for benchmarks
        self._containers: list[str] = []
        configuration = directory / "containers.conf"
        configuration.write_text(_configuration())
        self.environment = os.environ | {"CONTAINERS_CONF": str(configuration)}

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """One podman command's output; raises with its message when it fails."""
        done = self.attempt(*arguments)
        if check and done.returncode != 0:
            raise RuntimeError(f"podman {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One podman command, whatever its status."""
        return subprocess.run(
            ["podman", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self) -> Podman:
        """Make image and network where they are missing; raises when this machine cannot."""
        if subprocess.run(["podman", "image", "exists", IMAGE], env=self.environment, check=False).returncode:
            self._make_image()
        self("network", "create", "--internal", "--subnet", f"{self.subnet}.0/24", self.network)
        return self

    def run(self, name: str, number: int, *mounts: Path) -> str:
        """Start a container that waits; returns its address. It has three capabilities and nothing writable
        but /run, /tmp and `mounts`."""
        read_only = {Path("/usr"), ROOT, Path(sys.prefix), Path(sys.base_prefix)}
        volumes = [
            f"--volume={path}:{path}:ro"
            for path in sorted(read_only)
            if path == Path("/usr") or not path.is_relative_to("/usr")
        ]
        return self._run(
            *(name, number, "--cap-drop", "ALL", "--cap-add", CAPABILITIES),
            *("--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/run", "--tmpfs", "/tmp"),
            *volumes,
            *(f"--volume={path}:{path}" for path in mounts),
            *(IMAGE, "sleep", "infinity"),
        )

    def boot(self, name: str, number: int, files: Mapping[str, Path]) -> str:
        """Start a container whose first process is systemd, with what podman gives a container and what
        systemd needs to shut services in; returns its address. `files` are mounted at the paths that are
        their keys. Python, packages and this source tree are in /opt, where hardened services see them."""
        site = sysconfig.get_path("purelib")
        places = {"/usr": "/usr", "/opt/python": sys.base_prefix, "/opt/site": site, "/opt/ikd": ROOT}
        return self._run(
            *(name, number, "--systemd=always", "--cap-add", f"SYS_ADMIN,{CAPABILITIES}"),
            *(f"--volume={Path(path).resolve()}:{there}:ro" for there, path in places.items()),
            *(f"--volume={path}:{there}" for there, path in files.items()),
            *(IMAGE, "/lib/systemd/systemd", f"--unit={TARGET}"),
        )

    def _run(self, name: str, number: int, *arguments: str) -> str:
        full = f"{self.network}-{name}"
        self._containers.append(full)
        address = f"{self.subnet}.{number}"
        named = ("--name", full, "--network", self.network, "--ip", address, "--device", "/dev/net/tun")
        self("run", "--detach", "--pull=never", *named, *arguments)
        return address

    def execute(self, name: str, *command: str, check: bool = True) -> str:
        """A command in a container, with this source tree importable; its output."""
        return self("exec", f"--env=PYTHONPATH={ROOT}", f"{self.network}-{name}", *command, check=check)

    def background(self, name: str, *command: str) -> None:
        """A command in a container that goes on by itself."""
        self("exec", "--detach", f"--env=PYTHONPATH={ROOT}", f"{self.network}-{name}", *command)

    def close(self) -> None:
        """Remove containers and network; the image stays for the next time."""
        for name in self._containers:
            self("rm", "--force", "--time", "0", name, check=False)
        self("network", "rm", "--force", self.network, check=False)

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
