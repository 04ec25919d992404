"""A throw-away Kerberos realm: MIT's KDC on loopback, in a namespace or in a container, from a temporary
directory, ended by its process id."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import alone
from support.hosts import Host, Local, Namespace

from ikd.auth import Declined
from ikd.auth.files import load_material
from ikd.auth.keytab import Keytab
from ikd.settings import IdentitySettings

ROOT = Path(__file__).resolve().parents[2]
REALM = "EXAMPLE.TEST"
ALPHA, BETA = "host/alpha.example.test", "host/beta.example.test"
TOOLS = ("krb5kdc", "kadmin.local", "kdb5_util", "kinit", "faketime")
PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))

KRB5_CONF = """\
[libdefaults]
 default_realm = {realm}
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
 kdc_timesync = 0
[realms]
 {realm} = {{
  kdc = {address}:{port}
 }}
 DOWN.TEST = {{
  kdc = 127.0.0.1:{closed}
 }}
 SILENT.TEST = {{
  kdc = 127.0.0.1:{silent}
 }}
[domain_realm]
 .example.test = {realm}
 .down.test = DOWN.TEST
"""
KDC_CONF = """\
[kdcdefaults]
 kdc_listen = {address}:{port}
 kdc_tcp_listen = {address}:{port}
[realms]
 {realm} = {{
  database_name = {base}/principal
  acl_file = {base}/kadm5.acl
  key_stash_file = {base}/stash
  max_life = 10h
  supported_enctypes = aes256-cts-hmac-sha1-96:normal aes128-cts-hmac-sha1-96:normal
 }}
[logging]
 kdc = FILE:{base}/kdc.log
"""


def missing() -> tuple[str, ...]:
    """What these tests need and this machine does not have."""
    absent = [tool for tool in TOOLS if shutil.which(tool, path=PLACES) is None]
    try:
        import gssapi  # noqa: F401
    except ImportError:
        absent.append("gssapi")
    return tuple(absent)


class Kdc:
    """The realm; `start` and `stop` may be called again. `place`, a machine or the name of a namespace, is
    where it serves, on `address`."""

    def __init__(self, base: Path, address: str = "127.0.0.1", place: Host | str = "") -> None:
        self.base = base
        self.host = (Namespace(place) if place else Local()) if isinstance(place, str) else place
        self.address = address
        self.silent = _silent()
        self.port, closed = alone.port("127.0.0.1"), alone.port("127.0.0.1")
        (base / "krb5.conf").write_text(
            KRB5_CONF.format(
                realm=REALM,
                address=address,
                port=self.port,
                closed=closed,
                silent=self.silent[0].getsockname()[1],
            )
        )
        place = KDC_CONF.format(realm=REALM, address=address, port=self.port, base=base)
        (base / "kdc.conf").write_text(place)
        self.variables = {
            "KRB5_CONFIG": str(base / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(base / "kdc.conf"),
            "KRB5RCACHEDIR": str(base),
            "KRB5CCNAME": f"FILE:{base}/nobody.ccache",
        }
        self.environment = os.environ | self.variables | {"PATH": PLACES}
        self._process: subprocess.Popen[bytes] | None = None
        self.run("kdb5_util", "create", "-s", "-W", "-r", REALM, "-P", secrets.token_hex(16))

    def run(self, *arguments: str, stdin: str = "") -> str:
        """A command of the realm's administrator or a user; its output."""
        done = subprocess.run(
            arguments,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def admin(self, query: str) -> str:
        """A command of kadmin."""
        return self.run("kadmin.local", "-r", REALM, "-q", query)

    def start(self) -> None:
        """Serve; returns when it answers."""
        log = self.base / "kdc.log"
        before = log.stat().st_size if log.exists() else 0
        self.host.give(self.base)
        program = ("krb5kdc", "-n", "-r", REALM, "-P", str(self.base / "kdc.pid"))
        with (self.base / "kdc.out").open("wb") as output:
            self._process = self.host.start(program, self.variables | {"PATH": PLACES}, output)
        deadline = time.monotonic() + 30
        while "commencing operation" not in (said := log.read_text()[before:] if log.exists() else ""):
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, "the KDC does not listen"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """End everything."""
        self.stop()
        for one in self.silent:
            one.close()

    def principal(self, name: str, *options: str) -> None:
        """A principal with a random key."""
        self.admin(f"addprinc {' '.join(options) or '-randkey'} {name}")

    def keytab(self, file: str, *names: str, fresh: bool = False) -> Keytab:
        """The current keys of principals in a file; with `fresh`, new keys."""
        path = self.base / file
        for name in names:
            self.admin(f"ktadd -k {path} {'' if fresh else '-norandkey'} {name}")
        return self.load(path)

    def ticket(self, user: str) -> str:
        """A user with a password logs in; the ticket cache."""
        cache = self.base / f"{user}.ccache"
        if not cache.exists():
            password = secrets.token_hex(16)
            self.principal(user, "-pw", password)
            self.run(*self.host.outside("kinit", "-c", str(cache), user), stdin=f"{password}\n")
            self.host.give(self.base)
        return f"FILE:{cache}"

    def load(self, path: Path) -> Keytab:
        """A keytab file as the daemon loads it, with replays remembered here."""
        material = load_material(path.parent, IdentitySettings(keytab=path.name), time.time(), self.base)
        assert material.keytab is not None
        return material.keytab

    def python(self, code: str, *arguments: str, stdin: str = "", clock: str = "") -> str:
        """A Python program in this realm, if need be with another clock (`faketime -f`)."""
        prefix = ("faketime", "-f", clock) if clock else ()
        done = subprocess.run(
            (*prefix, sys.executable, "-c", code, *arguments),
            env=self.environment | {"PYTHONPATH": str(ROOT)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


_ACCEPT = """
import json, sys, time
from ikd.auth import Declined, Token
from ikd.auth.kerberos import KerberosAcceptor
from ikd.auth.keytab import Keytab
try:
    keytab = Keytab(sys.argv[1], replays=sys.argv[2])
    KerberosAcceptor(keytab, time.time).step(Token(bytes.fromhex(sys.stdin.read())))
except Declined as error:
    print(json.dumps([str(error), error.remedy, error.token.hex()]))
"""
# another host's clock -> what its administrator reads, what he shall do, what the peer's administrator reads
CLOCKS = pytest.mark.parametrize(
    ("clock", "reason", "remedy", "told"),
    [
        ("+600s", "the peer's clock and ours differ too much", "NTP", "its clock and ours differ"),
        ("-600s", "the peer's ticket is not valid yet", "NTP", "ticket is not valid yet"),
        ("+12h", "the peer's ticket has expired", "new ticket", "our ticket has expired"),
    ],
)


def refusal_at(kdc: Kdc, clock: str, keytab: Keytab, request: bytes) -> Declined:
    """What another process, maybe with another clock, says to an AP-REQ that is good here."""
    said = json.loads(
        kdc.python(_ACCEPT, str(keytab.path), str(keytab.replays), stdin=request.hex(), clock=clock)
    )
    return Declined(said[0], said[1], bytes.fromhex(said[2]))


def _silent() -> tuple[socket.socket, socket.socket]:
    """A KDC's port that takes everything and says nothing."""
    place = "127.0.0.1", alone.port("127.0.0.1")
    tcp = socket.create_server(place, backlog=64)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(place)
    return tcp, udp


@contextmanager
def running(base: Path) -> Iterator[Kdc]:
    """A realm with two machines, for this process too; nothing is left of it."""
    kdc = Kdc(base)
    before = {name: os.environ.get(name) for name in kdc.variables}
    try:
        for name in (ALPHA, BETA):
            kdc.principal(name)
            kdc.keytab(f"{name.split('/')[1].split('.')[0]}.keytab", name)
        kdc.start()
        os.environ.update(kdc.variables)
        yield kdc
    finally:
        kdc.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
