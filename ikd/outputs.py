"""What the protocol core wants done: plain values in a list, performed by the daemon in their order.

Events are outputs too (`ikd.events`). A question inside an `Ask` is answered with `Endpoint.answer`; the
questions here are those of the network and the SADB, `ikd.auth.Authenticate` is the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ikd.events import Event
from ikd.exchange import Question
from sadb.address import Address, Path
from sadb.algorithms import MainSuite
from sadb.sa import SaPair
from sadb.secret import Secret


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send a datagram; on port 4500 the transport puts the non-ESP marker in front."""

    data: bytes
    path: Path


@dataclass(frozen=True, slots=True)
class Ask:
    """Answer a question with `Endpoint.answer(ticket, value)`; an exception as value fails it."""

    ticket: int
    question: Question[Any]


@dataclass(frozen=True, slots=True)
class Release:
    """Give a reserved SPI back: its negotiation failed (`Database.release`)."""

    spi: int


@dataclass(frozen=True, slots=True)
class Remove:
    """Take a pair out of the SADB."""

    pair: SaPair


@dataclass(frozen=True, slots=True)
class Inherit:
    """Hand the pairs of one IKE SA to its successor (`Database.inherit`)."""

    former: int
    owner: int


@dataclass(frozen=True, slots=True)
class Give:
    """Hand one pair to an IKE SA (`Database.give`)."""

    pair: SaPair
    owner: int


@dataclass(frozen=True, slots=True)
class Move:
    """A pair's packets take another path now, in UDP when they are `encapsulated`; `path` is that of the IKE
    SA."""

    pair: SaPair
    path: Path
    encapsulated: bool


@dataclass(frozen=True, slots=True)
class Renew:
    """What was negotiated cannot follow this host to its new address: negotiate anew for its rule."""

    rule: str
    peer: Address


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of a new IKE SA, for whoever asked to have them exported; nobody else looks at them."""

    spi_i: bytes
    spi_r: bytes
    suite: MainSuite
    encryption: tuple[Secret, Secret]  # initiator's, responder's; with salt
    integrity: tuple[Secret, Secret]
    peer: Address | None = None  # whose they are, where that matters


Output = Transmit | Ask | Release | Remove | Inherit | Give | Move | Renew | Keys | Event


# Questions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ways(Question[Mapping[Address, Address]]):
    """From which of our addresses the host sends to each of these; those without a route are left out."""

    peers: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class AllocateSpi(Question[int]):
    """Reserve an inbound SPI (`Database.allocate_spi`), a certain one if it is given."""

    wanted: int | None = None


@dataclass(frozen=True, slots=True)
class Install(Question[None]):
    """Make a reserved SPI a pair; `replaces` dies as soon as this one is in (`Database.install`)."""

    pair: SaPair
    replaces: SaPair | None = None
