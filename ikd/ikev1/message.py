"""A message of IKEv1 as the exchanges see it: what its notifies say, and which octets its hashes cover."""

from __future__ import annotations

from dataclasses import dataclass

from ikd.isakmp.message import REMEDY, Contents, Refused
from ikd.isakmp.numbers import DOI_IPSEC, FIRST_STATUS, PAYLOAD_NAMES, N, ProtocolId, notify_name
from ikd.isakmp.payloads import Hash, Notify
from ikd.riders import windows_status
from ikd.riders.windows_status import Told
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Payload, extents

_PRIVATE = (N.NOTIFY_STATUS, N.EXCHANGE_INFO)


@dataclass(frozen=True, slots=True)
class Message(Contents):
    """One message of IKEv1."""

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
