"""The exchanges of an ISAKMP SA of IKEv1: what is its own in driving them, foremost the chain of IVs of each.

RFC 2409 section 5 and appendix B, MS-IKEE section 3.9.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from ikd.exchange import Conversation, Steps
from ikd.ikev1.message import Message
from ikd.ikev1.session import Session
from ikd.isakmp import conversations
from ikd.isakmp.conversations import SILENCE, Pace
from ikd.isakmp.message import Contents
from ikd.isakmp.numbers import Exchange, Method, exchange_name
from ikd.outputs import Transmit

MOST_COOKIES = 16  # responder cookies that are returned in one negotiation

# Remedies where the peer has answered until we proved ourselves.
_UNREADABLE = (
    "most likely its pre-shared key is another one, so that it cannot read this message: compare the secret "
    "for this peer in both hosts' secrets; else look whether firewalls pass UDP 4500"
)
_UNBELIEVED = "the peer's log may say why it does not believe us; else look whether firewalls pass UDP 4500"
DELETION = Pace(1.0, 2.0, 16.0, 5)  # four repetitions (MS-IKEE section 3.8.6.1; Windows makes six)


@dataclass(slots=True, eq=False)
class Talk(conversations.Talk):
    """One exchange. `iv` is that of its next message."""

    iv: bytes = field(default=b"", repr=False)
    sent_block: bytes = field(default=b"", repr=False)  # the final cipher block of our last message


class Conversations(conversations.Conversations[Session, Talk]):
    """Drives the exchanges of a session."""

    __slots__ = ()

    def begin(
        self, exchange: int, message_id: int, steps: Steps[Message | None], now: float, *, initiator: bool
    ) -> Talk:
        """A new exchange, not resumed yet."""
        iv = self.session.channel.iv_of(message_id) if message_id else b""
        conversation: Conversation[Any] = Conversation(exchange_name(exchange), steps)
        talk = Talk(conversation, exchange, message_id, initiator, iv=iv)
        self.talks[message_id] = talk
        return talk

    def seal(self, talk: Talk, message: Message) -> tuple[Contents, bytes]:
        """A message of an exchange as it goes out, and its datagram; the chain of IVs goes on."""
        message = Message(message.exchange, message.payloads, talk.message_id, message.encrypted)
        if message.encrypted and not talk.iv:
            talk.iv = self.session.channel.start_iv
        datagram, talk.iv = self.session.channel.seal(message, talk.iv)
        talk.sent_block = talk.iv
        return message, datagram

    def name(self, exchange: int) -> str:
        """The name of an exchange type."""
        return exchange_name(exchange)

    def repeats(self, talk: Talk) -> bool:
        """The responder of main mode leaves repetitions to the initiator: it is a stranger; where the
        initiator has the last word, it does not know whether that was heard."""
        return talk.initiator or talk.exchange != Exchange.MAIN

    def pace(self, talk: Talk) -> Pace:
        """When it is repeated."""
        if talk.exchange == Exchange.INFORMATIONAL:
            return DELETION
        return conversations.Conversations.pace(self, talk)

    def essential(self, talk: Talk) -> bool:
        """Whether the peer counts as gone when nobody answers."""
        return talk.initiator and talk.exchange != Exchange.INFORMATIONAL

    def kept(self, talk: Talk) -> float:
        """For how many seconds a finished exchange answers repetitions."""
        return 0.0 if talk.exchange == Exchange.INFORMATIONAL else conversations.KEPT_SECONDS

    def cuts(self, talk: Talk) -> bool:
        """Whether its messages may have to be fragmented."""
        return talk.exchange != Exchange.QUICK and self.session.may_fragment

    def remedy(self, talk: Talk) -> str:
        """What may help against the peer's silence."""
        if not talk.message_id and talk.message and talk.message.encrypted:
            return _UNREADABLE if self.session.method == Method.PSK else _UNBELIEVED
        return SILENCE

    def return_cookie(self, talk: Talk, cookie: bytes) -> None:
        """Our first message once more with a responder cookie, otherwise identical; repetitions go without,
        and get another cookie where one is needed."""
        if talk.cookies < MOST_COOKIES:
            talk.cookies += 1
            first = talk.sent[0]
            self.session.emit(Transmit(first[:8] + cookie + first[16:], self.session.path))
            assert talk.message is not None
            self.tell_sent(talk.message, talk.tries + 1)


def digest(data: bytes) -> bytes:
    """What a repetition has in common with the original: every octet but the responder cookie, which a first
    message may have or not (MS-IKEE section 3.9)."""
    return hashlib.blake2b(data[:8] + data[16:], digest_size=16).digest()
