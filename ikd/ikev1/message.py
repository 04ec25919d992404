"""A message of IKEv1 as the exchanges see it, and what they raise when it will not do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ikd.events import Comparison
from ikd.ikev1.numbers import DOI_IPSEC, FIRST_STATUS, PAYLOAD_NAMES, N, ProtocolId, notify_name
from ikd.ikev1.payloads import Hash, Notify
from ikd.riders import windows_status
from ikd.riders.windows_status import Told
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Body, Payload, extents

P = TypeVar("P", bound=Payload)

REMEDY = "compare `crypto`, `auth`, `local` and `remote` of both hosts' rules; the peer's log may say more"
_PRIVATE = (N.NOTIFY_STATUS, N.EXCHANGE_INFO)


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `octets` is its chain of payloads as it came, decrypted, with payload type `first` at its
    head: the hashes cover octets, not what they mean."""

    exchange: int
    payloads: tuple[Body, ...] = ()
    message_id: int = 0
    encrypted: bool = False
    first: int = 0
    octets: bytes = field(default=b"", repr=False)

    def maybe(self, kind: type[P]) -> P | None:
        """The first payload of a class (or one derived from it), or None."""
        return next(self.every(kind), None)

    def one(self, kind: type[P]) -> P:
        """The payload of a class; raises `Malformed` without one."""
        found = self.maybe(kind)
        if found is None:
            raise Malformed(f"no {PAYLOAD_NAMES[kind.kind]} payload")
        return found

    def every(self, kind: type[P]) -> Iterator[P]:
        """All payloads of a class, in order."""
        return (one for one in self.payloads if isinstance(one, kind))

    def notify(self, *types: int) -> Notify | None:
        """The first notify of one of these types, or None."""
        return next((one for one in self.every(Notify) if one.type in types), None)

    def error(self) -> Notify | None:
        """The first error notify, or None."""
        return next((one for one in self.every(Notify) if one.type < FIRST_STATUS), None)

    def told(self) -> Told | None:
        """What a NOTIFY_STATUS of Microsoft says (MS-IKEE section 2.2.6), unless that is success."""
        notify = self.notify(N.NOTIFY_STATUS)
        told = windows_status.read(notify.spi, notify.data) if notify else None
        return told if told and told.value != windows_status.NO_ERROR else None

    def refusal(self) -> Refused | None:
        """What the peer declines with, None when it does not."""
        declined, told = self.error(), self.told()
        if declined is None and told is None:
            return None
        number = declined.type if declined else int(N.NOTIFY_STATUS)
        more = f" ({windows_status.shown(told.value)})" if told else ""
        return Refused(number, f"the peer refused: {notify_name(number)}{more}", REMEDY, by_peer=True)

    def body(self, kind: type[Payload]) -> bytes:
        """The octets of the first payload of a class without its generic header, as they came."""
        for one in extents(self.first, self.octets):
            if one.kind == kind.kind:
                return one.body(self.octets)
        raise Malformed(f"no {PAYLOAD_NAMES[kind.kind]} payload")

    def behind_hash(self) -> bytes:
        """What the first payload, which must be a hash, covers: everything behind it, padding left out."""
        found = extents(self.first, self.octets)
        if not found or found[0].kind != Hash.kind:
            raise Malformed("the hash is not the first payload")
        return self.octets[found[0].end : found[-1].end]

    def names(self) -> tuple[str, ...]:
        """Payloads as logs show them: SA KE NONCE N(INITIAL_CONTACT)."""
        return tuple(
            f"N({_shown(one)})"
            if isinstance(one, Notify)
            else PAYLOAD_NAMES.get(one.kind, f"payload {one.kind}")
            for one in self.payloads
        )


def _shown(notify: Notify) -> str:
    """A notify by its name, and what a private one of Microsoft says."""
    name = notify_name(notify.type)
    told = windows_status.read(notify.spi, notify.data) if notify.type in _PRIVATE else None
    if told is None:
        return name
    exchange_info = notify.type == N.EXCHANGE_INFO
    return f"{name} {windows_status.flags(told.value) if exchange_info else windows_status.label(told.value)}"


def status(kind: int, data: bytes = b"", protocol: int = ProtocolId.ISAKMP, spi: bytes = b"") -> Notify:
    """A notify in the IPsec domain of interpretation."""
    return Notify(doi=DOI_IPSEC, protocol=protocol, type=kind, spi=spi, data=data)


class Refused(Exception):
    """Understood and declined: by us (then `notify` is what the peer is told) or by the peer (`by_peer`).
    `str()` is for the administrator of this host."""

    def __init__(
        self,
        notify: int,
        reason: str,
        remedy: str = "",
        *,
        comparison: Comparison | None = None,
        by_peer: bool = False,
    ) -> None:
        super().__init__(reason)
        self.notify = notify
        self.remedy = remedy
        self.comparison = comparison
        self.by_peer = by_peer


class Silent(Exception):
    """The peer does not answer."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


class Unauthentic(Exception):
    """A hash does not fit: the message counts for nothing."""
