"""Kerberos (RFC 4120, 4121) as token exchange: the initiator's AP-REQ, the acceptor's AP-REP, a key for both.

Two tokens prove both sides. The context's session key is in the last `Step` of each; IKEv1's HASH payloads
pass through `wrap` and `unwrap` instead. Tickets come out of a keytab or a ticket cache; why something fails,
in words for the administrator, is in `ikd.auth.kerberos_errors`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ikd.auth import Authenticated, Declined, Identity, Step, Token, gss, pac
from ikd.auth.groups import NO_GROUPS, Groups
from ikd.auth.gss import Context, Failure
from ikd.auth.identity import IdKind
from ikd.auth.kerberos_errors import Facts, Stage, code_of, explain
from ikd.auth.keytab import Keytab, parse
from ikd.auth.principal import Principal

MOST_ROUNDS = 8
SHORTEST_KEY = 16
MOST_KEYTAB = 16 * 1024 * 1024
NOTHING_FOUND = frozenset((181, 195))  # no entry in a keytab, no ticket cache: whatever the reason is
_REPORT = "look into the KDC's log; Active Directory and Samba write one that can be read"
CLOCK_SKEW = 300  # an acceptor's library adds it to the life of a ticket


@dataclass(frozen=True, slots=True)
class Ticket:
    """Tickets that are there already, in a cache that somebody else renews: a user's."""

    cache: str

    def __str__(self) -> str:
        return f"ticket cache {self.cache}"


class _Side(ABC):
    """What both roles have in common: an order of calls, one context, and failures that are explained."""

    __slots__ = ("_clock", "_context", "_facts", "_groups", "_over", "_rounds")

    blocking: ClassVar[bool] = True  # answered in a thread (`ikd.auth.runner`)

    def __init__(self, facts: Facts, clock: Callable[[], float], groups: Groups) -> None:
        self._facts = facts
        self._groups = groups
        self._clock = clock
        self._context: Context | None = None
        self._rounds = 0
        self._over = False

    def step(self, token: Token | None) -> Step:
        """Take the peer's token (None to begin as initiator); raises `Declined`, and is of no use then."""
        if self._over or self._rounds >= MOST_ROUNDS:
            raise Declined("the peer sent another Kerberos token after the last one")
        self._rounds += 1
        self._over = True  # unless this step turns out well and is not the last
        stage = self._opened if self._context is None else Stage.REPLY
        try:
            if self._context is None:
                data = self._first(token)
                context = self._open()
            else:
                data, context = _octets(token), self._context
            answer = context.step(data)
            self._context = context
            return self._last(context, answer) if context.complete else self._more(answer)
        except Failure as failure:
            self._context = None
            if code_of(failure) in NOTHING_FOUND and (trouble := self._trouble()):
                raise trouble from None
            raise explain(stage, failure, self._facts) from None
        except Declined:
            self._context = None
            raise

    _opened: ClassVar[Stage]  # what the first step is about

    @abstractmethod
    def _first(self, token: Token | None) -> bytes | None: ...

    @abstractmethod
    def _open(self) -> Context: ...

    @abstractmethod
    def _peer(self, initiator: Principal, acceptor: Principal) -> tuple[Principal, str]:
        """Who of the two is the peer, and our realm; raises `Declined`."""

    def _life(self, context: Context) -> int:
        return context.lifetime()

    def _sids(self, context: Context) -> tuple[str, ...]:
        """What the KDC says the peer belongs to; raises `Declined`."""
        return ()

    @abstractmethod
    def _trouble(self) -> Declined | None:
        """What is wrong with our credential, when the library only says that there is none."""

    def _more(self, answer: bytes) -> Step:
        if not answer:
            raise Declined("the Kerberos exchange came to no end")
        self._over = False
        return Step(Token(answer))

    def _last(self, context: Context, answer: bytes) -> Step:
        """The context is complete: is it what we need, and with whom?"""
        if lacking := context.missing():
            raise Declined(
                f"the peer's Kerberos context has no {' and no '.join(lacking)}",
                "the peer's implementation must ask for mutual authentication and confidentiality",
            )
        peer, realm = self._peer(*map(_principal, context.names()))
        key = context.key()
        if len(key) < SHORTEST_KEY:
            raise Declined(
                f"the session key has {8 * len(key)} bits only",
                "take DES out of the encryption types of both principals in the KDC",
            )
        text = str(peer)
        proven = Authenticated(
            Identity(IdKind.PRINCIPAL, text.encode()),
            "kerberos",
            f"{text} (kerberos)",
            self._clock() + self._life(context),
            peer.names(realm),
        )
        proven = self._groups.joined(proven, self._sids(context))
        return Step(Token(answer) if answer else None, proven, key)

    # IKEv1's HASH payloads -------------------------------------------------------------------------------

    def wrap(self, data: bytes) -> bytes:
        """GSS_Wrap with confidentiality; the exchange of tokens must be over. Raises `Declined`."""
        try:
            return self._established().wrap(data)
        except Failure as failure:
            raise explain(Stage.MESSAGE, failure, self._facts) from None

    def unwrap(self, data: bytes) -> bytes:
        """The contents of the peer's GSS_Wrap; raises `Declined` when it is not genuine, was not encrypted
        or came before."""
        gss.check_size(data)
        try:
            message, encrypted = self._established().unwrap(data)
        except Failure as failure:
            raise explain(Stage.MESSAGE, failure, self._facts) from None
        if not encrypted:
            raise Declined("the peer's wrapped message is signed but not encrypted")
        return message

    def _established(self) -> Context:
        if self._context is None or not (self._over and self._context.complete):
            raise Declined("the Kerberos exchange is not complete")
        return self._context


class KerberosInitiator(_Side):
    """Proves us to `target` (host/NAME, with @REALM or without) and expects it to prove itself."""

    __slots__ = ("_source", "_target")

    _opened = Stage.OBTAIN

    def __init__(
        self, target: str, source: Keytab | Ticket, clock: Callable[[], float], groups: Groups = NO_GROUPS
    ) -> None:
        self._target = host_principal(target)
        self._source = source
        ours = str(source.client or "") if isinstance(source, Keytab) else ""
        super().__init__(Facts(_place(source), ours, str(self._target)), clock, groups)

    def __repr__(self) -> str:
        return f"<KerberosInitiator {self._facts.ours} to {self._facts.target}>"

    def _first(self, token: Token | None) -> bytes | None:
        if token is not None:
            raise Declined("the peer sent a Kerberos token before ours")
        return None

    def _open(self) -> Context:
        """The credential and the ticket for the peer; this is what may wait for a KDC."""
        target = self._target
        # the library finds the realm of a host that has none here: [domain_realm], else what our KDC says
        alone = bool(target.host) and not target.realm
        text = f"{target.parts[0]}@{target.host}" if alone else str(target)
        return Context(self._credential(), gss.name(text, service=alone))

    def _credential(self) -> Any:
        source = self._source
        if isinstance(source, Ticket):
            return gss.credential("initiate", {"ccache": source.cache})
        if source.client is None:
            raise Declined(
                f"keytab {source.path} has no key of a machine",
                "write one for host/NAME or, from Active Directory, for the account NAME$",
            )
        store = {"client_keytab": f"FILE:{source.path}", "ccache": source.cache}
        return gss.credential("initiate", store, str(source.client))

    def _trouble(self) -> Declined | None:
        return unusable(self._source, self._source.client) if isinstance(self._source, Keytab) else None

    def _peer(self, initiator: Principal, acceptor: Principal) -> tuple[Principal, str]:
        if not acceptor.machine:
            raise Declined(f"the peer proved to be {acceptor}, which is no machine")
        return acceptor, initiator.realm


class KerberosAcceptor(_Side):
    """Waits for an AP-REQ to one of the keytab's machine principals. Unless `users`, the peer must be a
    machine: whoever has any account of the realm could pass for one else."""

    __slots__ = ("_keytab", "_users")

    _opened = Stage.ACCEPT

    def __init__(
        self,
        keytab: Keytab,
        clock: Callable[[], float],
        groups: Groups = NO_GROUPS,
        *,
        users: bool = False,
    ) -> None:
        self._keytab = keytab
        self._users = users
        super().__init__(Facts(_place(keytab), str(keytab.service or "host/NAME")), clock, groups)

    def __repr__(self) -> str:
        return f"<KerberosAcceptor {self._facts.ours}>"

    def _first(self, token: Token | None) -> bytes | None:
        data = _octets(token)
        gss.framed(data)
        return data

    def _open(self) -> Context:
        store = {"keytab": f"FILE:{self._keytab.path}"}
        if self._keytab.replays:
            store["rcache"] = f"file2:{self._keytab.replays}"
        return Context(gss.credential("accept", store))

    def _trouble(self) -> Declined | None:
        return unusable(self._keytab, self._keytab.service)

    def _peer(self, initiator: Principal, acceptor: Principal) -> tuple[Principal, str]:
        if not acceptor.machine:  # what was meant for another service of this host
            raise Declined(
                f"the peer's ticket is for {acceptor}, not for a host",
                f"keep keys of other services out of {self._keytab.path}",
            )
        if not (initiator.machine or self._users):
            raise Declined(
                f"the peer proved to be user {initiator}, and a machine is wanted",
                "let the peer use the keytab of its machine (identity.keytab of its ikd.toml)",
            )
        return initiator, acceptor.realm

    def _sids(self, context: Context) -> tuple[str, ...]:
        data = context.logon_info()
        if data is None:  # no Active Directory: groups are those of our own file
            return ()
        try:
            return pac.read(data).sids
        except pac.Unreadable as error:  # rules that deny a group must not be evaded
            raise Declined(f"the PAC of the peer's ticket cannot be read: {error}", _REPORT) from None

    def _life(self, context: Context) -> int:
        return max(0, context.lifetime() - CLOCK_SKEW)


def host_principal(text: str) -> Principal:
    """A peer's name that a ticket may be asked for; raises `Declined`. A peer must not choose any service:
    it could pass our token on to that one."""
    try:
        found = Principal.parse(text)
    except ValueError as error:
        raise Declined(f"no principal to ask a ticket for: {error}") from None
    if not found.machine:
        raise Declined(
            f"{found} is no machine, so no ticket for it is asked for",
            "a peer's principal is host/NAME, or NAME$@REALM in Active Directory",
        )
    return found


def check_keytab(keytab: Keytab) -> None:
    """Whether the library can read it; raises `Declined`."""
    try:
        gss.credential("accept", {"keytab": f"FILE:{keytab.path}"})
    except Failure as failure:
        raise unusable(keytab, None) or explain(Stage.ACCEPT, failure, Facts(_place(keytab))) from None


def unusable(keytab: Keytab, wanted: Principal | None) -> Declined | None:
    """Why a keytab is of no use, found out by reading it again: the library does not tell. None when nothing
    is wrong with the file."""
    write = f"write it: kadmin -q 'ktadd -k {keytab.path} {wanted or 'host/NAME'}', mode 0600"
    try:
        with open(keytab.path, "rb") as file:
            found = {entry.principal for entry in parse(file.read(MOST_KEYTAB))}
    except FileNotFoundError:
        return Declined(f"keytab {keytab.path} does not exist", write)
    except PermissionError:
        return Declined(
            f"the daemon may not read keytab {keytab.path}",
            "give the file to the user that the daemon runs as, mode 0600",
        )
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return Declined(f"keytab {keytab.path} cannot be used: {why}", write)
    if wanted not in found and (wanted or not found):
        return Declined(f"keytab {keytab.path} has no key for {wanted or 'anybody'}", write)
    return None


def _octets(token: Token | None) -> bytes:
    if token is None:
        raise Declined("the peer sent no Kerberos token")
    gss.check_size(token.data)
    return token.data


def _principal(text: str) -> Principal:
    try:
        return Principal.parse(text)
    except ValueError as error:
        raise Declined(f"a principal that no rule can name: {error}") from None


def _place(source: Keytab | Ticket) -> str:
    return f"keytab {source.path}" if isinstance(source, Keytab) else str(source)
