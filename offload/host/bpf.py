"""Shell. Small programs for the kernel (classic BPF, Linux `Documentation/networking/filter.rst`): which
socket gets a packet, so that IKE and ESP, and the ESP of several workers, never pass through each other's
process, and which packets of a flood are worth waking anybody."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand

# asm-generic/socket.h
_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_ATTACH_REUSEPORT_CBPF = 26, 27, 51
_INSTRUCTION: Final = struct.Struct("=HBBI")

# linux/bpf_common.h
_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_LOAD_WORD_BEHIND: Final = 0x40  # BPF_LD | BPF_W | BPF_IND: from X on
_LOAD_HALF: Final = 0x28  # BPF_LD | BPF_H | BPF_ABS
_LOAD_HALF_BEHIND: Final = 0x48  # BPF_LD | BPF_H | BPF_IND
_LOAD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
_LOAD_BYTE_BEHIND: Final = 0x50  # BPF_LD | BPF_B | BPF_IND
_LOAD_LENGTH: Final = 0xB1  # BPF_LDX | BPF_B | BPF_MSH: X is the length of the IPv4 header
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_ABOVE: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_MODULO: Final = 0x94  # BPF_ALU | BPF_MOD | BPF_K
_ADD: Final = 0x04  # BPF_ALU | BPF_ADD | BPF_K
_RETURN, _RETURN_A = 0x06, 0x16  # BPF_RET | BPF_K, BPF_RET | BPF_A
_EVERYTHING: Final = 0xFFFFFFFF
_RANDOM: Final = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_UDP: Final = 8  # octets of its header, which these programs see
_NOTIFY: Final = 41  # the payload a first message of IKEv2 with a cookie begins with (RFC 7296 section 2.6)


def demultiplexer(workers: int) -> list[Instruction]:
    """The socket, in the order of binding, for a datagram on the port of ESP in UDP: the first one for the
    non-ESP marker of IKE and for what is too short for either (RFC 3948 section 2), else the one of the SPI's
    worker."""
    return [
        (_LOAD_WORD, 0, 0, 0),  # a datagram without four octets ends here, with 0
        (_JUMP_EQUAL, 3, 0, 0),
        (_MODULO, 0, 0, workers),
        (_ADD, 0, 0, 1),
        (_RETURN_A, 0, 0, 0),
        (_RETURN, 0, 0, 0),
    ]


def share(at: int, number: int, shares: int, header: bool) -> list[Instruction]:
    """Whether a raw socket gets a packet: those whose SPI, `at` octets behind the IPv4 header if there is
    one, is in a share of all SPIs."""
    load: list[Instruction] = [(_LOAD_WORD, 0, 0, at)]
    if header:
        load = [(_LOAD_LENGTH, 0, 0, 0), (_LOAD_WORD_BEHIND, 0, 0, at)]
    return [
        *load,
        (_MODULO, 0, 0, shares),
        (_JUMP_EQUAL, 0, 1, number),
        (_RETURN, 0, 0, _EVERYTHING),
        (_RETURN, 0, 0, 0),
    ]


def too_big(four: bool) -> list[Instruction]:
    """Whether a raw socket for ICMP gets a message: those that a datagram was too big for its path. In IPv4
    the program sees the header, in IPv6 it does not."""
    if four:
        kind = [(_LOAD_LENGTH, 0, 0, 0), (_LOAD_HALF_BEHIND, 0, 0, 0), (_JUMP_EQUAL, 0, 3, 0x0304)]
        quoted = (_LOAD_BYTE_BEHIND, 0, 0, 8 + 9)
    else:
        kind = [(_LOAD_HALF, 0, 0, 0), (_JUMP_EQUAL, 0, 3, 0x0200)]
        quoted = (_LOAD_BYTE, 0, 0, 8 + 6)
    return [
        *kind,
        quoted,
        (_JUMP_EQUAL, 0, 1, socket.IPPROTO_UDP),
        (_RETURN, 0, 0, _EVERYTHING),
        (_RETURN, 0, 0, 0),
    ]


def sieve(marked: bool, strangers: float, returning: float) -> list[Instruction]:
    """Whether a socket for IKE gets a datagram: all that have a responder's SPI, which is everything for SAs
    there are; of first messages a share chosen by chance, from 0 to 1, and of those that seem to return a
    cookie another. `marked`: IKE comes behind a non-ESP marker, and what has none passes."""
    at = _UDP + 4 * marked
    shares = [min(_EVERYTHING, int(share * _EVERYTHING)) for share in (returning, strangers)]
    marker: list[Instruction] = [(_LOAD_WORD, 0, 0, _UDP), (_JUMP_EQUAL, 0, 10, 0)]
    return [
        *(marker if marked else ()),
        (_LOAD_WORD, 0, 0, at + 8),
        (_JUMP_EQUAL, 0, 8, 0),
        (_LOAD_WORD, 0, 0, at + 12),
        (_JUMP_EQUAL, 0, 6, 0),
        (_LOAD_BYTE, 0, 0, at + 16),
        (_JUMP_EQUAL, 0, 2, _NOTIFY),
        (_LOAD_WORD, 0, 0, _RANDOM),
        (_JUMP_ABOVE, 3, 2, shares[0]),
        (_LOAD_WORD, 0, 0, _RANDOM),
        (_JUMP_ABOVE, 1, 0, shares[1]),
        (_RETURN, 0, 0, _EVERYTHING),
        (_RETURN, 0, 0, 0),
    ]


def detach_filter(sock: socket.socket) -> None:
    """Let a socket receive everything again."""
    with suppress(OSError):  # ENOENT: there is none
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def attach_filter(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """Let a socket receive only what a program returns octets of; raises `OSError`."""
    _attach(sock, _SO_ATTACH_FILTER, program)


def attach_reuseport(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """Let a program choose among all sockets that share an address and port; raises `OSError`."""
    _attach(sock, _SO_ATTACH_REUSEPORT_CBPF, program)


def _attach(sock: socket.socket, option: int, program: Sequence[Instruction]) -> None:
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*one) for one in program))
    # struct sock_fprog: the number of instructions, and where they are
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("HP", len(program), ctypes.addressof(code)))
