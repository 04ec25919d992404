"""What goes through a channel, octet by octet."""

from __future__ import annotations

import ctypes

import pytest
from support import engines

from offload.channel import Decoder, Garbled, forget, framed
from offload.nic.requests import DeleteSa, Request

pytestmark = engines.ONE_ENGINE


def test_what_is_taken_from_a_buffer_is_overwritten() -> None:
    """Orders and requests have keys in them; a buffer keeps its memory for the next ones."""
    buffer = bytearray(b"a key for an SA" + bytes(1000))
    place = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    forget(buffer, 15)
    assert ctypes.string_at(place, 15) == bytes(15)
    assert buffer == bytes(1000)


def test_messages_come_out_whatever_pieces_they_come_in() -> None:
    """A stream keeps nothing together, and a message that is none ends it."""
    said = [DeleteSa(number) for number in range(40)]
    stream = b"".join(map(framed, said))
    for size in (1, 3, 7, len(stream)):
        decoder = Decoder(Request, 100)
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [one for piece in pieces for one in decoder.feed(piece)] == said
    with pytest.raises(Garbled):
        list(Decoder(Request, 100).feed(bytes((0, 0, 0, 1, 0x90))))
    with pytest.raises(Garbled):
        list(Decoder(Request, 100).feed(bytes((0, 0, 0, 101))))
