"""Who takes part in `ikctl bench ike` and the files each is configured with.

Both responders get the same suites, the same kind of credential and the same selectors, raise what would
throttle one busy initiator, and log one or two lines for an SA. strongSwan gets what its documentation
recommends for many SAs (a hash table for IKE SAs). It does not speak AuthIP, which is measured beside our own
IKEv2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

_MAIN: Final = {"ikev2": "x25519 aes128gcm sha256", "authip": "p256 aes128 sha256"}


@dataclass(frozen=True, slots=True)
class Auth:
    """One kind of authentication: the method of rules, the kind of key of `ikd.pki` where there are
    certificates, and the protocol."""

    method: str
    key: str = ""
    keying: str = "ikev2"

    @property
    def main(self) -> str:
        """The suite of main mode: AuthIP has neither AEADs in it nor X25519."""
        return _MAIN[self.keying]

    @property
    def group(self) -> str:
        """The group of the key exchange."""
        return self.main.split()[0]


AUTHS: Final[Mapping[str, Auth]] = {
    "psk": Auth("psk"),
    "ecdsa-p256": Auth("certificate", "ecdsa-p256"),
    "rsa-2048": Auth("certificate", "rsa-2048"),
    "authip-kerberos": Auth("kerberos", keying="authip"),
    "authip-certificate": Auth("certificate", "ecdsa-p256", keying="authip"),
}
BASELINE: Final = "ecdsa-p256"  # what AuthIP is measured beside
LOAD_NET, SERVER_NET, SERVER_INSIDE = "10.1.0.0/24", "10.2.0.0/24", "10.2.0.1/24"
LOAD_ID, SERVER_ID = "load.bench", "server.bench"
KEYTAB: Final = "host.keytab"

CHARON: Final = "/usr/sbin/charon-systemd"
PLUGINS: Final = (
    "random nonce openssl pem pkcs1 pkcs8 x509 revocation constraints pubkey aes sha2 sha1 hmac kdf gmp "
    "curve25519 gcm drbg kernel-libipsec kernel-netlink socket-default vici"
)
CHARON_FILES: Final = (CHARON, "/usr/sbin/swanctl", "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so")
INSTALL_CHARON: Final = (
    "apt-get install --no-install-recommends charon-systemd strongswan-swanctl "
    "libstrongswan-standard-plugins libcharon-extra-plugins"
)
NO_AUTHIP: Final = "strongSwan does not speak AuthIP"


@dataclass(frozen=True, slots=True)
class Responder:
    """One side under test: its name in rows, and the link it has with the initiator."""

    name: str
    device: str
    load_address: str
    address: str


IKD: Final = Responder("ikd", "e0", "198.51.100.1", "198.51.100.2")
STRONGSWAN: Final = Responder("strongswan", "e1", "203.0.113.1", "203.0.113.2")
RESPONDERS: Final = (IKD, STRONGSWAN)


# Ours ----------------------------------------------------------------------------------------------------


def settings(identity: str, auth: str, home: str) -> str:
    """ikd.toml. The limits let one address have many negotiations under way."""
    credentials: dict[str, dict[str, Any]] = {
        "certificate": {"certificate": "pki/host.pem", "key": "pki/host.key", "trust": ["pki/ca.pem"]},
        "kerberos": {"keytab": KEYTAB},
    }
    tables: dict[str, dict[str, Any]] = {
        "daemon": {"control": f"{home}/control.sock", "state": f"{home}/state"},
        "dataplane": {"orphan_seconds": 0},
        "identity": {"id": identity} | credentials.get(AUTHS[auth].method, {}),
        "limits": {
            "half_open_per_address": 1000,
            "cookie_threshold": 1000,
            "peer_associations": 100_000,
            "peer_rate": 0,
        },
        "log": {"level": "info", "format": "json"},
    }
    return "\n".join(
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()), ""])
        for name, table in tables.items()
    )


_SETS: Final = """\
[auth.bench]
first = ["{method}"]

[crypto.bench]
main  = ["{main}"]
quick = ["aes128gcm"]
pfs   = false
"""
_RULE: Final = """\
[[rule]]
name     = "{name}"
local    = "{own_net}"
remote   = "{peer_net}"
tunnel   = {{ local = "{own}", remote = "{peer}" }}
security = "require"
auth     = "bench"
crypto   = "bench"
peer     = "{identity}"
keying   = ["{keying}"]

"""


def load_policy(auth: str) -> str:
    """policy.toml of the initiator: a rule for each responder, named like it."""
    rules = (
        _RULE.format(
            name=one.name,
            own_net=LOAD_NET,
            peer_net=SERVER_NET,
            own=one.load_address,
            peer=one.address,
            identity=SERVER_ID,
            keying=AUTHS[auth].keying,
        )
        for one in RESPONDERS
    )
    return "".join(rules) + _sets(auth)


def server_policy(auth: str) -> str:
    """policy.toml of our responder."""
    rule = _RULE.format(
        name="load",
        own_net=SERVER_NET,
        peer_net=LOAD_NET,
        own=IKD.address,
        peer=IKD.load_address,
        identity=LOAD_ID,
        keying=AUTHS[auth].keying,
    )
    return rule + _sets(auth)


def _sets(auth: str) -> str:
    return _SETS.format(method=AUTHS[auth].method, main=AUTHS[auth].main)


def secrets(peer: str, secret: str) -> str:
    """secrets.toml."""
    return f'[[psk]]\npeers = ["{peer}"]\nsecret = "{secret}"\n'


# strongSwan's --------------------------------------------------------------------------------------------

Tree = Mapping[str, Any]


def render(tree: Tree, indent: str = "") -> Iterable[str]:
    """Lines of strongSwan's settings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key} {{"
            yield from render(value, indent + "    ")
            yield f"{indent}}}"
        else:
            yield f"{indent}{key} = {value}"


def charon_settings(directory: str) -> str:
    """strongswan.conf. Level 0 logs that an SA is up or down, as our `info` does."""
    vici = f"unix://{directory}/charon.vici"
    charon: Tree = {
        "load_modular": "no",
        "load": PLUGINS,
        "dos_protection": "no",
        "ikesa_table_size": 1024,
        "ikesa_table_segments": 16,
        "filelog": {"log": {"path": f"{directory}/charon.log", "default": 0, "append": "no"}},
        "journal": {"default": -1},
        "plugins": {"vici": {"socket": vici}},
    }
    swanctl: Tree = {"load": "pem pkcs1 x509 pkcs8 pubkey openssl random", "socket": vici}
    return "\n".join([*render({"charon": charon, "swanctl": swanctl}), ""])


def charon_connection(auth: str, secret: str) -> str:
    """swanctl.conf. `unique = never`: every establishment is one more SA, as in our responder."""
    certificates = bool(AUTHS[auth].key)
    method = "pubkey" if certificates else "psk"
    connection: Tree = {
        "version": 2,
        "local_addrs": STRONGSWAN.address,
        "remote_addrs": STRONGSWAN.load_address,
        "unique": "never",
        "proposals": "aes128gcm16-prfsha256-x25519",
        "local": {"auth": method, "id": SERVER_ID} | ({"certs": "host.pem"} if certificates else {}),
        "remote": {"auth": method, "id": LOAD_ID},
        "children": {"load": {"local_ts": SERVER_NET, "remote_ts": LOAD_NET, "esp_proposals": "aes128gcm16"}},
    }
    tree: dict[str, Any] = {"connections": {"load": connection}}
    if not certificates:
        tree["secrets"] = {"ike-1": {"id-1": LOAD_ID, "id-2": SERVER_ID, "secret": f'"{secret}"'}}
    return "\n".join([*render(tree), ""])
