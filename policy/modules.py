"""What each keying module can do with the sets of a rule. Pre-shared keys over IKEv2, which Windows has not,
are ordinary here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policy.rules import AuthMethod, AuthSet, CryptoSet
from policy.schema import SECOND
from sadb.algorithms import MainSuite, QuickSuite


@dataclass(frozen=True, slots=True)
class Module:
    """One keying protocol: which methods it carries as first and as second authentication, and whether its
    registries end with RFC 4868, so that it cannot propose every suite."""

    name: str
    first: frozenset[str]
    second: frozenset[str] = frozenset()
    old: bool = False

    def proposes(self, suite: MainSuite | QuickSuite) -> bool:
        """Whether it has numbers for a suite."""
        return suite.ikev1 or not self.old


MODULES = {
    module.name: module
    for module in (
        Module("ikev2", frozenset(("certificate", "psk"))),
        Module(
            "authip",
            frozenset(("certificate", "kerberos", "ntlm", "anonymous")),
            frozenset(SECOND),
            old=True,
        ),
        Module("ikev1", frozenset(("certificate", "psk", "kerberos")), old=True),
    )
}


@dataclass(frozen=True, slots=True)
class Settled:
    """The keying modules that carry a rule, in order, and the methods in force for it. With `refusals` none
    does, and these are the modules and methods that were asked for."""

    keying: tuple[str, ...]
    auth: AuthSet
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def settle(auth: AuthSet, keying: tuple[str, ...] = (), crypto: CryptoSet | None = None) -> Settled:
    """Match modules, methods and suites. Without `keying` it is IKEv2, after AuthIP if the set needs that. A
    module that can do one method of the first authentication is offered (opportunistic match) and uses what
    it can do of it; one that has no second authentication never carries a rule that asks for one. A method
    that none of the rule's modules can do is left out of it, so that no other part takes it for what it is
    not. The suites a module cannot propose stay: the modules beside it can."""
    asked = keying or default_keying(auth)
    reasons = {
        name: _why_not(MODULES[name], auth)
        or (_nothing_to_propose(MODULES[name], crypto) if crypto else None)
        for name in asked
    }
    usable = tuple(name for name in asked if reasons[name] is None)
    able = frozenset[str]().union(*(MODULES[name].first for name in usable))
    missing = tuple(one for one in auth.first if one.method not in able)
    if not usable:
        return Settled(asked, auth, tuple(f"{name}: {reason}" for name, reason in reasons.items()))
    kept = replace(auth, first=tuple(method for method in auth.first if method not in missing))
    rest = ", ".join(usable)
    warnings = [
        f"{name}: {reason}; only {rest} is used"
        for name, reason in reasons.items()
        if keying and reason is not None
    ]
    if missing:
        names = ", ".join(map(describe, missing))
        others = ", ".join(map(describe, kept.first))
        asked_for = f'authentication by {names} (set "{auth.name}")'
        warnings.append(f"not available over {rest}: {asked_for}; only {others} is used")
    return Settled(usable, kept, (), tuple(warnings))


def default_keying(auth: AuthSet) -> tuple[str, ...]:
    """IKEv2, with AuthIP first when a method needs it."""
    needs = bool(auth.second) or any(method.method not in MODULES["ikev2"].first for method in auth.first)
    return ("authip", "ikev2") if needs else ("ikev2",)


def describe(method: AuthMethod) -> str:
    """A method in words."""
    return f"health {method.method}" if method.health else method.method


def _why_not(module: Module, auth: AuthSet) -> str | None:
    if auth.second and not any(one.method in module.second for one in auth.second):
        return f'it has no second authentication, which set "{auth.name}" asks for; only authip has'
    if not _serves(module, auth):
        names = ", ".join(map(describe, auth.first))
        others = " and ".join(one.name for one in MODULES.values() if _serves(one, auth))
        return f'it cannot do any method of set "{auth.name}" ({names})' + (f"; {others} can" * bool(others))
    return None


def _serves(module: Module, auth: AuthSet) -> bool:
    return any(one.method in module.first for one in auth.first)


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
