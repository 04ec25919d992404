"""The Containerfile and the compose file, as a user has them, without a registry and a package index: the
base is an image that borrows this machine's /usr, and the wheels are those that are installed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from support.alone import subnet
from support.containers import CAPABILITIES, IMAGE, ROOT, Podman, why_not
from support.lab import ping_command
from support.require import require
from support.scenario import eventually, secrets
from support.wheels import repack, required

pytestmark = [pytest.mark.container, pytest.mark.timeout(300)]

HERE = ROOT / "conf" / "containers"
USER = 500
# The interpreter of the virtual environment need not be below /usr.
LENT = dict.fromkeys((Path("/usr"), Path(sys.base_prefix).resolve()))
MOUNTS = [f"{path}:{path}:ro" for path in LENT if path == Path("/usr") or not path.is_relative_to("/usr")]


@dataclass
class Built:
    """The image, and podman to run it."""

    podman: Podman
    directory: Path
    image: str


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    """The image of the Containerfile, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="ikd-image-") as name:
        directory = Path(name)
        reason = why_not(directory)
        require(not reason, f"containers: {reason}")
        wheels = directory / "wheels"
        wheels.mkdir()
        for one in required(("ikd[kerberos]", "setuptools")).values():
            if one.name != "ikd":
                repack(one, wheels)
        (directory / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        with Podman(directory) as podman:
            image = f"localhost/ikd-test-{os.getpid()}"
            mounts = [*MOUNTS, f"{wheels}:/wheels:ro", f"{directory}/pip.conf:/etc/pip.conf:ro"]
            try:
                podman(
                    *("build", "--pull=never", "--network", "none", "--format", "docker", "--layers=false"),
                    *("--force-rm", "--tag", image),
                    *(f"--volume={mount}" for mount in mounts),
                    *("--build-arg", f"BASE={IMAGE}", "--build-arg", f"PYTHON={_python()}"),
                    *("--file", str(HERE / "Containerfile"), str(ROOT)),
                    timeout=240,
                )
                yield Built(podman, directory, image)
            finally:
                podman("rmi", "--force", image, check=False)


def _python() -> str:
    return str(Path(sys.base_prefix).resolve() / "bin" / f"python3.{sys.version_info.minor}")


def run(built: Built, *command: str) -> str:
    """A command in a container of the image that may do nothing."""
    given = ("--rm", "--pull=never", "--network", "none", "--cap-drop", "ALL", "--read-only")
    return built.podman("run", *given, *(f"--volume={one}" for one in MOUNTS), built.image, *command)


def test_image_has_all_of_it(built: Built) -> None:
    """Without its native engine it is several times slower, without Kerberos half of the methods are gone,
    and without the health check a dead daemon looks alive."""
    assert run(built, "ikd", "--version").startswith("ikd ")
    parts = "import offload._native, gssapi, ikd; print(ikd.__file__)"
    assert run(built, "/opt/ikd/bin/python", "-c", parts).startswith("/opt/ikd/")
    (image,) = json.loads(built.podman("inspect", built.image))
    assert image["Healthcheck"]["Test"] == ["CMD", "ikctl", "status"]


def test_daemon_that_is_not_root(built: Built) -> None:
    """The image has a user for it. What belongs to others it cannot read or write, and says whose it must
    be."""
    podman, home = built.podman, built.directory / "etc"
    home.mkdir()
    (home / "ikd.toml").write_text("")
    (home / "policy.toml").write_text("")
    secret = home / "secrets.toml"
    secret.write_text(secrets())
    secret.chmod(0o600)
    given = (
        *("--pull=never", "--network", "none", "--read-only", "--device", "/dev/net/tun", "--user", "ikd"),
        *("--cap-drop", "ALL", "--cap-add", CAPABILITIES, "--security-opt", "no-new-privileges"),
        *("--tmpfs", "/var/lib/ikd:U", f"--volume={home}:/etc/ikd:ro"),
        *(f"--volume={one}" for one in MOUNTS),
    )
    with pytest.raises(RuntimeError, match=f"secrets.toml: user {USER} may not read it"):
        podman("run", "--rm", *given, built.image)
    os.chown(secret, USER, USER)
    with pytest.raises(RuntimeError, match=r"/run/ikd: Permission denied; the user whom ikd runs as must be"):
        podman("run", "--rm", *given, built.image)
    given += ("--tmpfs", "/run/ikd:U")
    name = f"ikd-user-{os.getpid()}"
    try:
        podman("run", "--detach", "--name", name, *given, built.image)
        eventually(lambda: podman.works("exec", name, "ikctl", "status"), "the daemon answers", 60)
        status = podman("exec", name, "cat", "/proc/1/status")
        assert f"Uid:\t{USER}\t{USER}" in status
        assert "CapEff:\t0000000000003400" in status
    finally:
        podman("rm", "--force", "--time", "0", name)


@dataclass
class Compose:
    """podman-compose with the file of the repository, and what a machine without a registry needs besides."""

    built: Built
    project: str
    files: tuple[Path, ...]
    net: str

    def __call__(self, *arguments: str) -> str:
        """One command; raises with what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "podman_compose", "--in-pod=false", "--project-name", self.project]
            + [f"--file={file}" for file in self.files]
            + list(arguments),
            cwd=HERE,
            env=self.built.podman.environment | {"IKD_NET": self.net},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"podman-compose {arguments}: {done.stdout}{done.stderr}")
        return done.stdout

    def container(self, service: str) -> str:
        """Its name."""
        return f"{self.project}_{service}_1"


@pytest.fixture
def compose(built: Built) -> Iterator[Compose]:
    """The services, started as a user starts them."""
    require(find_spec("podman_compose") is not None, "podman-compose")
    services = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
    more = {"image": built.image, "pull_policy": "never", "volumes": MOUNTS}
    override = built.directory / "override.yaml"
    override.write_text(yaml.safe_dump({"services": dict.fromkeys(services, more)}))
    made = Compose(built, f"ikdtest{os.getpid()}", (HERE / "compose.yaml", override), subnet())
    try:
        made("up", "--detach", "--no-build")
        yield made
    finally:
        for service in services:  # pytest shows it for a failed test only
            print(f"--- {service}\n{built.podman.logs(made.container(service))[-4000:]}")
        made("down", "--volumes", "--timeout", "5")


def test_two_hosts_of_the_compose_file(compose: Compose) -> None:
    """What the first lines of the file promise, with the capabilities that it gives: both hosts are healthy,
    one pings the other by its name, and its packets go through ESP."""
    podman = compose.built.podman
    left, right = map(compose.container, ("left", "right"))
    for one in (left, right):
        eventually(lambda one=one: podman.works("healthcheck", "run", one), f"{one} is healthy", 60)
    assert " 0% packet loss" in podman("exec", left, *ping_command("right"))

    def counted() -> bool:
        (quick,) = json.loads(podman("exec", right, "ikctl", "sa", "quick", "--json"))["quick"]
        return min(quick["packets_in"], quick["packets_out"]) >= 3

    eventually(counted, "packets in both directions are counted")
    limits = json.loads(podman("inspect", "--format", "{{json .EffectiveCaps}}", left))
    assert set(limits) == {"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"}
