"""How the datagrams of an ISAKMP SA find their exchange, as far as IKEv1 and AuthIP do it alike: answers to
questions, fragments, message IDs that are used once, a peer whose address changes (MS-IKEE section 3.3,
RFC 3947 section 4)."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

from ikd.association import Association, Owner
from ikd.isakmp.conversations import Conversations
from ikd.isakmp.session import IsakmpSession
from ikd.life import State
from ikd.outputs import Move
from ikd.riders.fragment1 import FRAGMENT, Fragments
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Header
from sadb.address import Path

MOST_SEEN = 4096  # message IDs of the peer that are remembered


class Listener(Association):
    """An association that listens; which exchange a message is for each protocol tells itself."""

    __slots__ = ("_fragments", "_seen", "session", "talks")

    conversing: ClassVar[Callable[..., Any]]  # what makes its `talks`
    session: IsakmpSession
    talks: Conversations[Any, Any]

    def __init__(self, session: IsakmpSession, owner: Owner, now: float) -> None:
        Association.__init__(self, session, owner, now)
        self.session = session
        self.talks = self.conversing(
            session, lambda talk, question: owner.ask(self, talk, question), self._broke_off, self._gone
        )
        self._fragments = Fragments()
        self._seen: OrderedDict[int, None] = OrderedDict()

    # What the other half does with it --------------------------------------------------------------------

    @abstractmethod
    def _broke_off(self, talk: Any, error: Exception, now: float) -> None:
        """An exchange ended with an exception."""

    @abstractmethod
    def _gone(self) -> None:
        """The peer does not answer."""

    @abstractmethod
    def _settle(self, now: float) -> None:
        """The end of every step."""

    # Facts -----------------------------------------------------------------------------------------------

    @property
    def spis(self) -> tuple[bytes, bytes]:
        """Cookies of initiator and responder; the latter zero while unknown."""
        return self.session.channel.cookie_i, self.session.channel.cookie_r

    @property
    def waiting(self) -> str:
        """What it waits for, for people; empty when nothing."""
        return self.talks.waiting

    @property
    def answered(self) -> bool:
        """Whether the other end has agreed to a proposal of ours."""
        return self.session.suite is not None

    # What comes ------------------------------------------------------------------------------------------

    def hurry(self, now: float) -> None:
        """Repeat at once what is not answered: there is a way to the peer again."""
        self.talks.hurry(now)

    def answer(self, talk: Any, value: object, now: float) -> None:
        """The answer to a question of one of its exchanges; an exception fails it."""
        if self.state is State.CLOSED or talk.conversation.done:
            return
        if isinstance(value, Exception):
            self.talks.drive(talk, now, error=value)
        else:
            self.talks.drive(talk, now, value)
        self._settle(now)

    def _whole(self, header: Header, data: bytes, now: float) -> tuple[Header, bytes] | None:
        """The message that a fragment completes; raises `Malformed`."""
        if (self.answered and not self.session.may_fragment) or not self.session.env.settings.fragmentation:
            raise Malformed("a fragment that was not agreed on")  # its first message may say so inside
        whole = self._fragments.add(header, data, now)
        if self.answered:
            self.talks.fragmenting = True
        if whole is None:
            return None
        inner = Header.decode(whole)
        if inner.next_payload == FRAGMENT or (inner.spi_i, inner.spi_r) != (header.spi_i, header.spi_r):
            raise Malformed("fragments of another message")
        return inner, whole

    def _again(self, message_id: int) -> bool:
        """Whether a message ID was used before, by the peer or in a recording of its messages; from now on it
        is. Long before one is forgotten, whose recording would be new, the SA is replaced."""
        if message_id in self._seen:
            return True
        self._seen[message_id] = None
        if len(self._seen) == MOST_SEEN // 2:
            self.life.rekey_at = self.session.now
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        return False

    def _follow(self, path: Path) -> None:
        """A peer behind a NAT is where its last message came from; before it is proven, any that fits."""
        session = self.session
        if path == session.path or not (self.state is State.CONNECTING or session.nat_peer):
            return
        old, session.path = session.path, path
        if old.peer.address != path.peer.address:
            self.owner.moved(self, old.peer.address)
        for pair in self.children.values():
            self.owner.emit(Move(pair, path, pair.outbound.encapsulation is not None))
