"""What a simulated adapter does wrong, and when: for tests, and for trials with `ikctl offload fault`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum


class Lie(Enum):
    """A mark that is not true."""

    RAW = "raw"  # CryptoDone, for no SA, on a packet that nobody opened
    STALE = "stale"  # the handle that the slot had before
    OTHER = "other"  # the handle of another SA


@dataclass(slots=True)
class Faults:
    """Failure injections, by the names of docs/offload.md. Probabilities are from 0 to 1; what is `once` is
    used up."""

    full: bool = False  # answers Add with no capacity
    refuse_once: bool = False  # refuses an SA that is eligible
    slow_add: float = 0.0  # seconds until Add is answered
    drop_tx: float = 0.0  # neither packet nor completion
    stuck: bool = False  # takes descriptors, completes none
    bad_icv: float = 0.0  # one bit wrong behind the sealing; failure reported for what was right
    lie: Lie | None = None
    swap: bool = False  # once: gives a slot away while descriptors are in flight
    reorder: int = 0  # completes out of order within so many
    evict: bool = False  # once: asks to be relieved of the SA of the next packet
    esn_lag: bool = False  # ignores Update

    def set(self, name: str, value: str) -> None:
        """Set one from text; raises `ValueError` that says what there is."""
        known = {one.name: one for one in fields(self)}
        if name not in known:
            raise ValueError(f"no fault {name!r}: there are {', '.join(known)}")
        before = getattr(self, name)
        if name == "lie":
            self.lie = Lie(value) if value != "off" else None
        elif isinstance(before, bool):
            setattr(self, name, value in ("on", "true", "1"))
        else:
            setattr(self, name, type(before)(value))
