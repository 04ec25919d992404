"""A peer that has proven who it is and then sends what it likes, inside the encryption; its victim, which is
watched; and a third host that wants no more than its share.

The hostile end is our own core: what it protects passes a `Mutator` on the way to its cipher, so that hashes,
check values and message IDs fit. Random draws tell its messages from the victim's.
"""

from __future__ import annotations

import gc
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from support.authip import CERTIFICATE, USER, person
from support.link import LEFT, RIGHT, SECRET, TUNNEL, Flight, Host, Link, host, story
from support.mutation import Mutator, encode_chain
from support.phases import AGGRESSIVE, certified, sets

from ikd.auth.credentials import Material
from ikd.auth.identity import Identity
from ikd.auth.psk import PskEntry
from ikd.authip import channel as channel_a
from ikd.authip import message as message_a
from ikd.authip.association import AuthipAssociation
from ikd.authip.numbers import Exchange as ExchangeA
from ikd.events import Broken
from ikd.ikev1 import channel as channel_1
from ikd.ikev1 import informational, quick_mode
from ikd.ikev1.association import Ikev1Association
from ikd.ikev2 import channel as channel_2
from ikd.ikev2 import conversations as conversations_2
from ikd.ikev2.association import Ikev2Association
from ikd.ikev2.message import Message as Message2
from ikd.ikev2.numbers import Exchange as Exchange2
from ikd.outputs import Install
from ikd.settings import IkeSettings
from sadb.address import Address
from sadb.secret import Secret

PROTOCOLS = ("ikev2", "ikev1", "authip")


@dataclass(frozen=True)
class Variant:
    """A protocol and how the hosts prove themselves in it."""

    keying: str
    auth: str = CERTIFICATE
    rule: str = ""
    material: Callable[[str], Material] = certified


def _shared(name: str) -> Material:
    peers = tuple(f"{other}.example" for other in ADDRESSES if other != name)
    return Material(Identity.parse(f"{name}.example"), (PskEntry(Secret(SECRET), peers),))


PSK = '[auth.machine]\nfirst = ["psk"]\n'
VARIANTS = {
    **{name: Variant(name) for name in PROTOCOLS},
    "ikev2 with a secret": Variant("ikev2", PSK, material=_shared),
    "ikev1 aggressive": Variant("ikev1", rule=AGGRESSIVE),
    "authip with users": Variant("authip", USER, material=person),
}
THIRD = RIGHT + 1
ADDRESSES = {"left": LEFT, "right": RIGHT, "third": THIRD}
NETS = {"left": "10.1.{}.0/24", "right": "10.2.{}.0/24", "third": "10.3.{}.0/24"}
LIMITS = IkeSettings(fragment_size=576)
MOST_CALLS = 4000  # of the victim in one trace
MOST_SECONDS = 0.5  # of processor time for one message: what is well behaved takes milliseconds
MOST_WEIGHT = 500_000  # octets of the victim at any moment: an honest peer comes to a tenth
FEW_RULES = 3


def _rule(name: str, own: str, peer: str, protocol: str, n: int = 0, extra: str = "") -> str:
    return TUNNEL.format(
        name=name,
        local=NETS[own].format(n),
        remote=NETS[peer].format(n),
        own=ADDRESSES[own],
        peer=ADDRESSES[peer],
        auth="machine",
        extra=f'keying = ["{protocol}"]\ncrypto = "old"\npeer = "{peer}.example"\n{extra}',
    )


def _host(name: str, protocol: str, seed: int, **how: Any) -> Host:
    variant = VARIANTS[protocol]
    protocol, extra = variant.keying, variant.rule
    others = ["left", "third"] if name == "right" else ["right"]
    rules = "".join(
        _rule(f"{'net' if other != 'third' else 'third'}{n or ''}", name, other, protocol, n, extra)
        for other in others
        for n in range(FEW_RULES)
    )
    crypto = how.pop("crypto", None) or sets()
    rules += crypto + variant.auth
    address: Address = ADDRESSES[name]
    material = how.pop("material", None) or variant.material(name)
    return host(name, address, rules, material, how.pop("settings", LIMITS), seed)


class Trial:
    """A hostile host (left), its victim (right), and the link between them."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        protocol: str,
        *,
        victim: Host | None = None,
        seed: int = 0,
        **how: Any,
    ) -> None:
        self.protocol = protocol
        self._seed, self._crypto = seed, how.get("crypto")
        self.hostile = _host("left", protocol, seed, **how)
        self.victim = victim or watched(_host("right", protocol, 0, crypto=self._crypto))
        self.link = Link(self.hostile, self.victim)
        self.change: Callable[[Sequence[Any]], Sequence[Any]] = tuple
        self.fragment: Callable[[bytes], bytes] = bytes
        self.saw: Callable[[Sequence[Any]], None] = lambda payloads: None
        tap(monkeypatch, self)

    def changed(self, random: object, payloads: Sequence[Any]) -> Sequence[Any]:
        """The payloads of a message as whoever has this source of randomness sends them."""
        self.saw(payloads)
        return tuple(self.change(payloads)) if self.is_hostile(random) else payloads

    def is_hostile(self, random: object) -> bool:
        """Whether a source of randomness is the hostile host's."""
        return random == self.hostile.endpoint.env.random

    def say(self, exchange: int, *payloads: Any, number: int | None = None) -> bool:
        """A message of the hostile host's own accord, on its newest SA; whether it could be made."""
        link = self.link
        if not self.hostile.ikes:
            return False
        association = self.hostile.ikes[-1]
        session: Any = association.main
        if not session.channel.armed:
            return False
        serial = len(link.flights) + 0x1000 if number is None else number
        if isinstance(association, Ikev2Association):
            channel = session.channel
            serial = channel.next_id if number is None else number
            channel.next_id = max(channel.next_id, serial + 1)
            found = channel.seal(Message2(exchange, payloads, False, serial), session.path)
        elif isinstance(association, Ikev1Association):
            if exchange == quick_mode.Exchange.QUICK:
                made = quick_mode._sealed(session, serial, payloads)
            else:
                made = replace(informational.sealed(session, serial, payloads), exchange=exchange)
            if not session.channel.last_block:
                return False
            found = [session.channel.seal(made, session.channel.iv_of(serial))[0]]
        else:
            assert isinstance(association, AuthipAssociation)
            sealed = replace(message_a.sealed(exchange, serial, *payloads), sequence=serial)
            found = [session.channel.seal(sealed)[0]]
        for data in found:
            link.inject(self.victim, data, association.path.local.port)
        return True

    # What is to hold --------------------------------------------------------------------------------------

    def unharmed(self) -> None:
        """The victim is whole, and holds no more than a peer may make it hold."""
        one = self.victim
        told = self.told
        assert not one.of(Broken), one.of(Broken)[0].text + told()
        assert len(one.ikes) <= 24, told()
        assert len(list(one.database.pairs())) <= 48, told()
        assert one.endpoint.half_open <= 16, told()
        assert len(one.endpoint._tickets) <= 32, told()
        assert one.database.counts().larval <= 32, told()
        assert weight(one) < MOST_WEIGHT, f"{weight(one)} octets{told()}"

    def told(self) -> str:
        """What happened, for reading when a test fails."""
        changed = getattr(self.change, "changed", [])
        return f"\nseed {self._seed}: {self.protocol}\n" + "\n".join([*changed, story(self.link)])

    def third(self) -> Host:
        """A third host, whom the victim has a rule for as well."""
        return _host("third", self.protocol, self._seed, crypto=self._crypto)

    def beside(self, third: Host) -> Link:
        """The link between a third host and the victim; what the victim sends the other is lost."""
        other = Link(third, self.victim)
        other.now = self.link.now
        other.fate = lambda flight: _misrouted(flight, third)
        return other

    def served(self) -> None:
        """A third host negotiates with the victim as if nothing were the matter."""
        third = self.third()
        other = self.beside(third)
        other.up("net", third)
        other.run(3)
        assert len(third.pairs) == 1, self.told() + story(other)
        assert self.victim.database.by_spi(third.pairs[0].outbound.spi) is not None, self.told()
        other.close(third)
        other.run(2)
        self.link.now = other.now

    def over(self) -> None:
        """The hostile host is silent for good: after a while the victim has nothing left of it."""
        one, link = self.victim, self.link
        link.fate = lambda flight: setattr(flight, "lost", True)
        for association in list(one.ikes):
            link.perform(one, one.endpoint.close(association, link.now, "the end"))
        link.run(900)
        self.unharmed()
        assert not one.ikes, self.told()
        assert not list(one.database.pairs()), self.told()
        assert not one.backend.pairs, self.told()
        assert one.database.counts().larval == 0, self.told()
        endpoint = one.endpoint
        assert endpoint._register.empty, self.told()
        assert not any((endpoint._tickets, endpoint._attempts, endpoint.half_open)), self.told()


def _misrouted(flight: Flight, third: Host) -> None:
    flight.lost = flight.sender is not third and flight.path.peer.address != third.address


def watched(one: Host) -> Host:
    """A victim: its endpoint may not raise, or work for long; what it installs, policy has to allow."""
    calls = [0]

    def bounded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            begun = time.thread_time()
            made = method(*given, **more)
            took = time.thread_time() - begun
            assert took < MOST_SECONDS, f"{method.__name__} took {took} s of processor time"
            calls[0] += 1
            assert calls[0] < MOST_CALLS, "it goes on for ever"
            assert len(made) < 1000, f"{len(made)} outputs of one call"
            return made

        return call

    for name in ("receive", "answer", "tick", "expired"):
        setattr(one.endpoint, name, bounded(getattr(one.endpoint, name)))
    one.asked = lambda question: allowed(one, question)
    one.calls = calls  # type: ignore[attr-defined]
    return one


def allowed(one: Host, question: Any) -> None:
    """A pair serves a rule that is there, for its traffic only, with a suite of its set, between the outer
    addresses it names, and for a peer that has proven to be whom it names."""
    if not isinstance(question, Install):
        return
    pair = question.pair
    rule = one.endpoint.policy.rule(pair.rule)
    assert rule is not None, f"no rule {pair.rule}"
    assert rule.crypto is not None
    assert rule.tunnel is not None
    for given, most in (
        (pair.selector.local, rule.selector.local),
        (pair.selector.remote, rule.selector.remote),
    ):
        assert given, "a pair for no traffic"
        for narrow in given:
            assert any(wide.covers(narrow) for wide in most), f"{narrow} is wider than the rule"
    suites = [replace(suite, esn=False, group=None) for suite in rule.crypto.quick]
    for half in (pair.inbound, pair.outbound):
        assert replace(half.suite, esn=False, group=None) in suites, str(half.suite)
        assert half.spi > 255, f"SPI {half.spi}"
        assert (half.lifetime.hard_octets or 0) < 1 << 63, "no engine counts as far"
        assert (half.lifetime.hard_seconds or 10) >= 10, "it would be replaced without a pause"
    name = "left" if pair.rule.startswith("net") else "third"
    assert pair.outbound.destination == ADDRESSES[name]
    found = one.endpoint.associations[pair.owner].peer
    assert found is not None, "the peer has proven nothing"
    assert str(found.identity) in (f"{name}.example", f"CN={name}.example"), str(found.identity)


# Between the exchanges and the cipher -----------------------------------------------------------------------


def tap(monkeypatch: pytest.MonkeyPatch, trial: Trial) -> None:
    """From now on what the hostile host of a trial encrypts is changed first. In IKEv1 a hash inside covers
    what it stands before, so the change comes before the hash."""
    sealing = {one: _original(one.Channel, "seal") for one in (channel_2, channel_1, channel_a)}

    def seal_2(self: Any, message: Any, path: Any) -> Any:
        return sealing[channel_2](
            self, replace(message, payloads=trial.changed(self._random, message.payloads)), path
        )

    def seal_1(self: Any, message: Any, iv: bytes) -> Any:
        if message.exchange not in HASHED:
            message = replace(message, payloads=trial.changed(self._random, message.payloads))
        return sealing[channel_1](self, message, iv)

    def seal_a(self: Any, message: Any) -> Any:
        return sealing[channel_a](
            self, replace(message, payloads=trial.changed(self._random, message.payloads))
        )

    monkeypatch.setattr(channel_2.Channel, "seal", seal_2)
    monkeypatch.setattr(channel_1.Channel, "seal", seal_1)
    monkeypatch.setattr(channel_a.Channel, "seal", seal_a)

    for module in (channel_2, channel_1, channel_a, quick_mode, informational):
        monkeypatch.setattr(module, "encode_chain", encode_chain)

    fragments = _original(channel_2.Channel, "_sealed")

    def sealed_fragment(
        self: Any, message: Any, outer: int, inner: int, prefix: bytes, plaintext: bytes
    ) -> bytes:
        if prefix and trial.is_hostile(self._random):
            prefix = trial.fragment(prefix)
        made: bytes = fragments(self, message, outer, inner, prefix, plaintext)
        return made

    monkeypatch.setattr(channel_2.Channel, "_sealed", sealed_fragment)

    first = _original(conversations_2, "clear")

    def clear(header: Any, payloads: Any) -> bytes:
        mine = trial.hostile.endpoint.by_spi(header.spi_r if header.flags & 0x20 else header.spi_i)
        random = (trial.hostile if mine else trial.victim).endpoint.env.random
        made: bytes = first(header, trial.changed(random, tuple(payloads)))
        return made

    monkeypatch.setattr(conversations_2, "clear", clear)

    for module, name in ((quick_mode, "_sealed"), (informational, "sealed")):
        hashing = _original(module, name)

        def hashed(session: Any, number: int, payloads: Any, *nonce: bytes, hashing: Any = hashing) -> Any:
            return hashing(session, number, trial.changed(session.env.random, payloads), *nonce)

        monkeypatch.setattr(module, name, hashed)


HASHED = (informational.Exchange.INFORMATIONAL, quick_mode.Exchange.QUICK)
_ORIGINALS: dict[tuple[Any, str], Any] = {}


def _original(owner: Any, name: str) -> Any:
    """A function as it was before any trial."""
    return _ORIGINALS.setdefault((owner, name), getattr(owner, name))


# Traces -----------------------------------------------------------------------------------------------------

EXCHANGES = {
    "ikev2": tuple(Exchange2),
    "ikev1": (*HASHED, 2, 4, 6, 32, 33),
    "authip": tuple(ExchangeA),
}


def trace(trial: Trial, mutator: Mutator) -> None:
    """One life of a hostile peer: it negotiates, and at some moment begins to change what it sends, in its
    own exchanges and in answers; in between it says what nobody asked for."""
    link, luck = trial.link, mutator.luck
    trial.change, trial.saw = mutator, mutator.saw
    trial.fragment = lambda prefix: _fragment(prefix, mutator)
    trial.victim.calls[0] = 0  # type: ignore[attr-defined]
    mutator.rarity = luck.choice((0.0, 0.5, 2.0, 6.0))
    mutator.spared = luck.choice((0, 0, 1, 2, 4, 8))
    trial.victim.slow = luck.choice((0.0, 0.0, 0.03))
    link.fate = lambda flight: setattr(flight, "copies", int(luck.random() < 0.05))
    mutator.active = luck.random() < 0.4  # else it is honest until it is trusted
    link.up("net", luck.choice(("left", "left", "right")))
    link.run(luck.choice((0.025, 0.06, 0.5)) if mutator.active else 0.5)
    mutator.active = True
    for _ in range(luck.randrange(2, 9)):
        _command(trial, mutator)
        link.run(luck.choice((0.005, 0.05, 0.05, 1.0, 30.0)))
        trial.unharmed()
    trial.victim.slow = 0.0


def _fragment(prefix: bytes, mutator: Mutator) -> bytes:
    luck = mutator.luck
    if not mutator.active or luck.random() < 0.8:
        return prefix
    number, total = (int.from_bytes(one, "big") for one in (prefix[:2], prefix[2:]))
    number, total = luck.choice(
        (
            (0, total),
            (total + 1, total),
            (number, 0),
            (number, 129),
            (1, 1),
            (number, number),
            (0xFFFF, 0xFFFF),
            (1, 128),
        )
    )
    return number.to_bytes(2, "big") + total.to_bytes(2, "big")


def _command(trial: Trial, mutator: Mutator) -> None:
    link, luck = trial.link, mutator.luck
    side = luck.choice((trial.hostile, trial.hostile, trial.victim))
    choice = luck.randrange(9)
    if choice < 2:
        link.up(luck.choice(("net", "net1", "net2")), side)
    elif choice < 6:
        (link.rekey_child, link.rekey, link.close_child, link.close)[choice - 2](side)
    else:
        payloads = [mutator.material() for _ in range(luck.randrange(5))]
        trial.say(luck.choice(EXCHANGES[VARIANTS[trial.protocol].keying]), *payloads)


# Weight -----------------------------------------------------------------------------------------------------

_APART = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.CodeType,
    types.BuiltinFunctionType,
    types.FrameType,
)


def weight(one: Host) -> int:
    """About how many octets a host's core and SADB hold."""
    seen: set[int] = set()
    total, waiting = 0, [vars(one.endpoint), one.database]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, _APART):
            continue
        seen.add(id(found))
        total += sys.getsizeof(found)
        waiting += gc.get_referents(found)
    return total
