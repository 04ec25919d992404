"""What each keying module can do with the sets of a rule, and what of it this build has (policy.md sections
4.1 and 6.2). Pre-shared keys over IKEv2 are an extension of that model; here they are ordinary."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policy.rules import AuthMethod, AuthSet, CryptoSet
from sadb.algorithms import MainSuite, QuickSuite


@dataclass(frozen=True, slots=True)
class Module:
    """One keying protocol: which first authentication methods it carries, whether it has a second one, and
    whether its registries end with RFC 4868, so that it cannot propose every suite."""

    name: str
    first: frozenset[str]
    second: bool
    available: bool
    old: bool = False

    def proposes(self, suite: MainSuite | QuickSuite) -> bool:
        """Whether it has numbers for a suite."""
        return suite.ikev1 or not self.old


MODULES = {
    module.name: module
    for module in (
        Module("ikev2", frozenset(("certificate", "psk")), second=False, available=True),
        Module("authip", frozenset(("certificate", "kerberos", "ntlm", "anonymous")), True, available=False),
        Module(
            "ikev1", frozenset(("certificate", "psk", "kerberos")), second=False, available=True, old=True
        ),
    )
}

AVAILABLE_METHODS = frozenset(("certificate", "psk", "kerberos"))


@dataclass(frozen=True, slots=True)
class Settled:
    """The keying modules and methods in force for a rule; with `refusals` it cannot be in force at all."""

    keying: tuple[str, ...]
    auth: AuthSet
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def settle(auth: AuthSet, keying: tuple[str, ...] = (), crypto: CryptoSet | None = None) -> Settled:
    """Match modules, methods and suites. Without `keying` it is IKEv2, after AuthIP if the set needs that. A
    module that can do one method of the set is offered (opportunistic match); a method that none of the
    rule's modules can do is left out of it, so that no other part takes it for what it is not. The suites a
    module cannot propose stay: the modules beside it can."""
    chosen = keying or default_keying(auth)
    reasons = {
        name: _why_not(MODULES[name], auth)
        or (_nothing_to_propose(MODULES[name], crypto) if crypto else None)
        for name in chosen
    }
    usable = [name for name in chosen if reasons[name] is None]
    able = frozenset[str]().union(*(MODULES[name].first for name in usable))
    missing = tuple(one for one in auth.first if not (_available(one) and one.method in able))
    # the second set stays: `ikctl explain` tells of it, and no module without one serves the rule
    kept = replace(auth, first=tuple(method for method in auth.first if method not in missing))
    if not usable:
        refusals = tuple(f"{name}: {reason}" for name, reason in reasons.items())
        return Settled(chosen, kept, refusals)
    rest = ", ".join(usable)
    warnings = [
        f"{name}: {reason}; only {rest} is used"
        for name, reason in reasons.items()
        if keying and reason is not None
    ]
    if missing:
        names = ", ".join(map(describe, missing))
        others = ", ".join(map(describe, kept.first))
        lacking = "not available yet" if not all(map(_available, missing)) else f"not available over {rest}"
        warnings.append(f'{lacking}: authentication by {names} (set "{auth.name}"); only {others} is used')
    return Settled(chosen, kept, (), tuple(warnings))


def default_keying(auth: AuthSet) -> tuple[str, ...]:
    """IKEv2, with AuthIP first when a method needs it."""
    needs = bool(auth.second) or any(method.method not in MODULES["ikev2"].first for method in auth.first)
    return ("authip", "ikev2") if needs else ("ikev2",)


def describe(method: AuthMethod) -> str:
    """A method in words."""
    return f"health {method.method}" if method.health else method.method


def _available(method: AuthMethod) -> bool:
    return method.method in AVAILABLE_METHODS


def _serves(module: Module, auth: AuthSet) -> bool:
    return any(one.method in module.first and _available(one) for one in auth.first)


def _why_not(module: Module, auth: AuthSet) -> str | None:
    if not module.available:
        return "not available yet"
    if auth.second and not module.second:
        return f'it has no second authentication, which set "{auth.name}" asks for; only authip has'
    able = [method for method in auth.first if method.method in module.first]
    if not able:
        names = ", ".join(map(describe, auth.first))
        others = " and ".join(one.name for one in MODULES.values() if one.available and _serves(one, auth))
        return f'it cannot do any method of set "{auth.name}" ({names})' + (f"; {others} can" * bool(others))
    if not any(map(_available, able)):
        return f"not available yet: authentication by {', '.join(map(describe, able))}"
    return None


_REMEDIES = (
    ("main", 'add one with a cipher, a hash and a MODP or NIST group, such as "p256 aes256 sha256"'),
    ("quick", 'add one such as "aes128gcm" or "aes256 sha256"'),
)


def _nothing_to_propose(module: Module, crypto: CryptoSet) -> str | None:
    """What is wrong with a set of which a module cannot propose anything in main or in quick mode."""
    for key, remedy in _REMEDIES:
        suites: tuple[MainSuite | QuickSuite, ...] = getattr(crypto, key)
        if suites and not any(map(module.proposes, suites)):
            return f'it has no form of any {key} proposal of crypto set "{crypto.name}"; {remedy}'
    return None
