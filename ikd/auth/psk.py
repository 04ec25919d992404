"""Pre-shared key authentication in IKEv2 (RFC 7296 section 2.15), and which key belongs to whom.

AUTH = prf(prf(shared secret, "Key Pad for IKEv2"), octets). One side proves, the other computes the same and
compares in constant time.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from ikd.auth import Authenticated, Declined, Identity, Step, Token, Transcript
from ikd.auth.groups import NO_GROUPS, Groups
from sadb.crypto import prf
from sadb.secret import Secret

METHOD = 2
KEY_PAD = b"Key Pad for IKEv2"


def shared_key_code(secret: Secret, transcript: Transcript) -> bytes:
    """The AUTH data."""
    return prf(transcript.prf, prf(transcript.prf, bytes(secret), KEY_PAD), transcript.octets)


@dataclass(frozen=True, slots=True)
class PskProver:
    """Proves us with a pre-shared key."""

    secret: Secret
    transcript: Transcript

    def step(self, token: Token | None) -> Step:
        """One token, no matter what the peer has sent."""
        return Step(Token(shared_key_code(self.secret, self.transcript), METHOD))


@dataclass(frozen=True, slots=True)
class PskVerifier:
    """Checks the peer's proof of the same key."""

    secret: Secret
    identity: Identity
    transcript: Transcript
    groups: Groups = NO_GROUPS

    def step(self, token: Token | None) -> Step:
        """The proven peer; raises `Declined`."""
        if token is None or token.method != METHOD:
            raise Declined("the peer sent no pre-shared key proof")
        if not hmac.compare_digest(shared_key_code(self.secret, self.transcript), token.data):
            raise Declined(
                f"the pre-shared key for {self.identity} is not the one the peer has",
                "compare the secret for this peer in both hosts' secrets.toml",
                cause="wrong-key",
            )
        return Step(peer=proven(self.identity, self.groups))


def proven(identity: Identity, groups: Groups) -> Authenticated:
    """A peer that has the key for what it claims to be."""
    name = str(identity)
    return groups.joined(Authenticated(identity, "psk", f"pre-shared key {name}", names=(name,)))


# Which key -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PskEntry:
    """One pre-shared key. `peers` are identities in canonical text, with `*` for any characters, or address
    prefixes; empty means any peer. `local` narrows it to one of our identities."""

    secret: Secret
    peers: tuple[str, ...] = ()
    local: str | None = None


def _fits(pattern: str, name: str) -> int:
    """How well a name fits a pattern: 2 when it is that name, 1 when the pattern covers it, 0 when not."""
    pattern, name = pattern.casefold(), name.casefold()
    if pattern == name:
        return 2
    if "/" in pattern and "=" not in pattern:
        try:
            return int(ip_address(name) in ip_network(pattern, strict=False))
        except ValueError:
            return 0
    return int("*" in pattern and _covers(pattern, name))


def _covers(pattern: str, name: str) -> bool:
    """Whether a pattern with `*` covers a name, in linear time: the name is a stranger's."""
    first, *middle, last = pattern.split("*")
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    position, end = len(first), len(name) - len(last)
    for piece in middle:
        found = name.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True


def is_for(entry: PskEntry, local: str | None) -> bool:
    """Whether we may use it as `local`; None stands for an identity not chosen yet."""
    return entry.local is None or local is None or _fits(entry.local, local) > 0


def find(entries: Iterable[PskEntry], peers: Sequence[str], local: str | None) -> PskEntry | None:
    """The key for a peer known by any of `peers` (the best known name first): named before pattern before
    any, then an entry for our identity before one for all of ours, then the first in the file."""
    best: PskEntry | None = None
    best_rank = (-1, 0)
    for entry in entries:
        if not is_for(entry, local):
            continue
        rank = 0
        if entry.peers:
            # a better known name outweighs a better fit: 2 and 1 for the last name, 4 and 3 before it, ...
            rank = max(
                (
                    2 * (len(peers) - index - 1) + fit
                    for index, name in enumerate(peers)
                    for pattern in entry.peers
                    if (fit := _fits(pattern, name))
                ),
                default=-1,
            )
        if rank >= 0 and (rank, int(entry.local is not None)) > best_rank:
            best, best_rank = entry, (rank, int(entry.local is not None))
    return best
