"""What we announce with vendor IDs, and what a peer may then expect of us: the one place where
it is decided, chosen by `vendor_ids` in ikd.toml (MS-IKEE section 2.1).

An ability counts only when both sides announce it, so a profile without it does without it. Nothing is
announced that is not spoken here: no CGA, no negotiation discovery before there is one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ikd.riders.vendor import Known

WINDOWS = 9  # the version that Windows 8, Server 2012 and all later ones send
IKE, IKEV2 = 0, 2  # keying modules


@dataclass(frozen=True, slots=True)
class Announced:
    """A profile: (vendor ID, what follows it) in the order of sending. `idle` is after how many seconds
    without traffic quick-mode SAs of IKEv1 go when their rule does not say."""

    ikev1: tuple[tuple[Known, bytes], ...] = ()
    ikev2: tuple[tuple[Known, bytes], ...] = ()
    idle: float | None = None

    def knows(self, one: Known) -> bool:
        """Whether we say in IKEv1 that we know it."""
        return any(known is one for known, _ in self.ikev1)

    def of_ikev1(self, left_out: Collection[Known]) -> Iterator[bytes]:
        """The vendor IDs of a first or second message of IKEv1."""
        return (known.value + following for known, following in self.ikev1 if known not in left_out)

    def of_ikev2(self, left_out: Collection[Known]) -> Iterator[bytes]:
        """The vendor IDs of an IKE_SA_INIT message."""
        return (known.value + following for known, following in self.ikev2 if known not in left_out)


_STANDARD = (
    (Known.GSSAPI, b""),
    (Known.RFC_3947, b""),
    (Known.NAT_DRAFT_02, b""),
    (Known.FRAGMENTATION, b""),
    (Known.INITIAL_CONTACT, b""),
    (Known.DPD, b""),
)


def _word(number: int) -> bytes:
    return number.to_bytes(4, "big")


PROFILES: dict[str, Announced] = {
    "none": Announced(),
    "standard": Announced(_STANDARD),
    # in the order of Windows 8 and later
    "windows": Announced(
        (
            (Known.KEYING_MODULES, _word(IKE)),
            (Known.MICROSOFT, _word(WINDOWS)),
            *_STANDARD,
        ),
        (
            (Known.MICROSOFT, _word(WINDOWS)),
            (Known.INITIAL_CONTACT, b""),
            (Known.KEYING_MODULES, _word(IKEV2)),
        ),
        idle=300.0,
    ),
}
