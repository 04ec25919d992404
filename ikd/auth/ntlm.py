"""NTLMv2 ([MS-NLMP]) as token exchange: NEGOTIATE, CHALLENGE, AUTHENTICATE, and a key for both sides.

It proves the client only. Our client is pyspnego's, told to use its own NTLM; what it sends and what it is
sent is checked here, for its level of security comes from the environment of the process. That library's
acceptor takes its accounts from a file that the environment names, checks the MIC only of who announces one
and takes NTLMv1 by default; what would keep it in check is more than an acceptor is.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ikd.auth import ANONYMOUS, Authenticated, Declined, Identity, Step, Token, ntlm_messages
from ikd.auth.groups import NO_GROUPS, Groups
from ikd.auth.gss import clean
from ikd.auth.identity import IdKind
from ikd.auth.ntlm_messages import KEY_OCTETS, Answer, Kind
from sadb.secret import Secret

ACCEPT, MACHINE, USER = USES = ("accept", "machine", "user")
NAME = "IKD"  # what our CHALLENGE calls this host: a stranger needs no better name
MOST_CHARACTERS = 256
_FORBIDDEN = frozenset('"/[]:;|=,+*?<>@')  # in names of accounts, as in Windows


@dataclass(frozen=True, slots=True)
class NtlmAccount:
    """An account. `use` says what for: `accept` lets peers prove to be it, with `machine` and `user` we prove
    ourselves in the first or the second authentication."""

    domain: str
    user: str
    nt_hash: Secret
    use: tuple[str, ...] = (ACCEPT,)

    @classmethod
    def named(cls, name: str, nt_hash: Secret, use: tuple[str, ...] = (ACCEPT,)) -> NtlmAccount:
        """From DOMAIN\\NAME; raises `ValueError` that says what is wrong."""
        domain, backslash, user = name.partition("\\")
        if not (backslash and domain and user) or "\\" in user:
            raise ValueError(f'"{name}" is not DOMAIN\\NAME')
        if name != name.strip() or not name.isprintable() or _FORBIDDEN & set(name):
            raise ValueError(f'"{name}" has characters that no account has')
        if len(name) > MOST_CHARACTERS:
            raise ValueError(f"a name of more than {MOST_CHARACTERS} characters")
        return cls(domain, user, nt_hash, use)

    @property
    def name(self) -> str:
        """DOMAIN\\NAME, as policy names it."""
        return f"{self.domain}\\{self.user}"

    @property
    def machine(self) -> bool:
        """Whether it is a computer's account: NAME$."""
        return self.user.endswith("$")

    @property
    def key(self) -> tuple[str, str]:
        """What two spellings of one account have in common."""
        return self.domain.upper(), self.user.upper()


def nt_hash(password: str) -> Secret:
    """What NTLM keeps of a password. MD4 is in no library that promises to keep it."""
    from spnego._ntlm_raw.crypto import ntowfv1

    return Secret(ntowfv1(password))


def _nonce() -> bytes:
    return AESGCM.generate_key(128)[:8]


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Whatever the library raises (ValueError and struct.error, too), as `Declined`."""
    try:
        yield
    except Exception as error:
        raise Declined(f"NTLM failed {doing}: {clean(str(error)) or type(error).__name__}") from None


@contextmanager
def _held_to_our_own(message: str) -> Iterator[None]:
    """What we would refuse from a peer we do not send, either."""
    try:
        yield
    except Declined as error:
        raise Declined(
            f"our own NTLM {message} is not good enough: {error}",
            "take LM_COMPAT_LEVEL out of the daemon's environment, or set it to 5",
        ) from None


class Challenges:
    """Challenges that this host has issued and that wait for an answer. One of them can only come to our own
    initiator from somebody who passes our messages back to us. There are no more of them than negotiations
    under way: they go with their acceptors."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: WeakValueDictionary[bytes, NtlmAcceptor] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, nonce: bytes) -> bool:
        return nonce in self._waiting

    def add(self, nonce: bytes, acceptor: NtlmAcceptor) -> None:
        """This acceptor waits for the answer to this challenge."""
        self._waiting[nonce] = acceptor

    def remove(self, nonce: bytes) -> None:
        """It has one."""
        self._waiting.pop(nonce, None)


class NtlmInitiator:
    """Proves us to be `account`; `target` is the peer's host name. It is done when it hands out its second
    message, and knows nobody then: the peer has proven nothing."""

    __slots__ = ("_account", "_challenges", "_context", "_first", "_over", "_target")

    def __init__(self, account: NtlmAccount, target: str, challenges: Challenges) -> None:
        self._account = account
        self._challenges = challenges
        self._target = target or "unspecified"
        self._context: Any = None
        self._first = b""
        self._over = False

    def __repr__(self) -> str:
        return f"<NtlmInitiator {self._account.name} to {self._target}>"

    def step(self, token: Token | None) -> Step:
        """NEGOTIATE at first, then AUTHENTICATE for a CHALLENGE; raises `Declined`, and is of no use then."""
        if self._over:
            raise Declined("the peer sent another NTLM message after the last one")
        self._over = True  # unless this step turns out well and is not the last
        if self._context is None:
            return self._negotiate(token)
        return self._authenticate(ntlm_messages.octets(token, Kind.CHALLENGE))

    def _negotiate(self, token: Token | None) -> Step:
        if token is not None:
            raise Declined("the peer sent an NTLM message before ours")
        with _explained("in our offer"):
            self._context = _client(self._account, self._target)
            self._first = bytes(self._context.step() or b"")
        with _held_to_our_own("offer"):
            ntlm_messages.offered(self._first)
        self._over = False
        return Step(Token(self._first))

    def _authenticate(self, challenge: bytes) -> Step:
        if ntlm_messages.nonce_of(challenge) in self._challenges:
            raise Declined(
                "the peer answered with a challenge of our own: it passes our messages back to us",
                "nothing to mend on this host; somebody between the hosts tries to pass for it",
            )
        with _explained("in our answer"):
            last = bytes(self._context.step(challenge) or b"")
            key = Secret(self._context.session_key)
        if not (self._context.complete and len(key) == KEY_OCTETS):
            raise Declined("the NTLM exchange came to no end")
        with _held_to_our_own("answer"):
            if not Answer.read(last).protected(key, (self._first, challenge)):
                raise Declined("its MIC is wrong")
        return Step(Token(last), ANONYMOUS, key)


def _client(account: NtlmAccount, target: str) -> Any:
    """pyspnego's client, which loads the GSS-API if it is there: hence not before it is needed."""
    import spnego

    wanted = spnego.ContextReq
    return spnego.client(
        spnego.NTLMHash(account.name, nt_hash=bytes(account.nt_hash).hex()),
        hostname=target,
        service="host",
        protocol="ntlm",
        options=spnego.NegotiateOptions.use_ntlm,
        # not the default, which asks for a proof of the peer
        context_req=wanted.confidentiality | wanted.integrity | wanted.replay_detect | wanted.sequence_detect,
    )


@dataclass(slots=True, weakref_slot=True, eq=False)
class NtlmAcceptor:
    """Waits for a peer that proves to be one of `accounts`. Unless `users`, it must be a machine's: whoever
    has any account could pass for one else."""

    accounts: Iterable[NtlmAccount] = field(repr=False)
    clock: Callable[[], float] = field(repr=False)
    challenges: Challenges = field(repr=False)
    groups: Groups = field(default=NO_GROUPS, repr=False)
    _: KW_ONLY
    users: bool = False
    _known: dict[tuple[str, str], NtlmAccount] = field(init=False, repr=False)
    _nonce: bytes = field(default=b"", init=False, repr=False)
    _messages: tuple[bytes, ...] = field(default=(), init=False, repr=False)
    _over: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self._known = {one.key: one for one in self.accounts if ACCEPT in one.use}

    def step(self, token: Token | None) -> Step:
        """CHALLENGE for a NEGOTIATE, then whom an AUTHENTICATE proves; raises `Declined`, and is of no use
        then."""
        if self._over:
            raise Declined("the peer sent another NTLM message after the last one")
        self._over = True  # unless this step turns out well and is not the last
        if not self._messages:
            return self._challenge(ntlm_messages.octets(token, Kind.NEGOTIATE))
        self.challenges.remove(self._nonce)
        return self._accept(Answer.read(ntlm_messages.octets(token, Kind.AUTHENTICATE)))

    def _challenge(self, negotiate: bytes) -> Step:
        flags = ntlm_messages.offered(negotiate)
        if not self._known:
            raise Declined(
                "this host knows no account that peers may prove to be",
                'add [[ntlm]] with account and password to secrets.toml, use = ["accept"]',
            )
        self._nonce = _nonce()
        challenge = ntlm_messages.challenge(flags, self._nonce, NAME, self.clock())
        self._messages = (negotiate, challenge)
        self.challenges.add(self._nonce, self)
        self._over = False
        return Step(Token(challenge))

    def _accept(self, answer: Answer) -> Step:
        account = self._known.get((answer.domain.upper(), answer.user.upper()))
        claimed = f"{answer.domain}\\{answer.user}"
        # as much work for a name that nobody has, and the peer hears the same: nothing
        proof, key = answer.expected(account.nt_hash if account else Secret(bytes(16)), self._nonce)
        genuine = hmac.compare_digest(proof, answer.proof)
        if account is None:
            raise Declined(
                f"the peer calls itself {clean(claimed)}, an account that this host does not know",
                "add it as [[ntlm]] to secrets.toml, or let the peer use another account",
                cause="unknown-account",
                claimed=f"principal:{clean(claimed)}",
            )
        if not genuine:
            raise Declined(
                f"the peer's password for {account.name} is not the one we have",
                f"compare the password of {account.name} in both hosts' secrets.toml",
                cause="wrong-key",
                claimed=str(identity_of(account)),
            )
        if not answer.protected(key, self._messages):
            raise Declined("an NTLM message of the peer was altered on the way (its MIC is wrong)")
        if not (account.machine or self.users):
            raise Declined(
                f"the peer proved to be user {account.name}, and a machine is wanted",
                "let the peer use its machine's account, NAME$",
                claimed=str(identity_of(account)),
            )
        return Step(None, self.groups.joined(proven(account)), key)


def proven(account: NtlmAccount) -> Authenticated:
    """A peer that has proven to be `account`."""
    return Authenticated(
        identity_of(account),
        "ntlm",
        f"{account.name} (ntlm)",
        names=(account.name,),
    )


def identity_of(account: NtlmAccount) -> Identity:
    """The name of an account."""
    return Identity(IdKind.PRINCIPAL, account.name.encode())
