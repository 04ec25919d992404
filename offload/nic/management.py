"""What an adapter's process and whoever manages it say to each other, over a socket that keeps messages
apart."""

from __future__ import annotations

from typing import Final

import msgspec

LONGEST: Final = 1 << 16  # octets of a message


class Order(msgspec.Struct, frozen=True):
    """What the adapter is to be."""

    profile: str
    manager: int  # a socket that keeps messages apart


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What goes between the adapter and its manager."""


class Attach(_Message, frozen=True, array_like=True, tag=True):
    """A port; with it come descriptors: those of the plug, its socket for requests, raw sockets, UDP
    sockets."""

    port: str
    slots: int
    room: int
    raw: int
    natt: int


class Detach(_Message, frozen=True, array_like=True, tag=True):
    """Forget a port and all it has."""

    port: str


class Quota(_Message, frozen=True, array_like=True, tag=True):
    """What a port may have, whether it is attached or not: so many SAs, outbound ones among them or not; and
    how many slots of each pool nobody else may fill. What it has already stays until it deletes it."""

    port: str
    limit: int
    outbound: bool = True
    kept: tuple[int, ...] = ()


class SetLink(_Message, frozen=True, array_like=True, tag=True):
    """The link goes up or down; down empties the table."""

    up: bool


class Reset(_Message, frozen=True, array_like=True, tag=True):
    """Forget all SAs, as a chip does; ports hear of it as of a link that went down and up."""


class Fault(_Message, frozen=True, array_like=True, tag=True):
    """One of `offload.nic.faults`, which the manager has checked."""

    name: str
    value: str


class Status(_Message, frozen=True, array_like=True, tag=True):
    """A sign of life: counters, what came to nothing at sockets, slots in use by port and by pool, receive
    addresses in use, and the link."""

    counters: dict[str, int]
    dropped: dict[str, int]
    used: dict[str, int]
    pools: tuple[int, ...]
    addresses: int
    up: bool


class Gone(_Message, frozen=True, array_like=True, tag=True):
    """A port went away by itself."""

    port: str


Command = Attach | Detach | Quota | SetLink | Reset | Fault
News = Status | Gone

encode = msgspec.msgpack.Encoder().encode
command_of = msgspec.msgpack.Decoder(Command).decode
news_of = msgspec.msgpack.Decoder(News).decode
