"""Connections of strongSwan as rules of ours (swanctl.conf(5); docs/policy.md).

What cannot be said here is listed, and a rule that would then admit or cover more than was written is left
out: a second authentication, a certificate that is pinned without a name, virtual addresses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from shlex import quote

from ikd.auth import secret_tables
from ikd.control import toml
from ikd.migrate import proposals
from ikd.migrate.model import Child, Place, Setting, SharedKey, Source, listed
from policy.parse import compose
from policy.section import PolicyError
from policy.sets import LONGEST

Table = dict[str, toml.Value]

_ANYBODY = ("", "%any", "%any4", "%any6", "0.0.0.0", "::", "0.0.0.0/0", "::/0")
_CERTIFICATE = ("pubkey", "rsa", "ecdsa", "ed25519", "ed448", "ike:")
_TYPES = ("fqdn:", "email:", "rfc822:", "userfqdn:", "ipv4:", "ipv6:", "asn1dn:", "dns:")
_SELECTOR = re.compile(r"([^\[\]]*?)\s*(?:\[([^\[\]/]*)(?:/([^\[\]]*))?\])?")
_AMOUNT = re.compile(r"(\d{1,15})\s*([smhd]?)")
_SIZE = re.compile(r"(\d{1,15})\s*([kmg]?)", re.IGNORECASE)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_PLAIN_ACTIONS = {"pass": "permit", "drop": "block"}
_YES = ("yes", "true", "1", "enabled")
_TIMES = {"ike_time": "main", "time": "quick", "idle": "idle"}


class _Left(Exception):
    """A rule cannot be made; place and reason."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.place = place


@dataclass(slots=True)
class Result:
    """The tables of the files to write."""

    rules: list[Table] = field(default_factory=list)
    auth: dict[str, Table] = field(default_factory=dict)
    crypto: dict[str, Table] = field(default_factory=dict)
    keys: list[Table] = field(default_factory=list, repr=False)
    identity: str = ""

    def policy(self) -> str:
        """policy.toml."""
        parts = [toml.table("[[rule]]", rule) for rule in self.rules]
        for kind, sets in (("auth", self.auth), ("crypto", self.crypto)):
            parts += [toml.table(f"[{kind}.{toml.key(name)}]", values) for name, values in sets.items()]
        return "\n".join(parts)

    def secrets(self) -> str:
        """secrets.toml."""
        return "\n".join(toml.table("[[psk]]", entry) for entry in self.keys)

    def settings(self) -> str:
        """ikd.toml."""
        return toml.table("[identity]", {"id": self.identity} if self.identity else {})


def translate(source: Source, local: str = "") -> Result:
    """Rules, sets and keys; what is left out is added to the source's findings. `local` is the address of
    this host where a connection names none."""
    result = Result()
    kept = []
    for child in source.children:
        made = Result(auth=dict(result.auth), crypto=dict(result.crypto))
        try:
            _Rule(child, source, made, local).make()
            _check(child, made)
        except _Left as left:
            source.note(left.place, f"{child.name}: no rule: {left}")
            continue
        rule = made.rules[0]
        names = {one["name"] for one in result.rules}
        number = 2
        while rule["name"] in names:
            rule["name"] = f"{child.name}-{number}"
            number += 1
        result.rules.append(rule)
        kept.append(child)
        result.auth |= made.auth
        result.crypto |= made.crypto
    _identity(source, kept, result)
    _keys(source, result, local)
    return result


def _check(child: Child, made: Result) -> None:
    """The loader's own opinion, rule by rule, so that one that it refuses does not spoil the others."""
    rule = made.rules[0]
    used = {rule.get("auth"), rule.get("crypto")}
    made.auth, made.crypto = (
        {name: one for name, one in sets.items() if name in used} for sets in (made.auth, made.crypto)
    )
    try:
        compose([("policy.toml", made.policy())])
    except PolicyError as error:
        reasons = "; ".join(one.split(": ", 1)[-1] for one in error.complaints)
        raise _Left(child.place, reasons) from None


class _Rule:
    """One rule in the making."""

    def __init__(self, child: Child, source: Source, made: Result, local: str) -> None:
        self.child = child
        self.settings = child.settings
        self.source = source
        self.made = made
        self.table: Table = {"name": child.name}
        self.here = self.end("local", names=False) or (local if self.unnamed("local") else "")
        self.there = self.end("remote", names=True)

    def make(self) -> None:
        """Put the rule and its sets into the result."""
        if not self.child.enabled:
            self.table["enabled"] = False
        mode = self.settings.get("mode", Setting("tunnel", self.child.place))
        if mode.text in _PLAIN_ACTIONS:
            self.table["action"] = _PLAIN_ACTIONS[mode.text]
            self.traffic(transport=True)
            if "remote" not in self.table:  # the packets of every host would pass, or none
                raise _Left(mode.place, "remote_ts is the address of an end, which is not known")
        elif mode.text in ("tunnel", "transport"):
            self.refuse_what_would_widen()
            proof = self.proof()
            self.traffic(transport=mode.text == "transport")
            if mode.text == "tunnel":
                self.table["tunnel"] = {"local": self.here or "any", "remote": self.there or "any"}
            self.table["security"] = "require"
            self.protection(proof)
            self.remarks()
        else:
            raise _Left(mode.place, f'mode "{mode.text}" is not available')
        self.made.rules.append(self.table)

    def refuse_what_would_widen(self) -> None:
        """Without these, the rule would let in more than was written, or could not work."""
        if one := self.settings.get("rounds"):
            raise _Left(one.place, "a second authentication is not available with strongSwan as the peer")
        if one := self.settings.get("virtual"):
            raise _Left(one.place, f'virtual addresses ("{one.text}") are not available')
        if (one := self.settings.get("pinned")) and not self.peer():
            raise _Left(one.place, f'"{one.text}" without an identity of the peer: anybody would be admitted')

    # Who and where

    def unnamed(self, side: str) -> bool:
        """Whether a side has no address of its own."""
        one = self.settings.get(side)
        return one is None or one.text.startswith("%") or one.text in _ANYBODY

    def end(self, side: str, *, names: bool) -> str:
        """The outer address of a side, "" for any."""
        one = self.settings.get(side)
        if one is None or self.unnamed(side):
            if one and names and one.text.startswith("%") and one.text not in _ANYBODY:
                self.note(one, f'{side} "{one.text}": any address is taken, so that the peer has to begin')
            return ""
        texts = listed(one.text)
        wide = len(texts) != 1 or "/" in texts[0] or _is_range(texts[0])
        if wide or not (names or _is_address(texts[0])):
            self.note(one, f'{side} "{one.text}" is no single address: any is taken')
            return ""
        return texts[0]

    def peer(self) -> str:
        """Who the other end must prove to be, "" for anybody whom the authentication proves."""
        one = self.settings.get("remote_id")
        if one is None or one.text in _ANYBODY:
            return ""
        try:
            return identity(one.text)
        except ValueError as error:
            raise _Left(one.place, str(error)) from None

    # What

    def traffic(self, *, transport: bool) -> None:
        """local, remote, protocol and ports."""
        services: dict[str, str] = {}
        protocols: dict[str, str] = {}
        for side, address in (("local", self.here), ("remote", self.there)):
            one = self.settings.get(f"{side}_ts", Setting("dynamic", self.child.place))
            covered: list[str] = []
            for text in listed(one.text) or ["dynamic"]:
                prefix, protocol, port = self.selector(one, text)
                if prefix != "dynamic":
                    covered.append(prefix)
                elif _is_address(address):
                    covered.append(address)
                elif not (transport and (side == "local" or protocol)):
                    # the whole traffic of the host would need this peer
                    remedy = "; name it with --local" if side == "local" else ""
                    raise _Left(one.place, f"{side}_ts is the address of an end, which is not known{remedy}")
                same = protocols.setdefault(side, protocol) == protocol
                if not same or services.setdefault(f"{side}_port", port) != port:
                    raise _Left(one.place, f"several protocols or ports in one rule: {one.text}")
            if covered:
                self.table[side] = covered if len(covered) > 1 else covered[0]
        both = {one for one in protocols.values() if one}  # at one end it is meant for both
        if len(both) > 1:
            raise _Left(self.child.place, f"the ends have different protocols: {', '.join(sorted(both))}")
        given = {"protocol": "".join(both)} | services
        given = {key: value for key, value in given.items() if value}
        if given and not transport:
            raise _Left(self.child.place, "a tunnel carries every protocol; write a rule of transport mode")
        for key, value in given.items():
            self.table[key] = int(value) if value.isdecimal() else value

    def selector(self, setting: Setting, text: str) -> tuple[str, str, str]:
        """Prefix (or `dynamic`), protocol and port of one traffic selector; "" for every one."""
        found = _SELECTOR.fullmatch(text)
        if not found:
            raise _Left(setting.place, f'"{text}" is no traffic selector')
        prefix, protocol, port = (part or "" for part in found.groups())
        protocol, port = (("" if one in ("%any", "any", "0") else one) for one in (protocol, port))
        if port == "%opaque" or port == "opaque":
            raise _Left(setting.place, f'"{text}": opaque ports are not available')
        if prefix in ("", "%dynamic", "dynamic"):
            return "dynamic", protocol, port
        if "/" in prefix:
            try:
                prefix = str(ip_network(prefix, strict=False))
            except ValueError:
                raise _Left(setting.place, f'"{prefix}" is no prefix') from None
        return prefix, protocol, port

    # How

    def protection(self, proof: str) -> None:
        """auth, crypto, keying, peer."""
        if peer := self.peer():
            self.table["peer"] = peer
        self.authentication(proof)
        aggressive = self.settings.get("aggressive")
        version = self.settings.get("version", Setting("", self.child.place))
        if version.text in ("1", "2"):
            self.table["keying"] = [f"ikev{version.text}"]
        elif version.text == "0":
            self.note(version, 'the rule uses IKEv2 only; keying = ["ikev2", "ikev1"] has both')
        elif version.text:
            raise _Left(version.place, f'version "{version.text}" is not known')
        if aggressive and aggressive.text in _YES:
            if version.text == "1":
                self.table["aggressive"] = True
            else:
                self.note(aggressive, "aggressive mode is of IKEv1 only")
        crypto = self.crypto()
        if crypto:
            same = (name for name, one in self.made.crypto.items() if one == crypto)
            name = next(same, None) or _free(self.child.name, self.made.crypto)
            self.made.crypto[name] = crypto
            self.table["crypto"] = name

    def proof(self) -> str:
        """How both ends prove themselves: psk or certificate."""
        kinds = []
        for key in ("local_auth", "remote_auth"):
            one = self.settings.get(key, Setting("pubkey", self.child.place))
            if one.text == "psk":
                kinds.append("psk")
            elif one.text.startswith(_CERTIFICATE):
                kinds.append("certificate")
                if "-" in one.text or ":" in one.text:
                    self.note(one, f'{key} "{one.text}": strength and hashes are not constrained')
            else:
                raise _Left(one.place, f'authentication "{one.text}" is not available')
        if kinds[0] != kinds[1]:
            raise _Left(self.child.place, "both ends must prove themselves in the same way")
        return kinds[0]

    def authentication(self, proof: str) -> None:
        ca = self.settings.get("ca")
        name = proof
        first: list[toml.Value] = [name]
        if ca and name == "certificate" and not ca.text.startswith("%"):
            name = _free(self.child.name, self.made.auth)
            first = [{"method": "certificate", "ca": ca.text}]
        self.made.auth[name] = {"first": first}
        self.table["auth"] = name

    def crypto(self) -> Table:
        """A crypto set, empty when the default one serves."""
        found: Table = {}
        if one := self.settings.get("ike"):
            found |= _if_any("main", proposals.main(one, self.source))
        quick: list[str] = []
        esn = False
        for key, read in (("esp", proposals.quick), ("ah", proposals.ah)):
            if one := self.settings.get(key):
                some, prefers = read(one, self.source)
                quick += some
                esn = esn or prefers
        if quick:
            found |= {"quick": quick, "esn": esn}
        return found | _if_any("lifetime", self.lifetime())

    def lifetime(self) -> Table:
        """When keys are replaced; nothing for what was never."""
        found: Table = {}
        for key, name in _TIMES.items():
            one = self.settings.get(key)
            amount = _AMOUNT.fullmatch(one.text) if one else None
            seconds = int(amount[1]) * _UNITS[amount[2]] if amount else 0
            if one and not seconds:
                self.note(one, f'"{one.text}" is no time, or means never: the default is taken')
            elif one and seconds > LONGEST:
                self.note(one, f'"{one.text}" is longer than keys may live: {LONGEST // 60} min')
                found[name] = LONGEST
            elif one:
                found[name] = seconds
        for key, name in (("bytes", "quick_bytes"), ("packets", "quick_packets")):
            one = self.settings.get(key)
            amount = _SIZE.fullmatch(one.text) if one else None
            if amount and int(amount[1]):
                found[name] = int(amount[1]) * _SIZES[amount[2].lower()]
            elif one and not amount:
                self.note(one, f'"{one.text}" is no amount: the default is taken')
        return found

    def remarks(self) -> None:
        """What works in another way."""
        if (one := self.settings.get("start")) and one.text not in ("trap", "start|trap", "trap|start"):
            self.note(
                one, f"ikd negotiates when a packet needs it, or with: ikctl up {quote(self.child.name)}"
            )
        for key, text in (
            ("pinned", "any certificate of a trusted authority with this name is accepted"),
            ("authorities", "name it in identity.trust of ikd.toml, and its subject as ca in the rule's set"),
            ("local_certs", "copy it and its key to pki/ and name them in [identity] of ikd.toml"),
        ):
            if one := self.settings.get(key):
                self.note(one, f'"{one.text}": {text}')

    def note(self, setting: Setting, text: str) -> None:
        """List something about a value."""
        self.source.note(setting.place, f"{self.child.name}: {text}")


def _if_any(key: str, value: toml.Value) -> Table:
    return {key: value} if value else {}


def _free(name: str, taken: Mapping[str, Table]) -> str:
    number = 2
    found = name
    while found in taken:
        found = f"{name}-{number}"
        number += 1
    return found


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_range(text: str) -> bool:
    low, dash, _ = text.partition("-")
    return bool(dash) and _is_address(low.strip())


# Identities and keys ----------------------------------------------------------------------------------------


def identity(text: str) -> str:
    """An identity as it is written here; raises `ValueError`."""
    text = text.strip().removeprefix("%")  # which only keeps IDr out of IKE_AUTH; %any is not asked for
    if text.startswith("@#"):
        try:
            plain = bytes.fromhex(text[2:]).decode("ascii")
        except ValueError:
            raise ValueError(f'identity "{text}": its octets are no text') from None
        if not plain.isprintable():
            raise ValueError(f'identity "{text}": its octets are no text')
        return f"keyid:{plain}"
    kind = next((one for one in ("@@", "@", *_TYPES) if text.lower().startswith(one)), "")
    if not kind and re.match(r"[a-z0-9]+:[^:]*$", text) and not text.startswith("keyid:"):
        raise ValueError(f'identity "{text}": this type is not available')
    plain = text[len(kind) :].strip()
    if not plain:  # a rule without a peer admits anybody
        raise ValueError(f'identity "{text}": there is no name in it')
    return plain


def _identity(source: Source, kept: Sequence[Child], result: Result) -> None:
    """The host has one identity: that of the first connection that became a rule."""
    for child in kept:
        one = child.settings.get("local_id")
        if one is None or one.text in _ANYBODY:
            continue
        try:
            text = identity(one.text)
        except ValueError as error:
            source.note(one.place, f"{child.name}: {error}")
            continue
        result.identity = result.identity or text
        if text != result.identity:
            source.note(
                one.place, f'{child.name}: this host is "{result.identity}" and cannot be "{text}", too'
            )


def _keys(source: Source, result: Result, local: str) -> None:
    """The pre-shared keys, each for the names that are not ours."""
    ours = {result.identity.casefold(), local}
    for child in source.children:
        one = child.settings.get("local")
        ours |= {text for text in listed(one.text) if _is_address(text)} if one else set()
        with suppress(ValueError, KeyError):
            ours.add(identity(child.settings["local_id"].text).casefold())
    for key in source.keys:
        entry = _key(source, key, ours)
        if entry is None:
            continue
        # a line that went wrong may have the secret in what looks like a name: no reason shows one
        if secret_tables.parse({"psk": [entry]})[1]:
            source.note(key.place, "the key is left out: it, or a name it is for, is not understood")
        elif secret_tables.parse({"psk": [*result.keys, entry]})[1]:
            source.note(key.place, "the key is left out: there is another one for the same peer")
        else:
            result.keys.append(entry)


def _key(source: Source, key: SharedKey, ours: set[str]) -> Table | None:
    try:
        names = [identity(one) for one in key.ids if one not in _ANYBODY]
    except ValueError:  # without the name it would be for anybody
        source.note(key.place, "the key is left out: a name it is for is not understood")
        return None
    peers: list[toml.Value] = [one for one in dict.fromkeys(names) if one.casefold() not in ours]
    if any(one in _ANYBODY for one in key.ids):
        peers = []
    form = {"0x": "secret_hex", "0s": "secret_base64"}.get(key.text[:2].lower(), "secret")
    return _if_any("peers", peers) | {form: key.text if form == "secret" else key.text[2:]}
