"""The policy reference, docs/policy.md, printed from the tables that loading uses: it cannot differ."""

from __future__ import annotations

from collections.abc import Iterable

from policy.checks import CHECKS, COMBINATIONS
from policy.engine import EXEMPT, EXEMPTIONS
from policy.limits import LIMITS
from policy.modules import MODULES
from policy.presets import PRESETS
from policy.ranking import SPECIFICITY, TIES
from policy.schema import FIRST, KEYWORDS, SECOND, TABLES, Table
from policy.values import PROTOCOLS, SERVICES, SIZES, TIMES
from sadb.algorithms import ALIASES, ENCRYPTION, GROUPS, INTEGRITY, PRF, REFUSED
from sadb.sa import Level


def manual() -> str:
    """The whole reference, as Markdown."""
    sections = {f"Keys of {table.title}": _keys(table) for table in TABLES} | {
        "What goes together": _list(check.text for check in CHECKS),
        "Levels": _levels(),
        "Which rule decides": _ranking(),
        "Always exempt": _exempt(),
        "Addresses, protocols, ports, amounts": _values(),
        "Identities": _IDENTITIES,
        "Authentication and keying": _methods(),
        "Algorithms": _algorithms(),
        "Built-in sets": f"{_SETS}```toml\n{PRESETS}```\n",
    }
    return _HEAD + "".join(f"\n## {title}\n\n{body}" for title, body in sections.items())


_HEAD = """\
# Policy: policy.toml and policy.d/

Generated from `policy/` by `python -m ikd.control.manual`; do not edit.

`policy.toml` is read first, then `policy.d/*.toml` in the order of their names; they count as one policy.
Loading is strict: whatever is wrong with any of them is reported at once, with file, line, key, the nearest
valid key and what to do, and the policy in force stays. `ikctl policy check` does that without a daemon,
`ikctl policy show` prints every default, `ikctl explain SRC DST [PROTO/PORT]` tells which rule decides a
packet and why. `conf/examples/` has one commented file for each use.

```toml
# host to host: everything between these two is protected, or does not pass
[[rule]]
name     = "db"
remote   = "10.0.0.9"
security = "require"
peer     = "db.corp.example"

# traffic to a port of this server, encrypted, for these machines only
[[rule]]
name       = "sql"
protocol   = "tcp"
local_port = 1433
security   = "require"
encrypt    = true
allow      = { machines = ["*.corp.example"] }

# site to site
[[rule]]
name     = "branch"
local    = "10.1.0.0/16"
remote   = "10.2.0.0/16"
tunnel   = { local = "192.0.2.1", remote = "vpn.branch.example" }
security = "require"
peer     = "vpn.branch.example"
```
"""

_IDENTITIES = """\
`peer`, `allow` and `deny` are compared with the names that the other end has proven: its identity and, with
a certificate, the names in it. A pattern fits names of its own form only:

| form | example | fits |
| --- | --- | --- |
| host name | `*.corp.example`, `host/db.corp.example` | the name without case; `host/NAME` is the same |
| address | `192.0.2.7` | this address |
| mail | `clerk@corp.example`, `*@corp.example` | user@name |
| distinguished name | `CN=db,O=Corp`, `CN=*,O=Corp` | the same attributes in this order or the reverse |
| key identifier | `keyid:branch-7` | an ID_KEY_ID |
| group | `group:CORP\\\\HR`, `group:S-1-5-21-...-1105` | members, without case; no wildcards |
| principal | `CORP\\\\clerk`, `host/db@CORP.EXAMPLE` | what Kerberos and NTLM prove, and nothing else |

`*` stands for any characters, `?` for one; `*` alone fits every name. Groups are those of the file that
`identity.groups` names, and the SIDs that a Kerberos ticket of Active Directory has. Without `peer` everybody
is accepted whom the authentication proves. `deny` comes before `allow` and applies in any case of letters;
with `allow`, who is not listed is refused. `machines` are compared with what the first authentication has
proven, `users` with the second; a rule that lists users admits nobody without one, even where the set leaves
the second authentication open.
"""

_SETS = """\
A rule without `auth` or `crypto` has the sets named `default`. A set of the same name in a file replaces a
built-in one.

"""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _list(items: Iterable[str]) -> str:
    return "".join(f"- {item}\n" for item in items)


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _keys(table: Table) -> str:
    rows = (
        (f"`{key.name}`", key.form.replace("|", "\\|"), key.default, key.text.replace("|", "\\|"))
        for key in table.keys
    )
    return _table(("key", "value", "default", "meaning"), rows)


# What each combination comes to.
_MEANING = {
    (Level.REQUIRE, Level.REQUIRE): "nothing passes in the clear, either way",
    (Level.REQUIRE, Level.REQUEST): "others must protect what they start, this end does if possible",
    (Level.REQUEST, Level.REQUEST): "protected if possible, both ways (a boundary host)",
    (Level.REQUEST, Level.NONE): "only answers: the other end starts negotiations",
    (Level.NONE, Level.NONE): "an exemption: never negotiated, like action `permit`",
}


def _levels() -> str:
    rows = ((inward.value, outward.value, _MEANING[inward, outward]) for inward, outward in COMBINATIONS)
    return (
        "`inbound` is asked of what the other end starts, `outbound` of what this end starts; `security`\n"
        f"stands for both.\n\n{_table(('inbound', 'outbound', 'meaning'), rows)}\n"
        "Not enforced yet as written; loading a rule with one of these says so:\n\n"
        + _list(f"{limit.text}." for limit in LIMITS)
    )


_BETTER = {
    "remote address": "a single address, then prefixes by length, then ranges by size, then any",
    "local address": "likewise",
    "protocol": "given before any",
    "remote port": "the fewer the better",
    "local port": "likewise",
    "interface": "given before every one",
    "action": "block, then permit (or none/none), then secure",
    "mode": "tunnel before transport",
    "level": "the stricter",
}

_ORDER = """\
The order of rules in the files does not matter. A packet is decided by the first rule that covers it, and
rules are asked in this order:

1. What is always exempt (below), whatever the rules say.
2. `block` rules that name a service (ports, or a protocol that has none) and the rules that lie wholly inside
   one, which are its exceptions. "No telnet" means no telnet, also to a host for which there is another rule.
3. All others; the first difference decides:

"""

_DOUBTS = """
A list counts as its widest entry. Loading warns of rules that overlap, are equally specific and differ in
action, mode or level, and of exceptions to a `block` that let pass in the clear what another rule would
protect.
"""


def _ranking() -> str:
    rows = [(criterion.name, _BETTER[criterion.name]) for criterion in (*SPECIFICITY, *TIES)]
    rows.append(("name", "in alphabetical order, so that the order is reproducible"))
    return _ORDER + _table(("criterion", "what comes first"), rows) + _DOUBTS


def _exempt() -> str:
    rows = ((rule.name.removeprefix(EXEMPT).strip(), f"`{rule.selector}`") for rule in EXEMPTIONS)
    table = _table(("traffic", "local === remote"), rows)
    return f"{table}\nICMP type and code stand in the place of ports, as type * 256 + code.\n"


def _values() -> str:
    services = ", ".join(f"`{name}` {number}" for name, number in sorted(SERVICES.items()))
    return _list(
        (
            "Addresses: `10.0.0.9`, `2001:db8::/32`, `10.0.0.1-10.0.0.9`, `any`, or a list of these.",
            f"Keywords instead of addresses, looked up on this host: {_code(KEYWORDS)}. A rule whose "
            "keywords stand for nothing is not in force, and `ikctl policy show` says so.",
            f"Protocols: {_code(PROTOCOLS)}, or a number from 1 to 255.",
            f"Ports: numbers, ranges such as `8000-8099`, or services: {services}.",
            f"Times: a number of seconds, or with a unit: {_code(TIMES)}.",
            f"Sizes: a number of octets, or with a unit: {_code(SIZES)}.",
        )
    )


def _methods() -> str:
    rows = (
        (
            f"`{module.name}`",
            _code(sorted(module.first)),
            _code(sorted(module.second)) or "none",
        )
        for module in MODULES.values()
    )
    modules = _table(("keying module", "first authentication", "second authentication"), rows)
    return f"{modules}\n" + _list(
        (
            f"Methods in `first`: {_code(FIRST)}.",
            f"Methods in `second`: {_code(SECOND)}.",
            "A module that can do one method of `first` carries the rule with what it can do of it; a method "
            "that none of the rule's modules can do is left out, with a warning.",
            "A module without second authentication never carries a rule whose set has `second`.",
            "`anonymous` in `first` needs a `second` that is not optional; as the last of `second` it makes "
            "that optional.",
            'A health certificate is `{ method = "certificate", health = true }`: in `first` with any '
            "module, in `second` on top of the machine's own credential, without user methods beside it.",
            _KERBEROS,
            _NTLM,
        )
    )


_KERBEROS = (
    "Kerberos is for AuthIP and for main mode of IKEv1, with the host's keytab as `identity.keytab` in "
    'ikd.toml. A peer is the principal it proves, `host/db.example@REALM`, which `peer = "db.example"` '
    "admits; a ticket is asked for the rule's `peer`, where that is one name."
)
_NTLM = (
    "NTLM proves the side that begins, not the one that answers: a rule with `peer` needs another method "
    "beside it to begin."
)
_PROPOSALS = """\
A main-mode proposal is `group cipher hash`, a quick-mode proposal `cipher [hash] [group]`, or `ah hash`. With
AES-GCM and ChaCha20 the hash of main mode is the PRF, and quick mode has none. Words may be joined with `-`,
as in strongSwan: `aes256gcm16-prfsha384-x25519`.

"""


def _algorithms() -> str:
    old = [row.name for rows in (ENCRYPTION, INTEGRITY, GROUPS) for row in rows if row.deprecated]
    rows = (
        f"Ciphers: {_code(row.name for row in ENCRYPTION if row.encrypts)}.",
        f"Integrity only, in quick mode: {_code(row.name for row in ENCRYPTION if not row.encrypts)}.",
        f"Hashes: {_code(row.name for row in INTEGRITY)}; as PRF: {_code(f'prf{row.name}' for row in PRF)}.",
        f"Groups: {_code(row.name for row in GROUPS)}.",
        f"Other spellings: {', '.join(f'`{alias}` ({name})' for alias, name in ALIASES.items())}.",
        f"Only when a set names them, as `compatible-xp` does, and with a warning: {_code(old)}.",
        "IKEv1 proposes what its registries have: in main mode a cipher with one hash, no `x25519` or "
        "`x448`; in quick mode all but `chacha20poly1305`. What else a set holds is for other modules.",
        "AuthIP proposes what IKEv1 does, in main mode with one group only, the first of the set that it "
        "has: its first message has the key exchange in it already.",
    )
    refused = _list(f"`{name}`: {why}." for name, why in REFUSED.items())
    return f"{_PROPOSALS}{_list(rows)}\nRefused, whatever a policy says:\n\n{refused}"
