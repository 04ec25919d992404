"""The exchange of GSS-API tokens with authentication retry, in both roles: MS-AIPS sections 3.1, 3.8 and 3.9.

All common methods are tried in one negotiation. No payload names its method: both sides count the flags NEW
along the list they agreed on, so that an initiator that cannot use a method says so with an empty token.
Rounds and attempts are limited, because a token altered on the way could make both sides wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ikd.auth import ANONYMOUS, Authenticate, Authenticated, Authenticator, Declined, Token
from ikd.auth import Step as StepResult
from ikd.authip import methods, shapes
from ikd.authip.message import Message
from ikd.authip.methods import Side
from ikd.authip.numbers import TLS, GssFlags, Method, Status, method_name
from ikd.authip.payloads import GssApi
from ikd.authip.session import Proven, Session
from ikd.events import AuthenticationFailed
from ikd.exchange import Send, Step, Steps, Wait, ask
from ikd.isakmp.message import Refused, expect
from ikd.riders import windows_status
from ikd.wire.codec import Malformed
from policy.rules import Rule
from sadb.secret import Secret

MOST_ROUNDS = 20
MOST_ATTEMPTS = 8
MOST_RETRIES = 3  # that a responder asks for, of one method


@dataclass(frozen=True, slots=True)
class Course:
    """How the tokens travel: in main mode in the clear, in extended mode encrypted."""

    exchange: int
    message_id: int
    second: bool

    def message(self, token: GssApi, *, iv: bool = False) -> Message:
        """The message of a token."""
        return Message(self.exchange, (token,), self.message_id, encrypted=self.second, iv=iv)


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why an attempt failed, and whether the peer wants another credential for the same method."""

    reason: Declined
    retry: bool = False
    status: int = 0
    ours: bool = False  # it is us who do not believe the peer


def key_of(session: Session, number: int, key: Secret) -> Secret:
    """What of a context's key goes into the derivation."""
    if number == Method.KERBEROS and session.profile.kerberos_key is not None:
        return Secret(bytes(key)[: session.profile.kerberos_key])
    return key


# Initiator -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opening:
    """A first token that goes along with the first message of main mode, because the responder's name is
    known, and the responder's answer to it."""

    side: Side
    made: Authenticator
    step: StepResult
    flags: int
    reply: GssApi | None = None

    @property
    def token(self) -> GssApi:
        """The payload."""
        return GssApi(flags=self.flags, token=self.step.token.data if self.step.token else b"")


def opening(session: Session, rule: Rule, able: Sequence[int]) -> Steps[Opening | None]:
    """Such a token, for the method we like best; only Kerberos gains by it (section 3.2.4)."""
    if not session.principal or able[0] != Method.KERBEROS:
        return None
    (side,) = methods.initiators(session.env, rule, able[0], session.principal, session.profile, second=False)
    try:
        made = side.make()
        step = yield from ask(Authenticate(made))
    except Declined:
        return None  # it will be tried again, and told of, in its turn
    return Opening(side, made, step, _flags(side, new=session.profile.first_new, retry=False))


def initiate(session: Session, course: Course, rule: Rule, opened: Opening | None = None) -> Steps[Proven]:
    """Prove ourselves with the first method that succeeds; raises `Declined` when we do not believe the peer,
    `Refused` when it does not believe us or we have nothing to prove ourselves with."""
    anonymous = session.methods[:1] == (Method.ANONYMOUS,)
    if anonymous and not (course.second or session.profile.anonymous_tokens):
        return Proven(Method.ANONYMOUS, ANONYMOUS, Secret(b""), one_way=True)
    attempts = 0
    refusals: list[str] = []
    remedy = ""
    unbelieved: Declined | None = None  # what we did not believe of the peer first
    for number in session.methods:
        sides = methods.initiators(
            session.env, rule, number, session.principal, session.profile, second=course.second
        )
        retry = 0
        for n, side in enumerate(sides or [Side(_lacking(number))]):
            attempts += 1
            if attempts > MOST_ATTEMPTS:
                raise Declined(f"{MOST_ATTEMPTS} attempts to authenticate failed: {'; '.join(refusals)}")
            if opened is not None and attempts == 1:
                outcome = yield from _rounds(session, course, number, opened)
            else:
                flags = _flags(side, new=attempts > 1 or session.profile.first_new, retry=n > 0)
                outcome = yield from _attempt(session, course, number, side, flags, retry)
            if isinstance(outcome, Proven):
                return outcome
            refusals.append(f"{method_name(number)}: {outcome.reason}")
            remedy = remedy or outcome.reason.remedy
            if outcome.ours:
                unbelieved = unbelieved or outcome.reason
            retry = outcome.status
            if not course.second and not session.profile.failed_attempts_count:
                session.transcript.begin_attempt(0)
            if outcome.status and not outcome.retry:
                break
    text = "; ".join(refusals) or "no method is left to authenticate with"
    if unbelieved is not None:
        raise Declined(text, remedy, cause=unbelieved.cause, claimed=unbelieved.claimed)
    raise Refused(Status.AUTH_FAIL, text, remedy)


def _lacking(number: int) -> Callable[[], Authenticator]:
    def make() -> Authenticator:
        raise Declined(f"this host has no credential for {method_name(number)}")

    return make


def _flags(side: Side, *, new: bool, retry: bool) -> int:
    pairs = (
        (GssFlags.NEW, new),
        (GssFlags.RETRY, retry),
        (GssFlags.IMPERSONATION, side.user),
        (GssFlags.EXPLICIT, side.explicit),
    )
    return sum(int(flag) for flag, wanted in pairs if wanted)


def _attempt(
    session: Session, course: Course, number: int, side: Side, flags: int, status: int
) -> Steps[Proven | _Failed]:
    """One exchange of tokens with one credential."""
    try:
        made = side.make()
        step = yield from ask(Authenticate(made))
    except Declined as declined:
        # our first token cannot be made: the responder has to know that this method is over
        yield from _say(course, GssApi(status=Status.AUTH_FAIL, flags=flags))
        return _Failed(declined)
    return (yield from _rounds(session, course, number, Opening(side, made, step, flags), status))


def _rounds(
    session: Session, course: Course, number: int, opened: Opening, status: int = 0
) -> Steps[Proven | _Failed]:
    """Token for token until both sides have finished."""
    side, step, flags, reply = opened.side, opened.step, opened.flags, opened.reply
    peer = step.peer
    for _ in range(MOST_ROUNDS):
        if reply is None:
            token = step.token.data if step.token else b""
            reply = yield from _say(course, GssApi(status=status, flags=flags, token=token))
        flags, status = flags & ~int(GssFlags.NEW | GssFlags.RETRY), 0  # they belong to the first token
        if reply.status:
            return _refused(reply)
        complete = bool(reply.flags & GssFlags.COMPLETE)
        if peer is not None:
            if complete:
                return _proven(session, number, peer, step.key, side)
            return _Failed(Declined("the responder wants more tokens than the method has"))
        try:
            step = yield from ask(Authenticate(opened.made, Token(reply.token)))
        except Declined as declined:
            return _Failed(declined, ours=True)
        peer, reply = step.peer, None
        if step.token is None and not (peer and complete):
            return _Failed(Declined("neither side has another token, and nothing is proven"))
        if peer is not None and complete and step.token is None:
            return _proven(session, number, peer, step.key, side)
    return _Failed(Declined(f"the exchange of tokens does not end within {MOST_ROUNDS} rounds"))


def _proven(session: Session, number: int, peer: Authenticated, key: Secret, side: Side) -> Proven:
    return Proven(
        number, peer, key_of(session, number, key), side.user, side.explicit, side.one_way or peer.anonymous
    )


def _refused(reply: GssApi) -> _Failed:
    reason = Declined(
        f"the peer does not accept our credential: {windows_status.shown(reply.status)}",
        "the peer's log says why",
    )
    return _Failed(reason, bool(reply.flags & GssFlags.RETRY), reply.status)


def _say(course: Course, token: GssApi) -> Steps[GssApi]:
    """HDR, GSS  -->   <--  HDR, GSS"""
    step = Send(course.message(token))
    reply = yield from expect(step, lambda message: _token(message, course))
    return reply


def _token(message: Message, course: Course) -> GssApi:
    """The token in a message; raises `Malformed`, and the peer's refusal."""
    if refused := message.refusal():
        raise refused
    if message.encrypted is not course.second:
        raise Malformed("a token in the clear, or encrypted, where the other belongs")
    return shapes.fitting(message, shapes.TOKEN).one(GssApi)


# Responder -------------------------------------------------------------------------------------------------


class Unable(Exception):
    """We cannot take tokens of a method now, for this reason."""

    def __init__(self, reason: Declined) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _cannot(payload: GssApi) -> bool:
    """Whether the initiator says that it has no token for the method. It repeats a status of ours in the
    first token of another credential."""
    return bool(payload.status) and not (payload.token and payload.flags & GssFlags.RETRY)


class Acceptance:
    """The responder's half: takes tokens, and has the answer for each. `proven` is what has succeeded."""

    __slots__ = (
        "_attempts",
        "_course",
        "_index",
        "_retries",
        "_rounds",
        "_rule",
        "_session",
        "_side",
        "proven",
    )

    def __init__(self, session: Session, course: Course, rule: Rule) -> None:
        self._session = session
        self._course = course
        self._rule = rule
        self._index = -1  # of the method that is under way
        self._retries = self._attempts = self._rounds = 0
        self._side: Authenticator | None = None
        self.proven: Proven | None = None

    def take(self, payload: GssApi) -> Steps[GssApi]:
        """The answer to a token; raises `Declined` when nothing is left to try."""
        try:
            if payload.flags & GssFlags.NEW or self._index < 0:
                self._begin(payload)
            self._rounds += 1
            if self._rounds > MOST_ROUNDS:
                raise Malformed(f"more than {MOST_ROUNDS} tokens in one attempt")
            if _cannot(payload):
                self._side = None  # the next method is the initiator's to begin
                return GssApi(status=0)
            return (yield from self._step(payload))
        except Unable as unable:
            return self._failed(self._session.methods[self._index], unable.reason)

    def _begin(self, payload: GssApi) -> None:
        """A new exchange: of the next method, or of the same with another credential."""
        session = self._session
        if not payload.flags & GssFlags.RETRY or self._index < 0:
            self._index, self._retries = self._index + 1, 0
        self._attempts += 1
        if self._index >= len(session.methods) or self._attempts > MOST_ATTEMPTS:
            raise Declined("the peer has tried every method, and proven nothing")
        if not self._course.second:
            session.disarm()
            if not session.profile.failed_attempts_count and self._attempts > 1:
                session.transcript.begin_attempt(1)
        self.proven = None
        self._rounds = 0
        self._side = None
        if not _cannot(payload):
            self._side = self._make(session.methods[self._index])

    def _make(self, number: int) -> Authenticator:
        """The side that verifies a method; raises `Unable`, which is no end of the negotiation."""
        session, second = self._session, self._course.second
        try:
            return methods.acceptor(session.env, self._rule, number, session.profile, second=second)
        except Declined as declined:
            raise Unable(declined) from declined

    def _step(self, payload: GssApi) -> Steps[GssApi]:
        number = self._session.methods[self._index]
        if self._side is None or self.proven is not None:
            raise Malformed("a token behind the last one")
        try:
            step = yield from ask(Authenticate(self._side, Token(payload.token)))
            self._check(payload)
        except Declined as declined:
            return self._failed(number, declined)
        if step.peer is None:
            if step.token is None:
                return self._failed(number, Declined("the peer's token leads nowhere"))
            return GssApi(token=step.token.data)
        one_way = number in (Method.NTLM, Method.ANONYMOUS) or step.peer.anonymous
        user = bool(payload.flags & GssFlags.IMPERSONATION)
        explicit = bool(payload.flags & GssFlags.EXPLICIT)
        key = key_of(self._session, number, step.key)
        self.proven = Proven(number, step.peer, key, user, explicit, one_way)
        return GssApi(flags=int(GssFlags.COMPLETE), token=step.token.data if step.token else b"")

    def _check(self, payload: GssApi) -> None:
        """Whether the initiator's flags are such as we allow."""
        if payload.flags & GssFlags.EXPLICIT and not self._session.env.settings.authip_explicit:
            raise Declined(
                "the peer uses explicitly supplied credentials",
                "allow them: explicit_credentials = true in [authip] of ikd.toml",
            )

    def _failed(self, number: int, declined: Declined) -> GssApi:
        """The answer to a token that proves nothing; the initiator may have another certificate."""
        self._side = None
        self._session.hooks.emit(self._event(number, declined))
        if self._index + 1 == len(self._session.methods):  # whether it has another credential we cannot know
            self._session.hooks.refused(declined)
        flags = 0
        if number in TLS and self._retries < MOST_RETRIES:
            self._retries += 1
            flags = int(GssFlags.RETRY)
        status = Status.KERBEROS_ERROR if number == Method.KERBEROS else Status.AUTH_FAIL
        return GssApi(status=status, flags=flags)

    def _event(self, number: int, declined: Declined) -> AuthenticationFailed:
        session, name = self._session, methods.NAMES.get(number, "")
        of_user = self._course.second and methods.of_user(self._rule, number)
        return AuthenticationFailed(
            ike=session.number,
            rule=self._rule.name,
            identity=declined.claimed or str(session.claimed or ""),
            address=str(session.path.peer.address),
            reason=str(declined),
            method=f"user-{name}" if of_user else name,
            cause=declined.cause,
        )


def respond(
    session: Session,
    course: Course,
    acceptance: Acceptance,
    step: Step,
    armed: Callable[[Proven], None],
    ends: Callable[[Message], bool],
) -> Steps[Message]:
    """Answer tokens until the initiator goes on with another message, which is returned; `ends` tells which
    that is, `armed` is called with what has been proven before the last answer goes out."""

    def take(message: Message) -> Message:
        if ends(message):
            if acceptance.proven is None:
                raise Malformed("the peer goes on without having proven anything")
            return message
        return shapes.fitting(message, shapes.TOKEN)

    while True:
        message = yield from expect(step, take)
        if ends(message):
            return message
        try:
            answer = yield from acceptance.take(message.one(GssApi))
        except Malformed as error:
            step = Wait(error)
            continue
        if acceptance.proven is not None:
            armed(acceptance.proven)
        iv = acceptance.proven is not None and session.profile.clear_iv and not course.second
        # <--  HDR, GSS
        step = Send(course.message(answer, iv=iv))
