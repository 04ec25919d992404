"""A throw-away Active Directory domain: Samba's domain controller in a namespace of its own, from a temporary
directory, ended by its process id.

It serves on a bridge; `join` links a host of a lab to it, so that the way to the controller is not one that a
rule covers. Two machines and two users are there from the beginning, and a group that has one of them.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.kerberos import PLACES, ROOT
from support.lab import ip, socket_in

REALM, NETBIOS = "AD.TEST", "ADTEST"
ADDRESS, PREFIX = "10.77.0.1", 24
MACHINES = ("alpha", "beta")
MEMBER, OUTSIDER, GROUP = "clerk", "guest1", "HR"
TOOLS = ("samba", "samba-tool", "winbindd", "kinit")
FILES = (  # patterns below /
    "usr/share/samba/setup/ad-schema",
    "usr/lib/*/samba/ldb/samba_dsdb.so",
    "usr/lib/*/samba/vfs/acl_xattr.so",
)
PORTS = (88, 389)
_numbers = itertools.count()

SMB_CONF = """\
[global]
 netbios name = DC1
 workgroup = {netbios}
 realm = {realm}
 server role = active directory domain controller
 server services = s3fs, rpc, ldap, cldap, kdc, winbindd, dns
 prefork children = 1
 tls enabled = no
 bind interfaces only = yes
 interfaces = lo {address}/{prefix}
 private dir = {base}/private
 state directory = {base}/state
 cache directory = {base}/cache
 lock directory = {base}
 binddns dir = {base}/bind-dns
 log file = {base}/log.%m
[sysvol]
 path = {base}/state/sysvol
 read only = no
[netlogon]
 path = {base}/state/sysvol/{domain}/scripts
 read only = no
"""
KRB5_CONF = """\
[libdefaults]
 default_realm = {realm}
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
[realms]
 {realm} = {{
  kdc = {address}
 }}
[domain_realm]
 .{domain} = {realm}
"""
# In a mount namespace: the place of winbind's socket is compiled in, and names are looked up in files.
INSIDE = """\
set -e
mount --make-rprivate /
mkdir -p /run/samba
mount -t tmpfs -o mode=755 tmpfs /run/samba
mkdir /run/samba/ncalrpc
mount --bind {base}/hosts /etc/hosts
mount --bind {base}/resolv.conf /etc/resolv.conf
exec samba -i -s {base}/etc/smb.conf --debug-stdout --no-process-group
"""
# Runs in the Python that has Samba's modules; samba-tool once for each step would take ten times as long.
DIRECTORY = """\
import json, secrets, sys
import samba.dckeytab
from samba.auth import system_session
from samba.dcerpc import security
from samba.ndr import ndr_unpack
from samba.net import Net
from samba.param import LoadParm
from samba.samdb import SamDB

base, wanted = sys.argv[1], json.load(sys.stdin)
settings = LoadParm()
settings.load(base + "/etc/smb.conf")
directory = SamDB(url=settings.samdb_url(), session_info=system_session(), lp=settings)
for name, service in wanted["machines"].items():
    directory.newcomputer(name, service_principal_name_list=[service])
    # a new computer has no keys
    directory.setpassword(f"(sAMAccountName={name}$)", "aA1" + secrets.token_urlsafe(16), username=name + "$")
    for principal in (name + "$", service):  # by the service's name there is a key for RC4 only
        Net(None, settings).export_keytab(keytab=f"{base}/{name}.keytab", principal=principal)
for name, password in wanted["users"].items():
    directory.newuser(name, password)
found = {}
for name, members in wanted["groups"].items():
    directory.newgroup(name)
    directory.add_remove_group_members(name, members, add_members_operation=True)
    (entry,) = directory.search(expression=f"(sAMAccountName={name})", attrs=["objectSid"])
    found[name] = str(ndr_unpack(security.dom_sid, entry["objectSid"][0]))
json.dump(found, sys.stdout)
"""


def missing() -> tuple[str, ...]:
    """What these tests need and this machine does not have."""
    absent = [tool for tool in TOOLS if shutil.which(tool, path=PLACES) is None]
    return tuple(absent + [f"/{file}" for file in FILES if not any(Path("/").glob(file))])


class Domain:
    """The domain; `groups` are the SIDs of its groups, by name."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.namespace = f"ikd{os.getpid()}d{next(_numbers)}"
        self.password = "aA1" + secrets.token_urlsafe(16)
        self.variables = {"KRB5_CONFIG": str(base / "krb5.conf"), "KRB5RCACHEDIR": str(base)}
        self.environment = os.environ | self.variables | {"PATH": PLACES, "PYTHONPATH": str(ROOT)}
        self._process: subprocess.Popen[bytes] | None = None
        self._links = itertools.count()
        self._provision()
        services = {name: self.service(name) for name in MACHINES}
        users = dict.fromkeys((MEMBER, OUTSIDER), self.password)
        self.groups = self.add(services, users, {GROUP: [MEMBER]})

    @staticmethod
    def service(machine: str) -> str:
        """As whom a machine is reached."""
        return f"host/{machine}.{REALM.lower()}"

    def _provision(self) -> None:
        names = {
            "realm": REALM,
            "netbios": NETBIOS,
            "domain": REALM.lower(),
            "address": ADDRESS,
            "prefix": PREFIX,
            "base": self.base,
        }
        self.run(
            "samba-tool", "domain", "provision", f"--realm={REALM}", f"--domain={NETBIOS}",
            "--server-role=dc", "--dns-backend=SAMBA_INTERNAL", f"--adminpass={self.password}",
            f"--targetdir={self.base}", "--host-name=dc1", f"--host-ip={ADDRESS}",
        )  # fmt: skip
        (self.base / "etc" / "smb.conf").write_text(SMB_CONF.format(**names))
        (self.base / "krb5.conf").write_text(KRB5_CONF.format(**names))
        (self.base / "inside").write_text(INSIDE.format(**names))
        (self.base / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} dc1.{REALM.lower()} dc1\n")
        (self.base / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")

    def add(
        self, machines: dict[str, str], users: dict[str, str], groups: dict[str, list[str]]
    ) -> dict[str, str]:
        """Machines with the names of their services, users with passwords, groups with members; the groups'
        SIDs. A machine's keytab is then NAME.keytab."""
        interpreter = Path(str(shutil.which("samba-tool", path=PLACES))).read_text().split("\n")[0]
        wanted = json.dumps({"machines": machines, "users": users, "groups": groups})
        program = (interpreter.removeprefix("#!").strip(), "-c", DIRECTORY, str(self.base))
        output = self.run(*program, stdin=wanted)
        for name in machines:
            (self.base / f"{name}.keytab").chmod(0o600)
        found: dict[str, str] = json.loads(output.splitlines()[-1])
        return found

    def run(self, *arguments: str, stdin: str = "", namespace: str = "") -> str:
        """A command of the domain's administrator, or of a user on a host that has joined; its output."""
        inside = ("ip", "netns", "exec", namespace) if namespace else ()
        done = subprocess.run(
            (*inside, *arguments),
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (arguments[:3], done.stdout, done.stderr)
        return done.stdout

    def start(self) -> None:
        """Serve; returns when it answers."""
        ip("netns", "add", self.namespace)
        ip("-n", self.namespace, "link", "set", "lo", "up")
        ip("-n", self.namespace, "link", "add", "br0", "type", "bridge")
        ip("-n", self.namespace, "addr", "add", f"{ADDRESS}/{PREFIX}", "dev", "br0")
        ip("-n", self.namespace, "link", "set", "br0", "up")
        with (self.base / "samba.log").open("wb") as log:
            self._process = subprocess.Popen(
                ("ip", "netns", "exec", self.namespace, "unshare", "-m", "sh", str(self.base / "inside")),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 90
        while not all(map(self._answers, PORTS)):
            assert self._process.poll() is None, (self.base / "samba.log").read_text()
            assert time.monotonic() < deadline, "the domain controller does not listen"
            time.sleep(0.05)

    def _answers(self, port: int) -> bool:
        with socket_in(self.namespace, socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            return probe.connect_ex((ADDRESS, port)) == 0

    def join(self, namespace: str, address: str) -> None:
        """Link a host to the controller; the link goes with the host."""
        port = f"p{next(self._links)}"
        ip(
            "link", "add", "dc0", "netns", namespace, "type", "veth",
            "peer", "name", port, "netns", self.namespace,
        )  # fmt: skip
        ip("-n", self.namespace, "link", "set", port, "master", "br0", "up")
        ip("-n", namespace, "addr", "add", f"{address}/{PREFIX}", "dev", "dc0")
        ip("-n", namespace, "link", "set", "dc0", "up")

    def python(self, namespace: str, code: str, *arguments: str) -> str:
        """A Python program on a host that has joined; what it prints."""
        return self.run(sys.executable, "-c", code, *arguments, namespace=namespace)

    def ticket(self, namespace: str, user: str) -> str:
        """A user logs in on a host; the ticket cache."""
        cache = f"FILE:{self.base}/{user}.ccache"
        self.run("kinit", "-c", cache, user, stdin=f"{self.password}\n", namespace=namespace)
        return cache

    def stop(self) -> None:
        """End it, with the processes that it has made."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(40)
            self._process = None
            for _ in range(100):
                left = ip("netns", "pids", self.namespace).split()
                if not left:
                    break
                time.sleep(0.05)
            for process in left:
                os.kill(int(process), signal.SIGKILL)
        if self.namespace in ip("netns", "list").split():
            ip("netns", "del", self.namespace)


@contextmanager
def running() -> Iterator[Domain]:
    """A domain whose controller serves; nothing is left of it."""
    base = Path(tempfile.mkdtemp(prefix="ikd-domain-"))
    try:
        base.chmod(0o755)
        domain = Domain(base)
        try:
            domain.start()
            yield domain
        finally:
            domain.stop()
    finally:
        shutil.rmtree(base)
