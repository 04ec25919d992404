"""Notifies with reliable delivery: MS-AIPS sections 3.1.5 and 3.1.7.5.

A reliable one is repeated until it is acknowledged or given up; of those about one SA one goes out at a time.
What the peer has sent before is acknowledged again and not heeded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ikd.authip.conversations import Conversations
from ikd.authip.message import Message, notify, sealed
from ikd.authip.numbers import RELIABLE, Exchange, N, Subject
from ikd.authip.payloads import Notify
from ikd.isakmp.conversations import Pace
from ikd.outputs import Transmit
from ikd.wire.isakmp import Payload

PACE = Pace(1.0, 2.0, 16.0, 5)
MOST_OPEN = 64  # that wait for an acknowledgement, or for their turn
MOST_HEARD = 1024  # sequence numbers of the peer that are remembered, with our acknowledgements


@dataclass(slots=True)
class _Notice:
    """One reliable notify on its way. `key` tells about which SA it is."""

    key: int
    message: Message
    over: Callable[[], None]
    lost: Callable[[], None] | None
    datagram: bytes = b""
    due: float = 0.0
    wait: float = 0.0
    tries: int = 0


class Notices:
    """What one side has to say and waits to be acknowledged."""

    __slots__ = ("_heard", "_highest", "_open", "_queued", "_talks")

    def __init__(self, talks: Conversations) -> None:
        self._talks = talks
        self._open: dict[int, _Notice] = {}  # by sequence number
        self._queued: list[_Notice] = []
        self._heard: dict[int, tuple[Message, bytes] | None] = {}
        self._highest = -1

    def __len__(self) -> int:
        return len(self._open) + len(self._queued)

    def deadlines(self) -> Iterator[float]:
        """When one is repeated."""
        return (one.due for one in self._open.values())

    # Ours ------------------------------------------------------------------------------------------------

    def say(
        self,
        message_id: int,
        *payloads: Payload,
        over: Callable[[], None] = lambda: None,
        lost: Callable[[], None] | None = None,
        key: int | None = None,
    ) -> None:
        """Send a reliable notify; with its acknowledgement, or when none comes, it is `over`, in the latter
        case after `lost`. What is too much is over at once."""
        if len(self) >= MOST_OPEN:
            over()
            return
        message = sealed(Exchange.NOTIFY, message_id, *payloads)
        self._queued.append(_Notice(message_id if key is None else key, message, over, lost))
        self._next()

    def mention(self, message_id: int, *payloads: Payload) -> None:
        """Send one that nobody acknowledges, in the clear as long as there are no keys."""
        talks = self._talks
        message = sealed(Exchange.NOTIFY, message_id, *payloads)
        message = replace(message, encrypted=talks.session.armed, sequence=talks.number(Exchange.NOTIFY))
        self._emit(message, talks.session.channel.seal(message)[0])

    def _emit(self, message: Message, datagram: bytes, tries: int = 1) -> None:
        session = self._talks.session
        self._talks.sent_at = session.now
        session.emit(Transmit(datagram, session.path))
        self._talks.tell_sent(message, tries)

    def _next(self) -> None:
        """Send those for whose SA nothing else is on its way."""
        busy = {one.key for one in self._open.values()}
        for one in list(self._queued):
            if one.key in busy:
                continue
            busy.add(one.key)
            self._queued.remove(one)
            number = self._talks.number(Exchange.NOTIFY)
            one.message = replace(one.message, sequence=number)
            one.datagram, _ = self._talks.session.channel.seal(one.message)
            one.wait, one.tries = PACE.first, 1
            one.due = self._talks.session.now + one.wait
            self._open[number] = one
            self._emit(one.message, one.datagram)

    def awaits(self, number: int) -> bool:
        """Whether the one with this sequence number is not acknowledged yet."""
        return number in self._open

    def acknowledged(self, number: int) -> None:
        """N(NOTIFY_ACK) came for this sequence number."""
        found = self._open.pop(number, None)
        if found is not None:
            self._next()
            found.over()

    def tick(self, now: float) -> None:
        """Repeat what is not acknowledged in time, or give it up."""
        for number, one in list(self._open.items()):
            if one.due > now or number not in self._open:
                continue
            if one.tries >= PACE.tries and not self._talks.session.stranded:
                del self._open[number]
                if one.lost is not None:
                    one.lost()
                one.over()
                continue
            one.tries += not self._talks.session.stranded
            one.wait = min(one.wait * PACE.factor, PACE.cap)
            one.due = now + one.wait
            self._emit(one.message, one.datagram, one.tries)
        self._next()

    def close(self) -> None:
        """Nothing of it matters any more."""
        self._open.clear()
        self._queued.clear()

    # The peer's ------------------------------------------------------------------------------------------

    def again(self, number: int) -> bool:
        """Whether the peer, or somebody who has recorded its messages, has used a sequence number before."""
        if number in self._heard or number <= self._highest - MOST_HEARD:
            return True
        self._heard[number] = None
        self._highest = max(self._highest, number)
        if len(self._heard) > MOST_HEARD:  # then the lowest one is below the window
            del self._heard[min(self._heard)]
        return False

    def acknowledge(self, message: Message) -> None:
        """N(NOTIFY_ACK) for a message with a reliable notify; others get none. One that comes again, maybe
        from somebody who has recorded it, gets the same octets again: nothing grows with it."""
        number, reliable = message.sequence, any(one.flags & RELIABLE for one in message.every(Notify))
        if number in self._heard and reliable:
            said = self._heard[number] = self._heard[number] or self._acknowledgement(message)
            self._emit(*said)

    def _acknowledgement(self, message: Message) -> tuple[Message, bytes]:
        talks = self._talks
        ack = notify(N.ACK, Subject.MAIN, message.sequence.to_bytes(4, "big"))
        echoes = talks.session.profile.ack_echoes
        number = message.sequence if echoes else talks.number(Exchange.NOTIFY)
        answer = replace(sealed(Exchange.NOTIFY, message.message_id, ack), sequence=number)
        return answer, talks.session.channel.seal(answer)[0]
