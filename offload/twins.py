"""Clients behind one NAT, told apart (RFC 3948 section 5.2).

In transport mode through a NAT the packets of all its clients come from the NAT's address. Two clients that
both use port 1701, as L2TP does, look the same to this host's stack: on whose SA does the answer go?

A flow (protocol, addresses, ports) belongs to the client whose packet showed it first, a client being known
by its address and port outside. A second client's packet of the same flow is shown to the stack with another
source port, and the answers get the client's own port back. Nothing is changed while flows differ, and
nothing at all in tunnel mode or without encapsulation. A port is only chosen if the rule covers it too, for
else the answer would not be protected; where a rule names both ports, the client that sent last gets the
answers.

Flows of a client whose SAs are gone may be taken over by the next one that uses them, but for a while nobody
else gets answers that were meant for it. Every table has a bound: for each client, and for those that are
gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from offload import ip
from sadb.address import Address
from sadb.pairs import newest
from sadb.sa import Mode, SaPair
from sadb.selector import Fields, fields_of

MOST_FLOWS = 512  # of one client; the oldest gives way
MOST_GONE = 1024  # clients without SAs that are remembered
GONE_SECONDS = 120.0
PORTS = 49152, 65535  # RFC 6335 section 6: nobody's, and what other stacks take for themselves
_TRIES = 32

Key = tuple[Address, Address, int]  # local address, the NAT's, port outside


@dataclass(slots=True, eq=False)
class Client:
    """One client: pairs it is sent on, and how its flows are shown to the stack."""

    key: Key
    pairs: list[SaPair] = field(default_factory=list)
    shown: dict[bytes, bytes] = field(default_factory=dict)  # flow as the client sends it -> as it is shown
    until: float | None = None  # when its flows are forgotten; set when they are first asked for without SAs

    def pair(self, rule: str, fields: Fields) -> SaPair | None:
        """The pair of a rule to send a packet on."""
        return newest((pair for pair in reversed(self.pairs) if pair.rule == rule), fields)


class Twins:
    """Flows of all clients. `covered(rule, fields)` tells whether an outbound packet would come under a rule;
    `changed(key)` is told of outbound flows whose owner is another one now."""

    __slots__ = ("_changed", "_clients", "_covered", "_gone", "_of", "_owners", "_random")

    def __init__(
        self,
        random: Callable[[int], bytes],
        covered: Callable[[str, Fields], bool],
        changed: Callable[[bytes], object],
    ) -> None:
        self._random, self._covered, self._changed = random, covered, changed
        self._clients: dict[Key, Client] = {}
        self._of: dict[SaPair, Client] = {}
        self._owners: dict[bytes, tuple[Client, bytes]] = {}  # flow as it is shown -> client, as it sends it
        self._gone: OrderedDict[Client, None] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether there is anybody to tell apart."""
        return bool(self._clients)

    def __len__(self) -> int:
        """Flows that are remembered."""
        return len(self._owners)

    # Pairs -----------------------------------------------------------------------------------------------

    def add(self, pair: SaPair) -> None:
        """A pair was installed; only one in transport mode through a NAT matters here."""
        key = _key(pair)
        if key is None:
            return
        client = self._clients.setdefault(key, Client(key))
        client.pairs.append(pair)
        client.until = None
        self._gone.pop(client, None)
        self._of[pair] = client

    def retire(self, pair: SaPair) -> None:
        """Nothing is sent on the pair any more."""
        client = self._of.get(pair)
        if client is None or pair not in client.pairs:
            return
        client.pairs.remove(pair)
        if not client.pairs:
            self._gone[client] = None
            if len(self._gone) > MOST_GONE:
                self._forget(self._gone.popitem(last=False)[0])

    def remove(self, pair: SaPair) -> None:
        """The pair is gone."""
        self.retire(pair)
        self._of.pop(pair, None)

    def moved(self, pair: SaPair) -> None:
        """The pair has other addresses or ports; the first of a client's pairs to move takes the client with
        it, and its flows unless the address they are seen from is another one."""
        client, key = self._of.get(pair), _key(pair)
        if client is None:
            self.add(pair)
        elif key is None or (key != client.key and key in self._clients):
            self.remove(pair)
            self.add(pair)
        elif key != client.key:
            if key[:2] != client.key[:2]:
                self._drop_flows(client, tuple(client.shown))
            del self._clients[client.key]
            client.key = key
            self._clients[key] = client

    # Packets ---------------------------------------------------------------------------------------------

    def inbound(self, pair: SaPair, packet: bytes) -> bytes:
        """A packet that came on a pair, as the stack is to see it."""
        client = self._of.get(pair)
        key = ip.flow_key(packet) if client is not None else None
        if client is None or key is None:
            return packet
        shown = client.shown.get(key) or self._show(client, pair.rule, packet, key)
        return packet if shown == key else ip.with_port(packet, shown[-4:-2], source=True)

    def outbound(
        self, rule: str, packet: bytes, fields: Fields, usual: SaPair | None, now: float
    ) -> tuple[SaPair | None, bytes]:
        """The pair for a packet of the stack and the port it is to go to, empty for the one it has; `usual`
        is the pair it would get otherwise."""
        key = ip.flow_key(packet)
        owner = self._owners.get(_reversed(key)) if key is not None else None
        if owner is None:
            return usual, b""
        client, sent = owner
        if client.pairs:
            port = sent[-4:-2]
            return client.pair(rule, fields._replace(destination_port=int.from_bytes(port, "big"))), port
        if client.until is None:
            client.until = now + GONE_SECONDS
        if now >= client.until:
            self._forget(client)
            return usual, b""
        # what was meant for the one who is gone is not for its neighbours
        return (None if usual in self._of else usual), b""

    # Inside ----------------------------------------------------------------------------------------------

    def _show(self, client: Client, rule: str, packet: bytes, key: bytes) -> bytes:
        """How a client's new flow is shown."""
        owner, shown = self._owners.get(key), key
        if owner is not None:
            shown = (self._free(rule, packet, key) if owner[0].pairs else None) or key
            if shown == key:
                self._drop_flows(owner[0], (owner[1],))
        if len(client.shown) >= MOST_FLOWS:
            self._drop_flows(client, (next(iter(client.shown)),))
        client.shown[key] = shown
        self._owners[shown] = client, key
        self._changed(_reversed(shown))
        return shown

    def _free(self, rule: str, packet: bytes, key: bytes) -> bytes | None:
        """The flow with a source port that nobody has, or None."""
        fields = fields_of(packet)
        low, high = PORTS
        for _ in range(_TRIES if fields is not None else 0):
            port = low + int.from_bytes(self._random(2), "big") % (high - low + 1)
            shown = key[:-4] + port.to_bytes(2, "big") + key[-2:]
            assert fields is not None
            if shown not in self._owners and self._covered(
                rule, fields._replace(source_port=port).reversed()
            ):
                return shown
        return None

    def _forget(self, client: Client) -> None:
        """A client that has no pairs."""
        self._gone.pop(client, None)
        self._drop_flows(client, tuple(client.shown))
        if self._clients.get(client.key) is client:
            del self._clients[client.key]

    def _drop_flows(self, client: Client, keys: Iterable[bytes]) -> None:
        for key in keys:
            shown = client.shown.pop(key, None)
            if shown is not None and self._owners.get(shown, (None,))[0] is client:
                del self._owners[shown]
                self._changed(_reversed(shown))


def _key(pair: SaPair) -> Key | None:
    """Where the pair's client is seen, if it can have twins."""
    ports = pair.outbound.encapsulation
    if pair.mode is not Mode.TRANSPORT or ports is None:
        return None
    return pair.outbound.source, pair.outbound.destination, ports[1]


def _reversed(key: bytes) -> bytes:
    """The key of the flow in the other direction (`ip.flow_key`)."""
    size = (len(key) - 5) // 2
    source, destination = key[1 : 1 + size], key[1 + size : 1 + 2 * size]
    return key[:1] + destination + source + key[-2:] + key[-4:-2]
