"""The exchanges of a main-mode SA of AuthIP: their sequence numbers, and which messages transcripts cover.

MS-AIPS sections 3.1.1 and 3.1.5. The initiator of main mode begins every exchange and repeats itself; the
responder answers, and answers again what comes once more.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ikd.authip.message import Message
from ikd.authip.numbers import EXTENDED_MESSAGE_ID, Exchange, exchange_name
from ikd.authip.session import Session
from ikd.exchange import Conversation, Question, Steps
from ikd.isakmp import conversations
from ikd.isakmp.conversations import SILENCE
from ikd.isakmp.message import Contents
from ikd.isakmp.payloads import Hash

_UNBELIEVED = "the peer's log may say why it does not believe us; else look whether firewalls pass UDP 4500"


@dataclass(slots=True, eq=False)
class Talk(conversations.Talk):
    """One exchange. `sequence` and `asked` are sequence number and message ID of the peer's last request,
    `past` the digests of all its messages, ours included: whoever sends those back has nothing to say.
    `begun` is when it began."""

    sequence: int = 0
    asked: int = 0
    past: set[bytes] = field(default_factory=set)
    begun: float = 0.0


class Conversations(conversations.Conversations[Session, Talk]):
    """Drives the exchanges of a session."""

    __slots__ = ("_numbers", "_origin")

    def __init__(
        self,
        session: Session,
        ask: Callable[[Talk, Question[Any]], None],
        broke_off: Callable[[Talk, Exception, float], None],
        gone: Callable[[], None],
    ) -> None:
        conversations.Conversations.__init__(self, session, ask, broke_off, gone)
        self._numbers: Counter[int] = Counter()  # the next sequence number of each exchange type
        self._origin = session.path.peer.address  # where the first message came from, or went to

    def begin(self, exchange: int, message_id: int, steps: Steps[Message | None], *, initiator: bool) -> Talk:
        """A new exchange, not resumed yet."""
        conversation: Conversation[Any] = Conversation(exchange_name(exchange), steps)
        talk = Talk(conversation, exchange, message_id, initiator, begun=self.session.now)
        self.talks[message_id] = talk
        return talk

    def number(self, exchange: int) -> int:
        """The sequence number of a request of ours."""
        self._numbers[exchange] += 1
        return self._numbers[exchange] - 1

    def seal(self, talk: Talk, message: Message) -> tuple[Contents, bytes]:
        """A message of an exchange as it goes out, and its datagram."""
        if talk.initiator:
            message = replace(message, sequence=self.number(message.exchange))
        else:
            number = message.message_id
            if message.exchange == Exchange.QUICK:
                number = talk.asked
            message = replace(message, sequence=talk.sequence, message_id=number)
        datagram, covered = self.session.channel.seal(message)
        talk.past.add(digest(datagram))
        self.cover(talk, message, covered)
        return message, datagram

    def cover(self, talk: Talk, message: Message, covered: bytes) -> None:
        """Take a message into the transcript it belongs to: what comes before Auth1, or before Auth3."""
        session, hashed = self.session, message.maybe(Hash) is not None
        if not message.encrypted:
            session.transcript.add(covered)
        elif talk.message_id == EXTENDED_MESSAGE_ID:
            if not hashed:
                session.transcript_em.add(covered)
        elif message.exchange == Exchange.QUICK and session.profile.sync_in_extended and not hashed:
            session.transcript_em.add(covered)

    @property
    def left_alone(self) -> list[Talk]:
        """Those in which the peer has not gone on for as long as it may take."""
        limit = self.session.now - self.session.env.settings.half_open_timeout
        return [one for one in self.talks.values() if _theirs(one) and one.begun <= limit]

    def deadlines(self) -> Iterable[float]:
        """Also when the peer's time to go on is over."""
        yield from conversations.Conversations.deadlines(self)
        seconds = self.session.env.settings.half_open_timeout
        yield from (one.begun + seconds for one in self.talks.values() if _theirs(one))

    def name(self, exchange: int) -> str:
        """The name of an exchange type."""
        return exchange_name(exchange)

    def repeats(self, talk: Talk) -> bool:
        """Only the initiator repeats its messages."""
        return talk.initiator

    def stranger(self, talk: Talk) -> bool:
        """Not any more when our cookie has come back from where we have sent it: large certificates may
        need to be repeated before anybody is proven."""
        returned = talk.number >= 3 and self.session.path.peer.address == self._origin
        return conversations.Conversations.stranger(self, talk) and not returned

    def remedy(self, talk: Talk) -> str:
        """What may help against the peer's silence."""
        proving = not talk.message_id and talk.message is not None and talk.message.encrypted
        return _UNBELIEVED if proving else SILENCE


def _theirs(talk: Talk) -> bool:
    """Whether it is the peer's to go on with."""
    return talk.waiting and not talk.initiator


def digest(data: bytes) -> bytes:
    """What a datagram is remembered by."""
    return hashlib.blake2b(data, digest_size=16).digest()
