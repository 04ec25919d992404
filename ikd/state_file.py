"""Shell. `state.json` in the state directory: what the next run of the daemon goes on from.

Counters of metrics, traffic of rules and peers, and which keying module peers speak, each until a time of
day, because the daemon's own clock begins anew with the host. No secret is in it. It is replaced in one step,
now and then and at the end; a crash loses what came since. A file that cannot be used is told once and set
aside, and a disk that takes no file is told when that begins and when it is over: nothing of this stops the
daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec

from ikd import atomic
from ikd.endpoint import Endpoint
from ikd.metrics import Metrics
from ikd.traffic import Traffic
from sadb.address import parse

FILE: Final = "state.json"
ASIDE: Final = "state.json.bad"
FORMAT: Final = "ikd-state"
VERSION: Final = 1
LARGEST: Final = 16 << 20  # octets

_Count: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
_Whole: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_Totals: TypeAlias = Annotated[list[_Whole], msgspec.Meta(min_length=4, max_length=4)]


class Verdict(NamedTuple):
    """What a peer speaks, until a POSIX time."""

    peer: str
    keying: str
    until: float


class State(msgspec.Struct, kw_only=True):
    """The file; keys of later versions are left out."""

    format: str = FORMAT
    version: int = VERSION
    counters: dict[str, list[tuple[tuple[str, ...], _Count]]] = {}
    traffic: dict[str, dict[str, _Totals]] = {}
    verdicts: list[Verdict] = []


class Parts(NamedTuple):
    """What has something to remember, with the daemon's clock and the time of day."""

    metrics: Metrics
    traffic: Traffic
    endpoint: Endpoint
    now: Callable[[], float]
    clock: Callable[[], float]

    def gathered(self) -> bytes:
        """The file's octets."""
        now, clock = self.now(), self.clock()
        verdicts = self.endpoint.verdicts(now)
        return msgspec.json.encode(
            State(
                counters={name: list(rows) for name, rows in self.metrics.counted().items()},
                traffic=self.traffic.counted(),
                verdicts=[Verdict(str(peer), module, clock + left) for peer, module, left in verdicts],
            )
        )

    def go_on(self, state: State) -> None:
        """Go on from there."""
        clock = self.clock()
        self.metrics.go_on(state.counters)
        self.traffic.go_on(state.traffic)
        self.endpoint.recall(
            ((parse(one.peer), one.keying, one.until - clock) for one in state.verdicts), self.now()
        )


class StateFile:
    """The file in `directory`; `warn` is told what an administrator should know, and `trouble` is why nothing
    can be written, empty as long as it can."""

    def __init__(self, directory: Path, warn: Callable[[str], None]) -> None:
        self.path = directory / FILE
        self.trouble = ""
        self._warn = warn

    def read(self) -> State | None:
        """What an earlier run has left; None where there is nothing that can be used. Makes the directory."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.path.open("rb") as file:
                octets = file.read(LARGEST + 1)
            return _state(octets)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(f"{self.path} cannot be read: {error.strerror}; counters begin at 0")
        except ValueError as error:  # msgspec's, too
            aside = self.path.with_name(ASIDE)
            with suppress(OSError):
                self.path.replace(aside)
            self._warn(
                f"{self.path} cannot be used: {error}; it is {aside.name} now, and counters begin at 0"
            )
        return None

    def write(self, octets: bytes) -> OSError | None:
        """Replace the file, from any thread; what went wrong, for `note`."""
        try:
            atomic.replace(self.path, octets, 0o600)
        except OSError as error:
            return error
        return None

    def note(self, error: OSError | None) -> None:
        """Tell what is new about writing."""
        trouble = f"{self.path} cannot be written: {error.strerror}" if error is not None else ""
        if trouble and trouble != self.trouble:
            self._warn(
                f"{trouble}; what is counted from now on is lost if the daemon ends before that is mended"
            )
        elif self.trouble and not trouble:
            self._warn(f"{self.path} is written again")
        self.trouble = trouble


def _state(octets: bytes) -> State:
    """Read and check a file; raises `ValueError` with what is wrong."""
    if len(octets) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST} octets")
    state = msgspec.json.decode(octets, type=State)
    if (state.format, state.version) != (FORMAT, VERSION):
        raise ValueError(f"it is {state.format} {state.version}, not {FORMAT} {VERSION}")
    for one in state.verdicts:
        parse(one.peer)
    return state
