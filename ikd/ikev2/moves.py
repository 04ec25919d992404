"""One IKE SA on the move (MOBIKE, RFC 4555 sections 3.5 to 3.11): which path it takes, when its Child SAs
follow, and when the peer has to hear of it.

The side that began the first IKE SA decides on the path. Its messages take a new one at once, its Child SAs
as soon as the peer is known to be there; where only our own end is new that is at once, too. The other side
goes where it is told by an authentic UPDATE_SA_ADDRESSES. A request that stays unanswered goes every way
there is from its third transmission on, and the path its answer comes by is the new one (section 3.10).
"""

from __future__ import annotations

from typing import Any, Protocol

from ikd.events import HostMoved, PeerMoved
from ikd.exchange import Steps
from ikd.ikev2 import mobike
from ikd.ikev2.failure import told
from ikd.ikev2.message import Refused
from ikd.ikev2.mobility import MOST_REFUSED, Mobility, Place, additional, candidates
from ikd.ikev2.session import Session
from ikd.life import State
from ikd.outputs import Move
from policy.rules import Rule
from sadb.address import Address, Path
from sadb.sa import Acquire, Mode, SaPair


class Mover(Protocol):
    """What this needs of an association."""

    session: Session
    inherited: bool
    undecided: bool

    @property
    def state(self) -> State: ...
    @property
    def usable(self) -> bool: ...
    def begin(self, name: str, steps: Steps[Any], now: float) -> None: ...
    def begin_anew(self, reason: str) -> None: ...
    def create_child(self, rule: Rule, acquire: Acquire | None, now: float) -> None: ...
    def close_child(self, pair: SaPair, reason: str, now: float) -> None: ...
    def find_way(self, way: Address | None, now: float) -> bool: ...
    def peer_moved(self, old: Address) -> None: ...
    def hurry(self, now: float) -> None: ...


class Moves:
    """Decides for one association. Everything here needs `session.mobility`, but for `begin` and `wanted`."""

    __slots__ = ("association", "session")

    def __init__(self, association: Mover) -> None:
        self.association = association
        self.session = association.session
        hooks = self.session.hooks
        hooks.choose, hooks.trust, hooks.follow = self.choose, self.trust, self.follow
        hooks.heard_addresses, hooks.refused = self._heard_addresses, self._refused

    @property
    def _mobility(self) -> Mobility:
        assert self.session.mobility is not None
        return self.session.mobility

    # What begins -----------------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether there is something to find out, or to tell the peer."""
        mobility = self.session.mobility
        if mobility is None or mobility.asking:
            return False
        astray = not mobility.initiator and self.session.path != mobility.trusted.path
        return mobility.stale or mobility.pending or mobility.told is None or astray

    def begin(self, now: float) -> None:
        """Begin what is `wanted`."""
        session, mobility = self.session, self._mobility
        if mobility.stale:
            mobility.stale = False
            self.association.begin("look around", mobike.look(session, mobility), now)
        elif mobility.pending:
            self.association.begin("move", mobike.update(session, mobility), now)
        elif session.path != mobility.trusted.path and not mobility.initiator:
            self.association.begin("check", mobike.confirm(session, mobility), now)
        else:
            self.association.begin("addresses", mobike.tell(session, mobility), now)

    def network_changed(self, now: float) -> None:
        """This host has other addresses or routes: look at every path anew."""
        mobility = self._mobility
        mobility.refused.clear()
        mobility.stale = False
        self.association.begin("look around", mobike.look(self.session, mobility), now)

    # Which path ------------------------------------------------------------------------------------------

    def choose(self) -> None:
        """Take the best path there is, or wait for one."""
        session, mobility = self.session, self._mobility
        best = next(candidates(session, mobility), None)
        if not self.association.find_way(best.local.address if best else None, session.now):
            return
        if best is not None and best != session.path and (mobility.initiator or session.lost):
            self._go(best)
        elif mobility.told != additional(session):
            mobility.told = None

    def follow(self, path: Path) -> None:
        """The peer has decided on a path. Whoever may be lied to sends it no packets there yet."""
        session, mobility = self.session, self._mobility
        if path != session.path:
            self._go(path)
        if not session.env.settings.routability_check or path.peer == mobility.trusted.path.peer:
            self.trust()

    def came_by(self, path: Path) -> None:
        """An answer came by one of several paths that were tried."""
        session, trusted = self.session, self._mobility.trusted
        if path == session.path:
            return
        if path == trusted.path:
            session.nat_local, session.nat_peer = trusted.nat_local, trusted.nat_peer
        self._go(path)

    def _go(self, path: Path) -> None:
        """From now on our messages take this path."""
        session, mobility, association = self.session, self._mobility, self.association
        old, session.path = session.path, path
        if old.peer.address != path.peer.address:
            association.peer_moved(old.peer.address)
            mobility.spread = True  # what is asked there goes here, too
        association.hurry(session.now)
        if association.inherited or association.undecided:  # the rest is for the one that has the Child SAs
            return
        if old.peer != path.peer:
            session.emit(PeerMoved(ike=session.number, old=old, new=path))
        if old.local != path.local:
            session.emit(HostMoved(ike=session.number, peer=session.peer_name, old=old, new=path))
        if old.local != path.local or mobility.told != additional(session):  # what is told goes without it
            mobility.told = None
        mobility.pending = mobility.initiator
        if path.peer == mobility.trusted.path.peer:
            self.trust()

    def come_along(self, former: Session) -> None:
        """Be where the IKE SA is by now whose place this one takes."""
        session, old = self.session, self.session.path
        session.path, session.stranded = former.path, former.stranded
        session.nat_local, session.nat_peer = former.nat_local, former.nat_peer
        self.association.peer_moved(old.peer.address)

    def trust(self) -> None:
        """The Child SAs take the path of the IKE SA."""
        session, mobility = self.session, self._mobility
        place = Place(session.path, session.nat_local, session.nat_peer)
        if place == mobility.trusted:
            return
        former, mobility.trusted = mobility.trusted.path, place
        ends = former.local.address, former.peer.address
        elsewhere = ends != (place.path.local.address, place.path.peer.address)
        for pair in list(session.children.pairs.values()):  # a successor may have them already
            if pair.mode is Mode.TUNNEL:
                session.emit(Move(pair, place.path, session.nat))
            elif elsewhere and mobility.initiator:
                self._replace(pair.rule, pair.inbound.spi)

    def _replace(self, name: str, spi: int) -> None:
        """In transport mode the addresses are part of what was negotiated: another Child SA takes the place
        of one that cannot move (section 1.2)."""
        session, association = self.session, self.association
        rule, path = session.env.policy.rule(name), session.path
        association.close_child(session.children.pairs[spi], "it cannot move", session.now)
        serves = rule is not None and rule.enabled and association.usable
        if rule is not None and serves and rule.covers_peer(path.local.address, path.peer.address):
            association.create_child(rule, None, session.now)

    # What the peer says ----------------------------------------------------------------------------------

    def _heard_addresses(self, path: Path) -> None:
        """The peer has other addresses, in a request that came by this path. When it does not have the one in
        use any more we speak to it where it speaks from."""
        session, mobility = self.session, self._mobility
        mobility.stale = True
        if session.path.peer.address not in (path.peer.address, *mobility.addresses):
            mobility.agreed = path
            self._go(path)

    def _refused(self, path: Path, error: Refused) -> None:
        """The peer does not want a path: take another one, or begin anew."""
        session, mobility = self.session, self._mobility
        session.emit(told(session, error, "INFORMATIONAL", session.rule_name, child=True))
        mobility.refused.add(path)
        left = len(mobility.refused) < MOST_REFUSED
        other = next(candidates(session, mobility), None) if left else None
        if other is not None:
            self._go(other)
        elif self.association.state is State.ESTABLISHED:
            self.association.begin_anew(str(error))
