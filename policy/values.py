"""Single values of a policy file: addresses, ports, protocols, times, sizes and proposals, from their text.

Every function takes what TOML gave and returns the meaning, or raises `ValueError` with a sentence for the
administrator. Nothing here looks at more than one value; `policy.parse` puts them together.
"""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import TypeVar

from policy.schema import KEYWORDS, hint, nearest
from sadb.address import Address
from sadb.algorithms import (
    ALIASES,
    ENCRYPTION_BY_NAME,
    GROUP_BY_NAME,
    INTEGRITY_BY_NAME,
    PRF_BY_NAME,
    REFUSED,
    Encryption,
    Group,
    Integrity,
    Kind,
    MainSuite,
    Prf,
    QuickSuite,
    SecurityProtocol,
)
from sadb.selector import ANY_PORT, ICMP, ICMPV6, SCTP, TCP, UDP

T = TypeVar("T")
Span = tuple[Address, Address]

ANY: tuple[Span, ...] = tuple((n[0], n[-1]) for n in (ip_network("0.0.0.0/0"), ip_network("::/0")))

PROTOCOLS = {
    "any": 0, "icmp": ICMP, "igmp": 2, "ipip": 4, "tcp": TCP, "udp": UDP, "ipv6": 41, "gre": 47, "esp": 50,
    "ah": 51, "icmpv6": ICMPV6, "ipv6-icmp": ICMPV6, "ospf": 89, "pim": 103, "vrrp": 112, "l2tp": 115,
    "sctp": SCTP,
}  # fmt: skip

SERVICES = {
    "ssh": 22, "telnet": 23, "smtp": 25, "dns": 53, "domain": 53, "http": 80, "kerberos": 88, "ntp": 123,
    "imap": 143, "snmp": 161, "ldap": 389, "https": 443, "smb": 445, "microsoft-ds": 445, "syslog": 514,
    "ldaps": 636, "imaps": 993, "mssql": 1433, "l2tp": 1701, "nfs": 2049, "mysql": 3306, "rdp": 3389,
    "postgresql": 5432, "postgres": 5432,
}  # fmt: skip


# Addresses, ports, protocols --------------------------------------------------------------------------------


def keyword(text: str) -> str | None:
    """The address keyword as docs/policy.md spells it, or None; case does not matter."""
    return next((word for word in KEYWORDS if word.lower() == text.strip().lower()), None)


def spans(text: str) -> tuple[Span, ...]:
    """What an address, a prefix, a range or `any` covers."""
    text = text.strip()
    if text.lower() == "any":
        return ANY
    if "%" in text:
        raise ValueError(f'"{text}": leave the part from % on away; a rule covers every interface')
    if "/" in text:
        return (_prefix(text),)
    if "-" in text and (text[0].isdigit() or ":" in text):
        return (_range(text),)
    try:
        one = ip_address(text)
    except ValueError:
        close = nearest(text, KEYWORDS) if text.isalpha() else None
        forms = f'did you mean "{close}"?' if close else f"keywords are {', '.join(KEYWORDS)}"
        known = 'an address, a prefix (10.1.0.0/16), a range (10.1.0.1-10.1.0.9) or "any"'
        raise ValueError(f'"{text}" is not {known}; {forms}') from None
    return ((one, one),)


def _prefix(text: str) -> Span:
    head, _, length = text.partition("/")
    try:
        bits = ip_address(head).max_prefixlen
    except ValueError:
        raise ValueError(f'bad prefix "{text}": "{head}" is not an address') from None
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f'bad prefix "{text}": the length after / is 0 to {bits}, not "{length}"') from None
    if network.network_address != ip_address(head):
        extra = f"it has bits set after the first {network.prefixlen}"
        raise ValueError(f'bad prefix "{text}": {extra}; did you mean "{network}"?')
    return network[0], network[-1]


def _range(text: str) -> Span:
    ends = [part.strip() for part in text.split("-")]
    try:
        low, high = map(ip_address, ends)
    except ValueError:
        raise ValueError(f'bad range "{text}": write two addresses with - between them') from None
    if low.version != high.version:
        raise ValueError(f'bad range "{text}": its ends are of different families')
    if int(low) > int(high):
        raise ValueError(f'bad range "{text}": it ends before it begins; did you mean "{high}-{low}"?')
    return low, high


def endpoint(text: str) -> Address | str | None:
    """A tunnel end point: an address, None for `any`, or a host name."""
    text = text.strip()
    if text.lower() == "any":
        return None
    try:
        return ip_address(text)
    except ValueError:
        pass
    labels = text.rstrip(".").split(".")
    fits = all(re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", label) for label in labels)
    if not fits or labels[-1].isdigit() or len(text) > 253:
        raise ValueError(f'"{text}" is not an address, a host name or "any"')
    return text.rstrip(".").lower()


def protocol(value: str | int) -> int:
    """An IP protocol by name or number; 0 is any."""
    if isinstance(value, str) and value.strip().lower() in PROTOCOLS:
        return PROTOCOLS[value.strip().lower()]
    try:
        number = int(value)
    except ValueError:
        raise ValueError(f'unknown protocol "{value}"; {hint(str(value), PROTOCOLS)}') from None
    if not 1 <= number <= 255:
        raise ValueError(f'protocol {number} is not in 1 to 255; write "any" for every protocol')
    return number


def ports(value: str | int) -> tuple[int, int]:
    """A port, a service name or a range of ports, both ends included."""
    if isinstance(value, int):
        return _port(value), _port(value)
    text = value.strip().lower()
    if text == "any":
        return ANY_PORT
    if text in SERVICES:
        return SERVICES[text], SERVICES[text]
    if text.isdecimal():
        return _port(int(text)), _port(int(text))
    low, dash, high = (part.strip() for part in text.partition("-"))
    if dash and low.isdecimal() and high.isdecimal():
        first, last = _port(int(low)), _port(int(high))
        if first > last:
            raise ValueError(f'port range "{value}" ends before it begins; did you mean "{last}-{first}"?')
        return first, last
    close = nearest(text, SERVICES)
    more = f'did you mean "{close}"?' if close else "service names not listed in docs/policy.md are numbers"
    raise ValueError(f'"{value}" is not a port (1 to 65535), a range (8000-8099) or a known service; {more}')


def _port(number: int) -> int:
    if not 1 <= number <= 0xFFFF:
        raise ValueError(f"port {number} is not in 1 to 65535")
    return number


# Amounts ----------------------------------------------------------------------------------------------------

TIMES = {"s": 1, "min": 60, "h": 3600, "d": 86400}
SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
SIZES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def seconds(value: float | str) -> float:
    """A time: a number of seconds, or text such as "8 h", "90 min"."""
    return _amount(value, TIMES, "90 min")


def octets(value: float | str) -> int:
    """A size: a number of octets, or text such as "100 GB", "64 MiB"."""
    size = round(_amount(value, SIZES, "100 GB"))
    if not 0 < size < 1 << 64:
        raise ValueError(f"{value} is not a size that can be counted")
    return size


def _amount(value: float | str, units: dict[str, int], example: str) -> float:
    if isinstance(value, int | float):
        amount = float(value) if abs(value) < 1 << 64 else float("inf")
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)
        if not match or match[2].lower() not in units:
            known = ", ".join(units)
            raise ValueError(
                f'"{value}" is not an amount: a number and a unit ({known}), such as "{example}"'
            )
        amount = float(match[1]) * units[match[2].lower()]
    if not 0 < amount < float("inf"):  # this also refuses what is not a number
        raise ValueError(f'{value} is not an amount; write something like "{example}"')
    return amount


# Proposals --------------------------------------------------------------------------------------------------

_SEPARATOR = re.compile(r"[\s,+-]+")


class _Parts:
    """The words of one proposal, sorted by what they name; at most one of each."""

    __slots__ = ("encryption", "group", "integrity", "prf", "text", "words")

    def __init__(self, text: str) -> None:
        self.text = text
        self.words: list[str] = []
        self.encryption: Encryption | None = None
        self.integrity: Integrity | None = None
        self.prf: Prf | None = None
        self.group: Group | None = None
        for word in filter(None, _SEPARATOR.split(text.strip().lower())):
            self._take(ALIASES.get(word, word))

    def _take(self, word: str) -> None:
        if word in REFUSED:
            raise ValueError(f'"{word}" is refused: {REFUSED[word]}')
        if row := ENCRYPTION_BY_NAME.get(word):
            self.encryption = self._once("encryption", self.encryption, row)
        elif group := GROUP_BY_NAME.get(word):
            self.group = self._once("group", self.group, group)
        elif integrity := INTEGRITY_BY_NAME.get(word):
            self.integrity = self._once("hash", self.integrity, integrity)
        elif prf := PRF_BY_NAME.get(word.removeprefix("prf")):
            self.prf = self._once("PRF", self.prf, prf)
        elif word in ("ah", "esp", "esn", "noesn"):
            self.words.append(word)
        else:
            known = (*ENCRYPTION_BY_NAME, *INTEGRITY_BY_NAME, *GROUP_BY_NAME, *REFUSED)
            raise ValueError(f'unknown algorithm "{word}" in "{self.text}"; {hint(word, known)}')

    def _once(self, what: str, before: T | None, now: T) -> T:
        if before is not None:
            raise ValueError(
                f'"{self.text}" names two of {what}; write one proposal for each, as separate entries'
            )
        return now


def main_suite(text: str) -> MainSuite:
    """A main-mode proposal such as "x25519 aes256gcm sha384"; with CBC the hash is integrity and PRF."""
    parts = _Parts(text)
    if parts.words:
        raise ValueError(f'"{parts.words[0]}" belongs into a quick-mode proposal')
    if parts.group is None:
        raise ValueError(f'"{text}" names no Diffie-Hellman group; add x25519, p256 or modp2048')
    if parts.encryption is None:
        raise ValueError(f'"{text}" names no encryption; add aes256gcm')
    if parts.encryption.esp_only:
        raise ValueError(f'"{parts.encryption.name}" is for quick mode only; main mode always encrypts')
    hashed = parts.integrity
    prf = parts.prf or (PRF_BY_NAME[hashed.name] if hashed else None)
    if prf is None:
        raise ValueError(f'"{text}" names no hash; add sha256 or sha384')
    if parts.encryption.aead:
        if parts.prf and hashed:
            name = parts.encryption.name
            raise ValueError(f'"{text}": {name} has its own integrity; leave {hashed.name} out')
        return MainSuite(parts.group, parts.encryption, prf)
    if hashed is None:
        raise ValueError(f'"{text}" has no integrity; {parts.encryption.name} needs a hash such as sha256')
    return MainSuite(parts.group, parts.encryption, prf, hashed)


def quick_suite(text: str, esn: bool = True) -> QuickSuite:
    """A quick-mode proposal such as "aes128gcm", "aes256 sha256 x25519", "null sha256" or "ah sha256"."""
    parts = _Parts(text)
    if parts.prf:
        raise ValueError(f'"{text}": quick mode has no PRF')
    if "esn" in parts.words or "noesn" in parts.words:
        esn = "noesn" not in parts.words
    if "ah" in parts.words:
        if parts.encryption or "esp" in parts.words:
            raise ValueError(f'"{text}": AH does not encrypt, and AH with ESP is not available; choose one')
        if parts.integrity is None:
            raise ValueError(f'"{text}" names no hash; write "ah sha256"')
        return QuickSuite(SecurityProtocol.AH, None, parts.integrity, parts.group, esn)
    if parts.encryption is None:
        raise ValueError(f'"{text}" names no encryption; add aes128gcm, or null to protect integrity only')
    if parts.encryption.aead and parts.integrity:
        raise ValueError(
            f'"{text}": {parts.encryption.name} has its own integrity; leave {parts.integrity.name} out'
        )
    if not parts.encryption.aead and parts.integrity is None:
        name = parts.encryption.name
        what = (
            "nothing would be protected" if parts.encryption.kind is Kind.NULL else f"{name} has no integrity"
        )
        raise ValueError(f'"{text}": {what}; write "{name} sha256"')
    return QuickSuite(SecurityProtocol.ESP, parts.encryption, parts.integrity, parts.group, esn)
