"""Authentication sets and crypto sets out of their tables, checked as Windows checks its own (MS-FASP
sections 2.2.65 and 2.2.74). What a keying module can do with a set is decided per rule (`policy.modules`)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

from policy.rules import AuthMethod, AuthSet, CryptoSet, Lifetimes
from policy.schema import FIRST, LIFETIME, METHOD, SECOND, hint
from policy.section import Section
from policy.values import main_suite, octets, quick_suite, seconds
from sadb.algorithms import MainSuite, QuickSuite

CERTIFICATES = ("certificate", "user-certificate")
_NARROWING = ("ca", "health", "eku", "signing", "minimum_rsa_bits", "mutual")
_ANONYMOUS = (
    "anonymous proves nobody, and whoever sits between can make both ends agree on it; "
    "it needs a second list that does not end with anonymous"
)
_OID = re.compile(r"[0-2](\.(0|[1-9]\d*))+")

# Authentication ---------------------------------------------------------------------------------------------


def auth_set(name: str, section: Section) -> AuthSet:
    """One `[auth.NAME]`; complaints go to the section's notes."""
    first = _methods(section, "first", FIRST)
    second = _methods(section, "second", SECOND)
    if "first" not in section:
        if "first" not in section.bad:
            section.complain("first", 'missing: name at least one method, such as "certificate"')
    elif "first" not in section.bad:
        for message in filter(None, (check(first) for check in FIRST_CHECKS)):
            section.complain("first", message)
    if second and "second" not in section.bad:
        for message in filter(None, (check(second) for check in SECOND_CHECKS)):
            section.complain("second", message)
    found = AuthSet(name, first, second)
    # the key that protects the choice of a method comes out of the method (MS-AIPS section 5.1.1)
    nobody = any(method.method == "anonymous" for method in first) and (not second or found.optional)
    if nobody and section.bad.isdisjoint(("first", "second")):
        section.complain("first", _ANONYMOUS)
    return found


def _methods(section: Section, key: str, known: tuple[str, ...]) -> tuple[AuthMethod, ...]:
    members: list[Any] = section.get(key, [])
    if key in section and key not in section.bad and not members:
        section.complain(key, "the list is empty; name a method or leave the key out")
    found = []
    for index, member in enumerate(members):
        place = section.place.key(key).member(index)
        values = {"method": member} if isinstance(member, str) else member
        if not isinstance(values, dict):
            section.complain(
                key, f'{member!r} is neither a method name nor a table like {{ method = "psk" }}'
            )
            continue
        inner = Section(place, METHOD, values, section.notes)
        found.append(_method(inner, known))
        if inner.bad:
            section.bad.add(key)
    return tuple(found)


def _method(section: Section, known: tuple[str, ...]) -> AuthMethod:
    method = section.get("method", "")
    if "method" not in section and "method" not in section.bad:
        section.complain("method", f"missing: one of {', '.join(known)}")
    elif "method" not in section.bad and method not in known:
        section.complain("method", f'"{method}" is not a method here; {hint(method, known)}')
    elif method not in CERTIFICATES:
        for key in filter(section.__contains__, _NARROWING):
            section.complain(key, f'only a certificate has it, not "{method}"')
    bits = section.get("minimum_rsa_bits", 2048)
    if not 1024 <= bits <= 16384:
        section.complain("minimum_rsa_bits", f"{bits} is not in 1024 to 16384; 2048 is usual")
    return AuthMethod(
        method=method,
        ca=section.read("ca", _ca, None),
        health=section.get("health", False),
        eku=section.each("eku", _eku),
        signing=section.get("signing", None),
        minimum_rsa_bits=bits,
        mutual=section.get("mutual", True),
    )


def _ca(text: str) -> str:
    if "=" not in text:
        raise ValueError(f'"{text}" is not a distinguished name; write it like "CN=Corp CA,O=Corp"')
    return text


def _eku(text: str) -> str:
    if not _OID.fullmatch(text):
        raise ValueError(f'"{text}" is not a dotted object identifier such as "1.3.6.1.5.5.7.3.17"')
    return text


Check = Callable[[tuple[AuthMethod, ...]], str | None]


def _once(*names: str) -> Check:
    def check(methods: tuple[AuthMethod, ...]) -> str | None:
        counts = Counter(method.method for method in methods)
        twice = [name for name in names if counts[name] > 1]
        return f'"{twice[0]}" stands in the list twice; once is enough' if twice else None

    return check


def _ntlm_or_psk(methods: tuple[AuthMethod, ...]) -> str | None:
    names = {method.method for method in methods}
    return (
        "ntlm and psk may not stand in one set; no keying module does both"
        if {"ntlm", "psk"} <= names
        else None
    )


def _contiguous(methods: tuple[AuthMethod, ...]) -> str | None:
    runs = [key for key, _ in groupby(m.signing for m in methods if m.method == "certificate")]
    split = [key for key, count in Counter(runs).items() if count > 1]
    return f"certificates with signing {split[0] or 'any'} must follow each other" if split else None


def _health_or_not(methods: tuple[AuthMethod, ...]) -> str | None:
    kinds = {method.health for method in methods if method.method == "certificate"}
    return "either all certificates of the set are health certificates or none" if len(kinds) > 1 else None


def _anonymous_last(methods: tuple[AuthMethod, ...]) -> str | None:
    if [method.method for method in methods] == ["anonymous"]:
        return "anonymous alone proves nobody; name another method before it, or leave second out"
    if any(one.method == "anonymous" for one, _ in pairwise(methods)):
        return "anonymous stands last or nowhere: what follows it would never be asked"
    return None


def _second_health(methods: tuple[AuthMethod, ...]) -> str | None:
    if any(method.method == "user-certificate" and method.health for method in methods):
        return "a user certificate is never a health certificate"
    if any(method.method == "certificate" and not method.health for method in methods):
        return "a machine certificate in second must have health = true; for a user write user-certificate"
    return None


def _second_unmixed(methods: tuple[AuthMethod, ...]) -> str | None:
    names = {method.method for method in methods}
    if "certificate" in names and any(name.startswith("user-") for name in names):
        return "a health certificate and user methods may not stand in one second list"
    return None


# MS-FASP section 2.2.65: what the first list may have, and the second
FIRST_CHECKS: tuple[Check, ...] = (
    _once("anonymous", "kerberos", "ntlm", "psk"), _ntlm_or_psk, _contiguous, _health_or_not,
)  # fmt: skip
SECOND_CHECKS: tuple[Check, ...] = (
    _once("anonymous", "user-kerberos", "user-ntlm"), _anonymous_last, _second_health, _second_unmixed,
)  # fmt: skip

# Crypto -----------------------------------------------------------------------------------------------------

LONGEST = 2879 * 60  # Windows' limit for both modes (MS-FASP section 2.2.74)
SHORTEST_QUICK = 5 * 60
FEWEST_OCTETS = 20_480 * 1000
MOST_PROPOSALS = 100
# 64-bit blocks repeat after some 32 GB, and long before that two equal ones tell about their texts (RFC 8221)
MOST_OCTETS_64 = 10**9


def crypto_set(name: str, section: Section, base: CryptoSet | None) -> CryptoSet:
    """One `[crypto.NAME]`; what it leaves out comes from `base`, the built-in default set."""
    main = section.each("main", main_suite) or (base.main if base else ())
    esn = section.get("esn", True)
    quick = section.each("quick", lambda text: quick_suite(text, esn))
    if not quick and base:
        quick = tuple(replace(suite, esn=esn) for suite in base.quick)
    if section.get("pfs", False):
        quick = _forward_secret(main, quick)
    for key, suites in (("main", main), ("quick", quick)):
        if len(suites) > MOST_PROPOSALS:
            section.complain(
                key, f"{len(suites)} proposals (with every group of pfs) are more than {MOST_PROPOSALS}"
            )
    inner = section.sub("lifetime", LIFETIME)
    found = lifetimes(inner)
    if any(suite.encryption and suite.encryption.block == 8 for suite in quick):
        found = _early(found, inner)
    return CryptoSet(name, tuple(dict.fromkeys(main)), tuple(dict.fromkeys(quick)), found)


def _early(found: Lifetimes, section: Section | None) -> Lifetimes:
    """Lifetimes of a set with 64-bit blocks: fewer octets under one key."""
    if found.quick_octets is not None and found.quick_octets <= MOST_OCTETS_64:
        return found
    if section is not None and "quick_bytes" in section:
        section.complain("quick_bytes", "3des has 64-bit blocks: at most 1 GB may go through one SA")
    return replace(found, quick_octets=MOST_OCTETS_64)


def _forward_secret(main: tuple[MainSuite, ...], quick: tuple[QuickSuite, ...]) -> tuple[QuickSuite, ...]:
    """Every quick proposal with each group of main mode, unless it names one itself."""
    groups = tuple(dict.fromkeys(suite.group for suite in main))
    return tuple(
        replace(suite, group=group)
        for suite in quick
        for group in ((suite.group,) if suite.group else groups)
    )


def lifetimes(section: Section | None) -> Lifetimes:
    """When keys are replaced. Longer than Windows allows is refused; shorter is only warned about, because
    that is how rekeying is watched."""
    plain = Lifetimes()
    if section is None:
        return plain
    main = section.read("main", _bounded, plain.main_seconds)
    quick = section.read("quick", _bounded, plain.quick_seconds)
    size = section.read("quick_bytes", _or_never(octets), plain.quick_octets)
    if "main" in section and main < 60:
        section.warn("main", "less than 1 min: fit for tests, not for use")
    if "quick" in section and quick is not None and quick < SHORTEST_QUICK:
        section.warn("quick", "less than 5 min: fit for tests, not for use")
    if size is not None and size < FEWEST_OCTETS:
        section.warn("quick_bytes", "less than 20480 KB: fit for tests, not for use")
    return Lifetimes(
        main_seconds=main,
        quick_seconds=quick,
        quick_octets=size,
        quick_packets=section.read("quick_packets", _or_never(_count), plain.quick_packets),
        idle_seconds=section.read("idle", _or_never(_bounded), plain.idle_seconds),
    )


def _bounded(value: float | str) -> float:
    amount = seconds(value)
    if amount > LONGEST:
        raise ValueError(f'"{value}" is longer than 2879 min, the longest keys may live')
    return amount


def _or_never(parser: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value == "never" else parser(value)


def _count(value: int | str) -> int:
    if not isinstance(value, int) or not 1 <= value < 1 << 64:
        raise ValueError(f'"{value}" is not a number of packets; write a whole number or "never"')
    return value
