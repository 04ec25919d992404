"""The one interface that carries every authentication method.

A signature or a pre-shared key is a token exchange of length one; Kerberos, NTLM and TLS add rounds and a
key. A prover makes the token that proves us, a verifier takes the peer's; a mechanism that does both is one
object. The keying protocols ask `Authenticate(side, token)` and never know which method runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from ikd.auth.identity import Identity, IdKind
from ikd.exchange import Question
from sadb.algorithms import Prf
from sadb.secret import Secret

__all__ = [
    "ANONYMOUS",
    "NOT_ADMITTED",
    "UNPROVEN",
    "Authenticate",
    "Authenticated",
    "Authenticator",
    "Declined",
    "Identity",
    "Step",
    "Token",
    "Transcript",
]


UNPROVEN: Final = "unproven"  # causes of refusals, for counting; this one where none is more precise
NOT_ADMITTED: Final = "not-admitted"  # proven, and the rule is for others


class Declined(Exception):
    """The token proves nothing, or we cannot make one. `str()` is for the administrator of this host only;
    `remedy` says what to do; `token` is what the mechanism itself would tell the peer, if anything; `cause`
    is the reason in one of a few words, for counting; `claimed` whom the token names, where it does."""

    def __init__(
        self, reason: str, remedy: str = "", token: bytes = b"", *, cause: str = UNPROVEN, claimed: str = ""
    ) -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.token = token
        self.cause = cause
        self.claimed = claimed


@dataclass(frozen=True, slots=True)
class Transcript:
    """What one side signs in IKEv2 (RFC 7296 section 2.15): RealMessage | Nonce | prf(SK_p, ID)."""

    octets: bytes = field(repr=False)
    prf: Prf


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `method` is the IKEv2 Auth Method (RFC 7296 section 3.8, RFC 7427); certificates are DER,
    leaf first."""

    data: bytes
    method: int = 0
    certificates: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A proven peer. `expires` is the end of its credential (POSIX seconds), None when it has none."""

    identity: Identity
    method: str
    description: str  # for people: "host cert CN=db.corp.example", "pre-shared key vpn.example"
    expires: float | None = None
    names: tuple[str, ...] = ()  # further proven names (subjectAltName, subject)
    groups: tuple[str, ...] = ()  # whose member it is, as `group:` patterns of policy name them
    health: bool = False  # whether its certificate vouches for the host's condition

    @property
    def claims(self) -> tuple[str, ...]:
        """Everything that a rule may name of it."""
        return self.names + self.groups

    @property
    def anonymous(self) -> bool:
        """Whether the peer proved nothing, as a method of one side only has it."""
        return self.identity.kind == IdKind.NULL


ANONYMOUS = Authenticated(Identity(IdKind.NULL, b""), "anonymous", "anonymous")


@dataclass(frozen=True, slots=True)
class Step:
    """What a step yields: a token to send, the peer once proven, a key for the schedule."""

    token: Token | None = None
    peer: Authenticated | None = None
    key: Secret = field(default_factory=lambda: Secret(b""))


class Authenticator(Protocol):
    """One side of one authentication. One with `blocking = True` may wait for a KDC in its `step`, which is
    then called in a thread."""

    def step(self, token: Token | None) -> Step:
        """Take the peer's token (None to begin); raise `Declined` if it proves nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Authenticate(Question[Step]):
    """Ask the world to run one step; it may take long (a KDC, a smart card)."""

    side: Authenticator
    token: Token | None = None
