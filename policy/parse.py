"""Policy files, as text, into a `Policy`; docs/policy.md has the format.

Everything wrong with all files is collected and raised as one `PolicyError`; each complaint names file, line
and key. What is right but not enforced by this build becomes a warning, or a complaint if the rule would be
empty without it. Files are read by `policy.load`; address keywords come resolved from outside.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from itertools import product
from typing import Any

from policy import limits
from policy.checks import Draft, run
from policy.engine import EXEMPT, Policy
from policy.modules import MODULES, settle
from policy.peers import Form, classify, distinguished
from policy.position import Place, positions
from policy.presets import PRESETS
from policy.ranking import doubts
from policy.rules import AccessList, AuthSet, CryptoSet, Rule, Tunnel
from policy.schema import ACCESS, AUTH, CRYPTO, FILE, RULE, TUNNEL, hint
from policy.section import Notes, PolicyError, Section
from policy.sets import auth_set, crypto_set
from policy.values import ANY, Span, endpoint, keyword, ports, protocol, spans
from sadb.address import Address, Network
from sadb.algorithms import SecurityProtocol
from sadb.sa import Action, Level
from sadb.selector import ANY_PORT, Selector, TrafficSelector

Keywords = Mapping[str, Sequence[Network | Address]]

_LONGEST_NAME = 255


def parse(text: str, source: str = "policy.toml", keywords: Keywords | None = None) -> Policy:
    """A policy from the text of one file; raises `PolicyError`."""
    return compose(((source, text),), keywords)


def compose(documents: Iterable[tuple[str, str]], keywords: Keywords | None = None) -> Policy:
    """A policy from files as (name, text), in order. `keywords` gives the addresses behind keywords
    such as LocalSubnet; a rule with one that has none is not in force. Raises `PolicyError`."""
    notes = Notes()
    files = [file for source, text in documents if (file := _document(source, text, notes))]
    sets = _sets(files, notes)
    rules = _rules(files, sets, keywords or {}, notes)
    if notes.complaints:
        raise PolicyError(tuple(notes.complaints))
    return Policy(rules, (*notes.warnings, *doubts(rules)))


def _document(source: str, text: str, notes: Notes) -> Section | None:
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the last for thousands of brackets inside each other
        where = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
        line = where[1] if where else max(1, len(text.splitlines()))  # else it is the end of the document
        notes.complaints.append(f"{source}:{line}: not TOML: {str(error).split(' (at ')[0]}")
        return None
    return Section(Place(source, positions(text)), FILE, values, notes)


# Sets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sets:
    """The sets that rules may name, with those names that are there but wrong."""

    auth: dict[str, AuthSet]
    crypto: dict[str, CryptoSet]
    wrong: frozenset[tuple[str, str]]


def presets() -> Sets:
    """The built-in sets."""
    notes = Notes()
    sets = _read_sets([_document("built-in", PRESETS, notes)], notes, None)
    if notes.complaints:
        raise PolicyError(tuple(notes.complaints))
    return sets


def _sets(files: Sequence[Section], notes: Notes) -> Sets:
    built_in = presets()
    own = _read_sets(files, notes, built_in.crypto["default"])
    return Sets(built_in.auth | own.auth, built_in.crypto | own.crypto, own.wrong)


def _read_sets(files: Sequence[Section | None], notes: Notes, base: CryptoSet | None) -> Sets:
    auth: dict[str, AuthSet] = {}
    crypto: dict[str, CryptoSet] = {}
    wrong: set[tuple[str, str]] = set()
    places: dict[tuple[str, str], Place] = {}
    for file in filter(None, files):
        for kind, table in (("auth", AUTH), ("crypto", CRYPTO)):
            found: dict[str, Any] = file.get(kind, {})
            for name, values in found.items():
                place = file.place.key(kind).key(name)
                if (earlier := places.setdefault((kind, name), place)) is not place:
                    notes.complaints.append(f"{place}: there is another set of this name, at {earlier.file}")
                before = len(notes.complaints)
                if not isinstance(values, dict):
                    notes.complaints.append(
                        f"{place}: a set is a table: write [{kind}.{name}] above its keys"
                    )
                elif kind == "auth":
                    auth[name] = auth_set(name, Section(place, table, values, notes))
                else:
                    # the first set of the presets is the base of the others
                    like = base or crypto.get("default")
                    crypto[name] = crypto_set(name, Section(place, table, values, notes), like)
                if len(notes.complaints) > before:
                    wrong.add((kind, name))
    return Sets(auth, crypto, frozenset(wrong))


# Rules ------------------------------------------------------------------------------------------------------


def _rules(files: Sequence[Section], sets: Sets, keywords: Keywords, notes: Notes) -> list[Rule]:
    rules: list[Rule] = []
    places: dict[str, Place] = {}
    for file in files:
        tables: list[Any] = file.get("rule", [])
        for index, values in enumerate(tables):
            if not isinstance(values, dict):
                file.complain("rule", "rules are tables: write [[rule]] above the keys of each")
                break
            name = values.get("name")
            place = file.place.key("rule").member(index, name if isinstance(name, str) else "")
            section = Section(place, RULE, values, notes)
            rule = _rule(section, sets, keywords)
            if rule.name and (earlier := places.get(rule.name)):
                section.complain(
                    "name", f"there is another rule of this name, at {earlier.file}; names are unique"
                )
            places.setdefault(rule.name, place)
            rules.append(rule)
    return rules


def _rule(section: Section, sets: Sets, keywords: Keywords) -> Rule:
    action = Action(section.get("action", Action.SECURE.value))
    both = section.get("security", Level.REQUIRE.value if action is Action.SECURE else Level.NONE.value)
    local, missing_here = _addresses(section, "local", keywords)
    remote, missing_there = _addresses(section, "remote", keywords)
    draft = Draft(
        section=section,
        action=action,
        inbound=Level(section.get("inbound", both)),
        outbound=Level(section.get("outbound", both)),
        local=local,
        remote=remote,
        protocol=section.read("protocol", protocol, 0),
        local_ports=section.each("local_port", ports, (int, str)) or (ANY_PORT,),
        remote_ports=section.each("remote_port", ports, (int, str)) or (ANY_PORT,),
        tunnel=_tunnel(section),
    )
    run(draft)
    enabled = section.get("enabled", True)
    empty = ", ".join(missing_here + missing_there)
    if empty and enabled:
        section.warn(None, f"not in force: address resolution empty ({empty})")
    rule = Rule(
        name=section.read("name", _name, ""),
        selector=Selector(_side(draft, local, draft.local_ports), _side(draft, remote, draft.remote_ports)),
        action=action,
        mode=draft.mode,
        inbound=draft.inbound,
        outbound=draft.outbound,
        tunnel=draft.tunnel,
        encrypt=section.get("encrypt", False),
        peer=section.read("peer", _peer, None),
        allow=_access(section, "allow"),
        deny=_access(section, "deny"),
        interface=section.get("interface", None),
        group=section.get("group", None),
        description=section.get("description", ""),
        enabled=enabled and not empty,
        offload=section.get("offload", True),
        source=section.place.file,
        status=f"address resolution empty: {empty}" if empty else "",
    )
    if "name" not in section and "name" not in section.bad:
        section.complain("name", "missing: every rule has a name")
    if rule.secures:
        rule = _securing(section, rule, sets)
    limits.report(section, rule)
    return rule


def _name(text: str) -> str:
    if not text.strip() or "|" in text or not text.isprintable() or len(text) > _LONGEST_NAME:
        raise ValueError(f'a name is 1 to {_LONGEST_NAME} printable characters without "|"')
    if text.lower() == "all" or text.lower().startswith(EXEMPT):
        raise ValueError(f'"{text}" has a meaning of its own in commands; choose another name')
    return text


def _identity(text: str) -> str:
    form, plain = classify(text)
    if form is Form.GROUP and set("*?") & set(plain):
        raise ValueError(f'"{text}" has wildcards; a group is a whole name or SID')
    broken = {Form.DN: not distinguished(plain), Form.HOST: " " in plain}
    if not plain or broken.get(form):
        raise ValueError(
            f'"{text}" is not an identity: a name, address, user@name, CN=name,O=..., keyid:TEXT, group:NAME'
        )
    return text


def _peer(text: str) -> str:
    if classify(text)[0] is Form.GROUP:
        raise ValueError(f'"{text}" is a group, and the peer is one host; list it in allow or deny')
    return _identity(text)


def _addresses(section: Section, key: str, keywords: Keywords) -> tuple[tuple[Span, ...], tuple[str, ...]]:
    """What one end covers, and the keywords that have no address."""
    if key not in section:
        return ANY, ()
    words = [w for t in _texts(section.values[key]) if (w := keyword(t))]
    if not words:
        found = section.each(key, spans)
        return tuple(dict.fromkeys(span for some in found for span in some)), ()
    if len(words) != len(_texts(section.values[key])):
        section.complain(key, "addresses and keywords do not go together in one list; write two rules")
        return (), ()
    networks = [network for word in words for network in keywords.get(word, ())]
    empty = tuple(word for word in words if not keywords.get(word))
    ends = tuple(
        (n[0], n[-1]) if isinstance(n, IPv4Network | IPv6Network) else (n, n) for n in dict.fromkeys(networks)
    )
    # one keyword without addresses does not take those of the others away
    return ends, empty if not ends else ()


def _texts(value: Any) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _side(
    draft: Draft, covered: tuple[Span, ...], some: tuple[tuple[int, int], ...]
) -> tuple[TrafficSelector, ...]:
    return tuple(
        TrafficSelector(low, high, draft.protocol, span) for (low, high), span in product(covered, some)
    )


def _tunnel(section: Section) -> Tunnel | None:
    inner = section.sub("tunnel", TUNNEL)
    if inner is None:
        return None
    local = inner.read("local", endpoint, None)
    remote = inner.read("remote", endpoint, None)
    if isinstance(local, str):
        inner.complain("local", f'"{local}" is a name; write the address of this machine, or leave it out')
        local = None
    if "remote" not in inner and "remote" not in inner.bad:
        inner.complain("remote", 'missing: the other gateway\'s address or name, or "any" to only answer')
    if inner.bad:
        section.bad.add("tunnel")
    return Tunnel(local, None, remote) if isinstance(remote, str) else Tunnel(local, remote)


def _access(section: Section, key: str) -> AccessList | None:
    inner = section.sub(key, ACCESS)
    if inner is None:
        return None
    found = AccessList(inner.each("machines", _identity), inner.each("users", _identity))
    if not (found.machines or found.users or inner.bad):
        section.complain(key, 'it lists nobody; write { machines = ["*.example"] } or leave it out')
    return found


def _securing(section: Section, rule: Rule, sets: Sets) -> Rule:
    """The rule with its sets and keying modules."""
    auth_name, crypto_name = section.get("auth", "default"), section.get("crypto", "default")
    auth = _named(section, "auth", auth_name, sets.auth, sets.wrong)
    crypto = _named(section, "crypto", crypto_name, sets.crypto, sets.wrong)
    keying = section.each("keying", _module)
    if len(set(keying)) < len(keying):
        section.complain("keying", "a module stands in the list twice")
    if crypto and rule.encrypt:
        kept = tuple(suite for suite in crypto.quick if suite.encryption and suite.encryption.encrypts)
        if not kept:
            section.complain("encrypt", f'no quick proposal of crypto set "{crypto.name}" encrypts')
        crypto = replace(crypto, quick=kept)
    if crypto and any(suite.protocol is SecurityProtocol.AH for suite in crypto.quick):
        text = f'set "{crypto.name}" has AH, which does not pass a NAT; peers behind one need ESP'
        section.warn("crypto", text)
    if crypto and crypto.deprecated:
        old = ", ".join(crypto.deprecated)
        text = (
            f'set "{crypto.name}" has {old}, for old peers only (RFC 8221, RFC 8247); use it with no others'
        )
        section.warn("crypto", text)
    rule = replace(rule, aggressive=_aggressive(section, keying, auth, crypto))
    if auth is None or not section.bad.isdisjoint(("auth", "keying")):
        return replace(rule, crypto=crypto, auth=auth)
    settled = settle(auth, keying, crypto)
    if settled.refusals:
        limits.unavailable(section, rule, "keying" if keying else "auth", "; ".join(settled.refusals))
    for warning in settled.warnings if rule.enabled else ():
        section.warn("keying" if keying else "auth", warning)
    if rule.enabled and "authip" in settled.keying and crypto and crypto_name != "default":
        _one_group(section, "crypto", "AuthIP", crypto)  # who takes the default set has not chosen a group
    return replace(rule, crypto=crypto, auth=settled.auth, keying=settled.keying)


def _aggressive(
    section: Section, keying: tuple[str, ...], auth: AuthSet | None, crypto: CryptoSet | None
) -> bool:
    """Whether the rule asks for aggressive mode, and what that costs it."""
    if not section.get("aggressive", False):
        return False
    if "ikev1" not in keying:
        section.complain(
            "aggressive", 'only IKEv1 has aggressive mode; add "ikev1" to keying, or leave it out'
        )
        return False
    text = "aggressive mode sends identities in the clear"
    if auth and any(method.method == "psk" for method in auth.first):
        text += ", and anybody who asks gets what it takes to guess the pre-shared key offline: make it long"
    section.warn("aggressive", f"{text}; use it only for peers that have no main mode")
    if crypto:
        _one_group(section, "aggressive", "it", crypto)
    return True


def _one_group(section: Section, key: str, who: str, crypto: CryptoSet) -> None:
    """What becomes of the groups of a set where the first message has the key exchange in it already."""
    groups = dict.fromkeys(suite.group.name for suite in crypto.main if suite.ikev1)
    if len(groups) > 1:
        first, *others = groups
        rest = ", ".join(others)
        section.warn(key, f"{who} cannot negotiate groups: {first} is proposed, never {rest}")


def _module(text: str) -> str:
    if text not in MODULES:
        raise ValueError(f'unknown keying module "{text}"; {hint(text, MODULES)}')
    return text


def _named(
    section: Section, key: str, name: str, known: Mapping[str, Any], wrong: frozenset[tuple[str, str]]
) -> Any:
    if name not in known and (key, name) not in wrong and key not in section.bad:
        section.complain(key, f'there is no {key} set "{name}"; {hint(name, known)}')
    if (key, name) in wrong:  # its own complaints say what is wrong with it
        section.bad.add(key)
        return None
    return known.get(name)
