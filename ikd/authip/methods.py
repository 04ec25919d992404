"""Authentication methods: a rule's authentication sets as the numbers of AUTH payloads, and who proves and
verifies for each (MS-AIPS sections 1.7 and 2.2.3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from ikd import keying
from ikd.auth import ANONYMOUS, Authenticator, Declined, Step, Token
from ikd.authip.numbers import NEEDS_DH, TLS, Method
from ikd.authip.payloads import Auth, AuthEntry, GssId
from ikd.authip.profile import Profile
from ikd.authip.session import Session
from ikd.keying import Environment
from policy.rules import AuthMethod, Rule

_KINDS = {
    "kerberos": Method.KERBEROS,
    "user-kerberos": Method.KERBEROS,
    "ntlm": Method.NTLM,
    "user-ntlm": Method.NTLM,
    "certificate": Method.TLS,
    "user-certificate": Method.TLS,
    "anonymous": Method.ANONYMOUS,
}
NAMES: dict[int, str] = {  # as rules have them
    Method.KERBEROS: "kerberos",
    Method.NTLM: "ntlm",
    Method.TLS: "certificate",
    Method.TLS_ECDSA_256: "certificate",
    Method.TLS_ECDSA_384: "certificate",
    Method.ANONYMOUS: "anonymous",
}
_ECDSA = {"ecdsa-p256": Method.TLS_ECDSA_256, "ecdsa-p384": Method.TLS_ECDSA_384}


@dataclass(frozen=True, slots=True)
class Side:
    """One credential to prove ourselves with: `make` builds the side, and raises `Declined`. `user` tells
    that it is a user's, `explicit` that it was given to us and is not that of a session."""

    make: Callable[[], Authenticator]
    user: bool = False
    explicit: bool = False
    one_way: bool = False


class Nobody:
    """The anonymous method: empty tokens, and nothing proven (MS-AIPS section 2.2.3.1)."""

    def step(self, token: Token | None) -> Step:
        """Complete at once; raises `Declined` for a token with something in it."""
        if token is not None and token.data:
            raise Declined("the peer sent a token where nothing is to be proven")
        return Step(Token(b""), ANONYMOUS)


def methods_of(rule: Rule, *, second: bool) -> tuple[AuthMethod, ...]:
    """What a rule asks of main mode, or of extended mode; anonymous is not for the latter."""
    if second:
        return tuple(one for one in keying.second(rule) if one.method != "anonymous")
    return keying.methods(rule)


def numbers(env: Environment, rule: Rule, profile: Profile, *, second: bool = False) -> tuple[int, ...]:
    """What we can propose or accept for a rule, in its order."""
    found: list[int] = []
    for one in methods_of(rule, second=second):
        number = _KINDS.get(one.method)
        if number is None:
            continue
        if number is Method.TLS and profile.ecdsa_methods:
            hosts = env.credentials.tls_hosts((one,), user=_user(one))
            kinds = [one.signing] if one.signing else [host.facts.key_type for host in hosts]
            found += [_ECDSA[kind] for kind in kinds if kind in _ECDSA]
        found.append(number)
    return tuple(dict.fromkeys(found))


def usable(
    env: Environment, rule: Rule, profile: Profile, *, second: bool, initiator: bool
) -> tuple[int, ...]:
    """Those that this host has what it takes for, as the initiator or as the responder."""
    found = numbers(env, rule, profile, second=second)
    able = _can_begin if initiator else _can_answer
    return tuple(one for one in found if able(env, rule, one, second=second))


def _can_begin(env: Environment, rule: Rule, number: int, *, second: bool) -> bool:
    """Whether we have something to prove ourselves with."""
    credentials, material = env.credentials, env.credentials.material
    match number:
        case Method.KERBEROS:
            return material.tickets is not None if second else material.keytab is not None
        case Method.NTLM:
            return bool(credentials.ntlm_accounts(user=second))
        case Method.ANONYMOUS:
            return True
    wanted = _wanted(rule, number, second=second)
    return any(not one.mutual or credentials.tls_hosts((one,), user=_user(one)) for one in wanted)


def _can_answer(env: Environment, rule: Rule, number: int, *, second: bool) -> bool:
    """Whether we have what the peer's proof is checked with."""
    material = env.credentials.material
    match number:
        case Method.KERBEROS:
            return material.keytab is not None
        case Method.NTLM:
            return any("accept" in one.use for one in material.accounts)
        case Method.ANONYMOUS:
            return True
    return bool(material.hosts)


def payload(methods: Iterable[int]) -> Auth:
    """The AUTH payload of some methods."""
    return Auth(entries=tuple(AuthEntry(method=one) for one in methods))


def common(theirs: Auth, ours: Sequence[int]) -> tuple[int, ...]:
    """What both sides have, in the initiator's order; what is unknown or said twice does not count."""
    return tuple(dict.fromkeys(one.method for one in theirs.entries if one.method in ours))


def described(rules: Iterable[Rule]) -> str:
    """The first methods of some rules in words."""
    names = dict.fromkeys(one.method for rule in rules for one in keying.methods(rule))
    return " or ".join(names) or "nothing"


def own_name(session: Session, rule: Rule) -> GssId:
    """What we call ourselves as the responder, which the initiator asks a ticket for (section 2.2.3.3): our
    principal, else a host service of the name that we claim."""
    credentials = session.env.credentials
    try:
        name = credentials.kerberos_name(rule)
    except Declined:
        name = f"{session.profile.spn}/{credentials.local_identity(rule, session.path.local.address)}"
    return GssId(name=name.encode(session.profile.names))


def needs_dh(methods: Iterable[int]) -> bool:
    """Whether one of the methods yields no secret that will do without Diffie-Hellman."""
    return not NEEDS_DH.isdisjoint(methods)


def _user(method: AuthMethod) -> bool:
    return method.method.startswith("user-")


def _wanted(rule: Rule, number: int, *, second: bool) -> tuple[AuthMethod, ...]:
    """A rule's methods behind a number."""
    family = Method.TLS if number in TLS else number
    return tuple(one for one in methods_of(rule, second=second) if _KINDS.get(one.method) == family)


def of_user(rule: Rule, number: int) -> bool:
    """Whether a method of a rule's second list proves a user, and not the condition of a host."""
    return any(map(_user, _wanted(rule, number, second=True)))


# Both roles ------------------------------------------------------------------------------------------------


def initiators(
    env: Environment, rule: Rule, number: int, name: str, profile: Profile, *, second: bool
) -> list[Side]:
    """Every credential of ours for a method, in order; `name` is what the responder calls itself."""
    credentials = env.credentials
    wanted = _wanted(rule, number, second=second)
    user = any(map(_user, wanted))
    match number:
        case Method.KERBEROS:
            return [Side(partial(credentials.kerberos_initiator, rule, name or None, user=user), user)]
        case Method.NTLM:
            make = partial(credentials.ntlm_initiator, rule, user=user)
            return [Side(make, user, explicit=user, one_way=True)]
        case Method.ANONYMOUS:
            return [Side(Nobody, one_way=True)]
    sides = []
    for one in wanted:
        make_tls = partial(
            credentials.tls_initiator, rule, wanted, user=user, mutual=one.mutual, secret=profile.tls_key
        )
        if not one.mutual:
            sides.append(Side(make_tls, user, one_way=True))
            continue
        for host in credentials.tls_hosts((one,), user=user):
            sides.append(Side(partial(make_tls, host=host), user, explicit=user))
    return sides


def acceptor(env: Environment, rule: Rule, number: int, profile: Profile, *, second: bool) -> Authenticator:
    """The side that verifies a method; raises `Declined`."""
    credentials = env.credentials
    wanted = _wanted(rule, number, second=second)
    user = any(map(_user, wanted))
    match number:
        case Method.KERBEROS:
            return credentials.kerberos_acceptor(rule, users=user)
        case Method.NTLM:
            return credentials.ntlm_acceptor(rule, users=user)
        case Method.ANONYMOUS:
            return Nobody()
    mutual = all(one.mutual for one in wanted)
    return credentials.tls_acceptor(rule, wanted, user=user, mutual=mutual, secret=profile.tls_key)
