"""Every key a policy file may have, in one table: what it accepts, its default and what it means.

Loading checks against these tables, complaints take the nearest key from them, and docs/policy.md is printed
from them (`policy.manual`). What the keys may not say together stands in `policy.checks`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from sadb.sa import Action, Level


@dataclass(frozen=True, slots=True)
class Key:
    """One key: the TOML types it takes, what to write (for people), its default and its meaning."""

    name: str
    types: tuple[type, ...]
    form: str
    default: str
    text: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """The keys of one TOML table."""

    title: str
    keys: tuple[Key, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The keys' names, in the order they are documented."""
        return tuple(key.name for key in self.keys)

    def key(self, name: str) -> Key | None:
        """One key by name."""
        return next((key for key in self.keys if key.name == name), None)


LEVELS = tuple(level.value for level in Level)
ACTIONS = tuple(action.value for action in Action)
KEYWORDS = ("LocalSubnet", "DNS", "DHCP", "WINS", "DefaultGateway", "Intranet", "Internet", "RemoteIntranet")
FIRST = ("certificate", "psk", "kerberos", "ntlm", "anonymous")
SECOND = ("user-kerberos", "user-ntlm", "user-certificate", "certificate", "anonymous")
SIGNING = ("rsa", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519", "ed448")

_STRING: tuple[type, ...] = (str,)
_STRINGS: tuple[type, ...] = (str, list)
_BOOL: tuple[type, ...] = (bool,)
_PORTS: tuple[type, ...] = (int, str, list)
_AMOUNT: tuple[type, ...] = (int, float, str)
_ADDRESSES = "address, prefix, range, list of these, `any`, or keywords"

FILE = Table(
    "a policy file",
    (
        Key(
            "rule",
            (list,),
            "array of tables: `[[rule]]`",
            "no rules",
            "The rules; their order does not matter.",
        ),
        Key("auth", (dict,), "tables: `[auth.NAME]`", "the built-in sets", "Authentication sets by name."),
        Key("crypto", (dict,), "tables: `[crypto.NAME]`", "the built-in sets", "Crypto sets by name."),
    ),
)

RULE = Table(
    "a rule",
    (
        Key("name", _STRING, "text without `|`", "required", "Unique; commands and logs use it."),
        Key(
            "enabled",
            _BOOL,
            "true or false",
            "true",
            "A rule that is not enabled is checked but not in force.",
        ),
        Key("group", _STRING, "text", "none", "Label for rules that belong together."),
        Key("description", _STRING, "text", "empty", "For people."),
        Key(
            "action",
            _STRING,
            "`secure`, `permit` or `block`",
            "secure",
            "`permit` lets packets pass in the clear, `block` drops them, `secure` protects them.",
            ACTIONS,
        ),
        Key(
            "local", _STRINGS, _ADDRESSES, "any", "Addresses at this end (of the inner packet with a tunnel)."
        ),
        Key("remote", _STRINGS, _ADDRESSES, "any", "Addresses at the other end."),
        Key("protocol", (str, int), "name, number 1 to 255, or `any`", "any", "Protocol above IP."),
        Key(
            "local_port",
            _PORTS,
            "port, service name, list; range unless it secures",
            "any",
            "Ports at this end; needs `protocol` tcp or udp.",
        ),
        Key(
            "remote_port",
            _PORTS,
            "port, service name, list; range unless it secures",
            "any",
            "Ports at the other end; needs `protocol` tcp or udp.",
        ),
        Key("interface", _STRING, "name", "every interface", "Not available yet; a rule with it is refused."),
        Key(
            "security",
            _STRING,
            "`require`, `request` or `none`",
            "require",
            "Shorthand for `inbound` and `outbound`.",
            LEVELS,
        ),
        Key(
            "inbound",
            _STRING,
            "`require`, `request` or `none`",
            "require",
            "What is asked of flows the other end starts.",
            LEVELS,
        ),
        Key(
            "outbound",
            _STRING,
            "`require`, `request` or `none`",
            "require",
            "What is asked of flows this end starts.",
            LEVELS,
        ),
        Key("tunnel", (dict,), "table", "none: transport mode", "Outer end points; makes it a tunnel."),
        Key(
            "encrypt",
            _BOOL,
            "true or false",
            "false",
            "Guaranteed encryption: integrity-only proposals of the crypto set are left out.",
        ),
        Key("auth", _STRING, "name of an authentication set", "default", "How both ends prove who they are."),
        Key("crypto", _STRING, "name of a crypto set", "default", "Algorithms and lifetimes."),
        Key(
            "keying",
            _STRINGS,
            "ordered list of `ikev2`, `authip`, `ikev1`",
            "ikev2, after authip if the authentication needs it",
            "Keying modules, in order of preference.",
        ),
        Key(
            "aggressive",
            _BOOL,
            "true or false",
            "false",
            "IKEv1 uses aggressive mode, for peers that have nothing else; needs `ikev1` in `keying`. It "
            "sends identities in the clear and lets anybody who asks guess a pre-shared key at leisure.",
        ),
        Key(
            "peer",
            _STRING,
            "identity, or pattern with `*`",
            "any identity that is proven",
            "Who the other end must prove to be: name, address, user@name, distinguished name or keyid:TEXT.",
        ),
        Key("allow", (dict,), "table", "everybody", "Who may use the rule; transport mode only."),
        Key("deny", (dict,), "table", "nobody", "Who may not; decided before `allow`; transport mode only."),
        Key("offload", _BOOL, "true or false", "true", "Whether an adapter may carry its SAs."),
    ),
)

TUNNEL = Table(
    "tunnel",
    (
        Key(
            "local",
            _STRING,
            "address or `any`",
            "any",
            "Outer address here; any: the one that routes to the peer. An SA that may move (`ike.mobike`) "
            "leaves it while this host has not got it.",
        ),
        Key(
            "remote",
            _STRING,
            "address, host name, or `any`",
            "required",
            "Outer address of the other gateway; `any` only answers, it cannot start.",
        ),
    ),
)

ACCESS = Table(
    "allow or deny",
    (
        Key(
            "machines",
            _STRINGS,
            "patterns with `*`",
            "none",
            "Identities proven by the first authentication, `host/NAME` or NAME.",
        ),
        Key(
            "users",
            _STRINGS,
            "patterns with `*`",
            "none",
            "Users proven by the second authentication, and `group:NAME` for their groups; needs a set of "
            "authentication that proves users, such as `machine-and-user`.",
        ),
    ),
)

AUTH = Table(
    "an authentication set",
    (
        Key(
            "first",
            (list,),
            "ordered list of methods",
            "required",
            "Machine authentication. A method is a name or a table (below).",
        ),
        Key(
            "second",
            (list,),
            "ordered list of methods",
            "none",
            "User or health authentication on top, over AuthIP only; `anonymous` as the last one makes it "
            "optional.",
        ),
    ),
)

METHOD = Table(
    "an authentication method",
    (
        Key("method", _STRING, "name of a method", "required", "See the methods below."),
        Key("ca", _STRING, "distinguished name", "any trusted one", "Authority that must be in the chain."),
        Key("health", _BOOL, "true or false", "false", "The certificate must be a health certificate."),
        Key(
            "eku", _STRINGS, "dotted object identifiers", "none", "Extended key usages, all of them required."
        ),
        Key(
            "signing",
            _STRING,
            " ".join(f"`{name}`" for name in SIGNING),
            "any",
            "Kind of the leaf's key.",
            SIGNING,
        ),
        Key(
            "mutual",
            _BOOL,
            "true or false",
            "true",
            "In AuthIP; `false`: the initiator proves nothing with this method, only the responder does.",
        ),
        Key("minimum_rsa_bits", (int,), "number from 1024 to 16384", "2048", "Shorter RSA keys are refused."),
    ),
)

CRYPTO = Table(
    "a crypto set",
    (
        Key(
            "main",
            _STRINGS,
            "ordered list of `group cipher hash`",
            "those of the built-in default set",
            "Main-mode (IKE SA) proposals.",
        ),
        Key(
            "quick",
            _STRINGS,
            "ordered list of `cipher [hash] [group]`",
            "those of the built-in default set",
            "Quick-mode (Child SA) proposals; `ah HASH` for AH.",
        ),
        Key(
            "pfs",
            _BOOL,
            "true or false",
            "false",
            "Ask for perfect forward secrecy: quick proposals without a group get those of `main`.",
        ),
        Key(
            "esn",
            _BOOL,
            "true or false",
            "true",
            "Prefer 64-bit sequence numbers; a peer without them is accepted. A proposal may say `noesn`.",
        ),
        Key("lifetime", (dict,), "table", "see below", "When keys are replaced."),
    ),
)

LIFETIME = Table(
    "lifetime",
    (
        Key("main", _AMOUNT, "time, at most 2879 min", "8 h", "Main-mode SA."),
        Key("quick", _AMOUNT, "time, at most 2879 min", "1 h", "Quick-mode SA."),
        Key("quick_bytes", _AMOUNT, "size or `never`", "100 GB", "Octets through one quick-mode SA."),
        Key("quick_packets", (int, str), "number or `never`", "never", "Packets through one quick-mode SA."),
        Key(
            "idle",
            _AMOUNT,
            "time or `never`",
            "never",
            "A quick-mode SA without traffic this long is removed.",
        ),
    ),
)

TABLES = (FILE, RULE, TUNNEL, ACCESS, AUTH, METHOD, CRYPTO, LIFETIME)

# What people bring from other products, where no likeness of letters would find the key
ELSEWHERE = {
    "src": "local", "source": "local", "left": "local", "leftsubnet": "local", "local_ts": "local",
    "dst": "remote", "destination": "remote", "right": "remote", "rightsubnet": "remote",
    "remote_ts": "remote", "to": "remote", "from": "local", "host": "remote", "address": "remote",
    "port": "remote_port", "dport": "remote_port", "dst_port": "remote_port",
    "sport": "local_port", "src_port": "local_port",
    "mode": "tunnel", "level": "security", "require": "security",
    "proto": "protocol", "keyexchange": "keying", "ike": "keying", "version": "keying",
    "rightid": "peer", "remote_id": "peer", "id": "peer", "identity": "peer", "authby": "auth",
    "disabled": "enabled", "encryption": "encrypt",
    "proposals": "main", "ike_proposals": "main", "phase1": "main",
    "esp_proposals": "quick", "phase2": "quick", "esp": "quick",
    "lifetimes": "lifetime", "bytes": "quick_bytes", "packets": "quick_packets",
    "rules": "rule", "certs": "certificate",
}  # fmt: skip


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant, or None."""
    spellings = {other.lower(): other for other in known}
    spellings = {foreign: own for foreign, own in ELSEWHERE.items() if own in spellings.values()} | spellings
    close = difflib.get_close_matches(name.lower(), spellings, n=1, cutoff=0.6)
    return spellings[close[0]] if close else None


def hint(name: str, known: Iterable[str]) -> str:
    """The end of a complaint about a name: the nearest known one, or all of them."""
    known = tuple(known)
    close = nearest(name, known)
    return f'did you mean "{close}"?' if close else "known: " + ", ".join(known)
