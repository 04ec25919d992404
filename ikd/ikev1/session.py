"""What the exchanges of one ISAKMP SA share: its channel, keys, what the peer can do, and its quick-mode SAs
(RFC 2408, 2409).

`ikd.ikev1.association` drives its exchanges, `ikd.endpoint` holds all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from ikd import keying
from ikd.ikev1.channel import Channel
from ikd.ikev1.keys import IkeKeys, Transcript
from ikd.ikev1.message import Message
from ikd.isakmp.numbers import UNDECIDED
from ikd.isakmp.session import IsakmpSession
from ikd.keying import Environment
from ikd.outputs import Output
from sadb.address import Path
from sadb.sa import SaPair


class Proving(Protocol):
    """What a session knows of how both sides prove themselves; the rest is in `ikd.ikev1.proofs`."""

    method: ClassVar[str]


class Hooks:
    """What a session asks of those who hold it; set by the association."""

    __slots__ = (
        "authenticated",
        "close",
        "delete",
        "emit",
        "first_contact",
        "kin",
        "notify",
        "part",
        "unfinished",
    )

    emit: Callable[[Output], None]
    first_contact: Callable[[], bool]  # whether we have no other main-mode SA with this peer
    kin: Callable[[], list[keying.MainMode]]  # other ISAKMP SAs with this peer
    authenticated: Callable[[], None]  # the peer is proven
    notify: Callable[[int, bytes, int, bytes], None]  # an informational message: type, data, protocol, SPI
    delete: Callable[[SaPair, str], None]  # a quick-mode SA that is replaced: drop it here and at the peer
    unfinished: Callable[[SaPair], None]  # a quick-mode SA whose initiator may believe that it is there
    part: Callable[[Message], None]  # a last message of phase 1, which has failed
    close: Callable[[str, bool], None]  # this ISAKMP SA is over; whether the peer wanted it


class Session(IsakmpSession):
    """One ISAKMP SA of IKEv1."""

    __slots__ = (
        "channel",
        "has_twin",
        "hooks",
        "keys",
        "method",
        "pair_due",
        "pair_messages",
        "proof",
        "public_i",
        "public_r",
        "sa",
    )

    channel: Channel
    keying = "ikev1"

    def __init__(self, initiator: bool, env: Environment, channel: Channel, path: Path, now: float) -> None:
        IsakmpSession.__init__(self, initiator, env, path, now)
        self.channel = channel
        self.hooks = Hooks()
        self.has_twin = False  # AuthIP is begun at the same time, and our first message says so
        self.keys: IkeKeys | None = None
        self.method: int = UNDECIDED
        self.proof: Proving | None = None  # how both sides prove themselves, once that is agreed on
        self.pair_due = False  # the peer's next message is one of an additional pair of tokens
        self.pair_messages = 0  # of such pairs, so far
        self.public_i = self.public_r = b""
        self.sa = b""  # the initiator's SA payload as it was on the wire, which the hashes cover

    def emit(self, output: Output) -> None:
        """Hand an output or event to the world."""
        self.hooks.emit(output)

    @property
    def transcript(self) -> Transcript:
        """What HASH_I and HASH_R cover."""
        channel = self.channel
        return Transcript(self.public_i, self.public_r, channel.cookie_i, channel.cookie_r, self.sa)

    def place(self, number: int) -> int:
        """Where a message of phase 1 stands in the tables of shapes: messages of additional pairs of tokens
        have number 0 there and do not count."""
        return 0 if self.pair_due else number - self.pair_messages
