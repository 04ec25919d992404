"""Shell. A Kerberos realm for a measurement: MIT's KDC, out of a temporary directory, in the initiator's
namespace, where only the initiator asks it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ikd.bench import hosts, parties
from ikd.bench.hosts import Trouble

REALM: Final = "BENCH.TEST"
TOOLS: Final = ("krb5kdc", "kadmin.local", "kdb5_util")
PLACES: Final = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
INSTALL: Final = "apt-get install krb5-kdc krb5-admin-server"
INSTALL_LIBRARY: Final = "pip install 'ikd[kerberos]'"

_KRB5_CONF: Final = """\
[libdefaults]
 default_realm = {realm}
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
[realms]
 {realm} = {{
  kdc = 127.0.0.1:88
 }}
[domain_realm]
 .bench = {realm}
"""
_KDC_CONF: Final = """\
[kdcdefaults]
 kdc_listen = 127.0.0.1:88
 kdc_tcp_listen = 127.0.0.1:88
[realms]
 {realm} = {{
  database_name = {base}/principal
  key_stash_file = {base}/stash
  acl_file = {base}/kadm5.acl
  supported_enctypes = aes256-cts-hmac-sha1-96:normal
 }}
[logging]
 kdc = FILE:{base}/kdc.log
"""


def missing() -> str:
    """How to install what is not here; empty when nothing is missing."""
    remedies = []
    if any(shutil.which(tool, path=PLACES) is None for tool in TOOLS):
        remedies.append(INSTALL)
    if importlib.util.find_spec("gssapi") is None:
        remedies.append(INSTALL_LIBRARY)
    return "; ".join(remedies)


class Realm:
    """The realm's database, with both hosts in it."""

    def __init__(self, base: Path) -> None:
        base.mkdir()
        self.base = base
        self.settings = {"KRB5_CONFIG": str(base / "krb5.conf"), "KRB5_KDC_PROFILE": str(base / "kdc.conf")}
        (base / "krb5.conf").write_text(_KRB5_CONF.format(realm=REALM))
        (base / "kdc.conf").write_text(_KDC_CONF.format(realm=REALM, base=base))
        self._run("kdb5_util", "create", "-s", "-W", "-r", REALM, "-P", secrets.token_hex(16))
        for name in (parties.LOAD_ID, parties.SERVER_ID):
            self._admin(f"addprinc -randkey host/{name}")

    def keytabs(self, homes: Mapping[str, Path]) -> None:
        """Write the keys of the hosts into the homes of initiator and responder."""
        for who, host in (("load", parties.LOAD_ID), (parties.IKD.name, parties.SERVER_ID)):
            self._admin(f"ktadd -k {homes[who] / parties.KEYTAB} -norandkey host/{host}")

    @contextlib.contextmanager
    def serving(self, namespace: str) -> Iterator[None]:
        """The KDC while it serves."""
        command = ("krb5kdc", "-n", "-r", REALM, "-P", str(self.base / "kdc.pid"))
        log, environment = self.base / "log", self.settings | {"PATH": PLACES}
        with hosts.process(namespace, command, log, environment) as made:
            hosts.await_file(made, self.base / "kdc.pid", "krb5kdc", log, self.base / "kdc.log")
            yield

    def _admin(self, query: str) -> None:
        self._run("kadmin.local", "-r", REALM, "-q", query)

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            env=os.environ | self.settings | {"PATH": PLACES},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Trouble(f"{command[0]}: {done.stderr.strip()}")
