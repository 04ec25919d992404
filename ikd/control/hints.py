"""What people who come from another product type first, and the command here: Windows (netsh, PowerShell),
strongSwan (swanctl, ipsec), WireGuard (wg)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

_RELOAD: Final = "ikctl reload"
_EDIT: Final = "edit policy.toml, then: ikctl reload"
_CERTIFICATES: Final = "ikctl cert show FILE"

HINTS: Final[Mapping[str, str]] = {
    # swanctl, ipsec
    "list-sas": "ikctl sa",
    "list-conns": "ikctl policy show",
    "list-pols": "ikctl policy show",
    "list-certs": _CERTIFICATES,
    "list-authorities": _CERTIFICATES,
    "list-algs": "ikctl policy show",
    "listcerts": _CERTIFICATES,
    "listcacerts": _CERTIFICATES,
    "listall": "ikctl policy show",
    "statusall": "ikctl status",
    "ipsec": "ikctl status",
    "stroke": "ikctl status",
    "swanctl": "ikctl status",
    "initiate": "ikctl up RULE",
    "install": _EDIT,
    "route": _EDIT,
    "uninstall": _EDIT,
    "unroute": _EDIT,
    "terminate": "ikctl down RULE",
    "load-all": _RELOAD,
    "load-conns": _RELOAD,
    "load-creds": _RELOAD,
    "load-authorities": _RELOAD,
    "update": _RELOAD,
    "rereadall": _RELOAD,
    "rereadsecrets": _RELOAD,
    "restart": "systemctl restart ikd",
    "monitor-sa": "ikctl watch",
    "stats": "ikctl metrics",
    "counters": "ikctl metrics",
    "listcounters": "ikctl metrics",
    "pki": "ikctl cert",
    "start": "systemctl start ikd",
    "stop": "systemctl stop ikd",
    # wg, wg-quick
    "wg": "ikctl status",
    "peers": "ikctl status",
    "dump": "ikctl sa --json",
    "set": _EDIT,
    "add": _EDIT,
    "syncconf": _RELOAD,
    "setconf": _RELOAD,
    "addconf": _RELOAD,
    "showconf": "ikctl policy show",
    "genkey": "ikctl cert issue NAME",
    "pubkey": _CERTIFICATES,
    "genpsk": "openssl rand -base64 32, for secrets.toml; or: ikctl init",
    # netsh, PowerShell
    "mainmode": "ikctl sa main",
    "quickmode": "ikctl sa quick",
    "mmsa": "ikctl sa main",
    "qmsa": "ikctl sa quick",
    "extendedmode": "ikctl sa extended",
    "get-netipsecmainmodesa": "ikctl sa main",
    "get-netipsecquickmodesa": "ikctl sa quick",
    "remove-netipsecmainmodesa": "ikctl down NAME",
    "remove-netipsecquickmodesa": "ikctl down NAME",
    "get-netipsecrule": "ikctl policy show",
    "show-netipsecrule": "ikctl policy show",
    "get-netipsecmainmoderule": "ikctl policy show",
    "get-netipsecmainmodecryptoset": "ikctl policy show",
    "get-netipsecquickmodecryptoset": "ikctl policy show",
    "get-netipsecphase1authset": "ikctl policy show",
    "get-netipsecphase2authset": "ikctl policy show",
    "find-netipsecrule": "ikctl explain SOURCE DESTINATION",
    "new-netipsecrule": _EDIT,
    "set-netipsecrule": _EDIT,
    "enable-netipsecrule": _EDIT,
    "disable-netipsecrule": _EDIT,
    "remove-netipsecrule": _EDIT,
    "get-netadapteripsecoffload": "ikctl offload",
    "enable-netadapteripsecoffload": "ikctl offload enable",
    "disable-netadapteripsecoffload": "ikctl offload disable",
    "set-netadapteripsecoffload": "ikctl offload enable; or: ikctl offload disable",
    "get-vmnetworkadapter": "ikctl offload",
    "set-vmnetworkadapter": "ikctl offload set-port NAME --max-sa N",
    "wfp": "ikctl capture NAME FILE",
    "monitor": "ikctl sa",
    "consec": "ikctl policy show",
    "advfirewall": "ikctl policy show",
    "netsh": "ikctl policy show",
    "delete": "ikctl down NAME",
    # what nobody else's command is called either
    "rules": "ikctl policy show",
    "connect": "ikctl up RULE",
    "disconnect": "ikctl down NAME",
    "sas": "ikctl sa",
    "events": "ikctl watch",
    "logs": "journalctl -u ikd; or as it happens: ikctl watch",
    "debug": "ikctl log debug",
    "trace": "ikctl capture NAME FILE",
    "tcpdump": "ikctl capture NAME FILE",
    "test": "ikctl check",
    "validate": "ikctl check",
    "certs": _CERTIFICATES,
    "keys": "ikctl log --keys FILE",
    "help": "ikctl --help",
}

# `ikctl show sa`, as netsh, wg and swanctl have it, is answered at once
SHOW: Final[Mapping[str, tuple[str, ...]]] = {
    "sa": ("sa",),
    "sas": ("sa",),
    "mmsa": ("sa", "main"),
    "qmsa": ("sa", "quick"),
    "policy": ("policy", "show"),
    "rule": ("policy", "show"),
    "rules": ("policy", "show"),
    "consec": ("policy", "show"),
    "peers": ("status",),
    "all": ("status",),
    "status": ("status",),
}


def remedy(typed: str, commands: Iterable[str], group: str = "") -> str:
    """What to type instead of a word that is no command of `group`, which is empty for `ikctl` itself."""
    word = typed.lower().lstrip("-")
    before = f"ikctl {group} " if group else "ikctl "
    known = "" if group else HINTS.get(word, "")
    near = next(iter(get_close_matches(word, list(commands), n=1)), "")
    return "try: " + (known or before + (near or "--help"))
