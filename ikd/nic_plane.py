"""Shell. The data plane with an adapter: this host's own, or, in a virtual machine, a share of its host's.

`AdapterPlane` is `HostPlane` with one worker, whose SAs an adapter may carry; `make_plane` picks
the plane that the settings ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ikd.events import AdapterGone, Event, SaPlaced, Warned
from ikd.plane import Guarded, HostPlane, MemoryPlane, Plane
from ikd.settings import DataplaneSettings
from ikd.transport import Transport
from offload.nic.capabilities import Direction
from offload.nic.faults import Faults
from offload.nic.management import Fault, Reset, SetLink
from offload.switch.guest import Guest
from offload.switch.pair_steering import Arbiter, PairSteering
from offload.switch.placement import Decision
from offload.switch.ports import Ports
from offload.switch.steering import Member
from offload.switch.switch import Switch
from offload.workers.shares import Share
from sadb.backend import Unavailable
from sadb.sa import SaPair


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """What a plane with an adapter needs besides settings: the ports of `offload.toml`, the directory for
    their sockets, whether a rule's SAs may be offloaded, and what keeps changed ports."""

    ports: Ports | None
    sockets: Path
    wished: Callable[[str], bool]
    save: Callable[[Ports], None]


class AdapterPlane(HostPlane):
    """See the module."""

    with_adapter = True

    def __init__(
        self,
        settings: DataplaneSettings,
        transport: Transport,
        guarded: Guarded,
        tell: Callable[[Event], None],
        options: AdapterOptions,
    ) -> None:
        packets = not settings.switch and options.ports is not None and options.ports.packet_mode
        super().__init__(
            replace(settings, engine="python") if packets else settings, transport, guarded, tell
        )
        if packets and settings.engine == "auto":
            self.notices += ("packet mode: the engine in Python serves, several times slower",)
        self._save = options.save
        self.switch: Switch | None = None
        self.guest: Guest | None = None
        self._faults = Faults()  # as they were last set
        arbiter: Arbiter
        if settings.switch:
            arbiter = self.guest = Guest(Path(settings.switch), self._warn)
            self.name = f"the host's adapter, {self.name}"
        else:
            assert options.ports is not None, "the configuration was checked"
            arbiter = self.switch = Switch(
                options.ports, options.sockets, self._decided, self._gone, self._warn
            )
            self.name = f"adapter {options.ports.capabilities.name}, {self.name}"
        self.steering = PairSteering(self.workers, arbiter, options.wished)

    def _begin(self, loop: asyncio.AbstractEventLoop, shares: Sequence[Share]) -> None:
        self.steering.open(shares[0])
        arbiter = self.switch or self.guest
        assert arbiter is not None
        arbiter.open(loop)
        self._stack.callback(arbiter.close)

    def dropped(self) -> Mapping[str, int]:
        """The sockets' too, which the adapter reads."""
        counts = dict(super().dropped())
        status = self.switch.status if self.switch is not None else None
        for reason, number in (status.dropped if status is not None else {}).items():
            counts[f"adapter: {reason}"] = number
        return counts

    def carrier(self, pairs: Collection[SaPair]) -> str:
        """The adapter when it has both directions of all of them."""
        hard = [self.hard(pair) for pair in pairs]
        if hard and all(len(one) == len(Direction) for one in hard):
            return f"nic:{self.profile}"
        return f"part nic:{self.profile}" if any(hard) else self.short

    @property
    def profile(self) -> str:
        """The adapter's, as far as it is known here."""
        return self.switch.ports.capabilities.name if self.switch is not None else "host"

    def hard(self, pair: SaPair) -> Collection[Direction]:
        """Directions of a pair that are in the adapter."""
        token = self.steering.token(pair)
        if isinstance(token, Member):
            return token.hard
        return self.guest.hard(token) if self.guest is not None else ()

    # What administrators do ------------------------------------------------------------------------------

    def change_port(self, name: str, wanted: Mapping[str, Any]) -> None:
        """Change a port, or make it when it is new; raises `PortError`, `Unavailable` or `OSError`."""
        switch = self._own()
        if any(port.name == name for port in switch.ports):
            switch.ports.change(name, **wanted)
        else:
            switch.ports.attach(name, **wanted)
        self._follow(switch)

    def remove_port(self, name: str) -> None:
        """Take a port off the switch; raises `PortError`, `Unavailable` or `OSError`."""
        switch = self._own()
        switch.ports.detach(name)
        self._follow(switch)

    def enable(self, enabled: bool) -> None:
        """Offload, or not, on all ports; raises `Unavailable` or `OSError`."""
        switch = self._own()
        switch.ports.enabled = enabled
        self._follow(switch)

    def fault(self, name: str, value: str) -> None:
        """Have the simulated adapter fail; raises `ValueError` or `Unavailable`."""
        adapter = self._own().adapter
        if not self.settings.faults:
            raise Unavailable("faults are for trials: set dataplane.faults = true and start again")
        if name == "link":
            adapter.command(SetLink(value in ("up", "on")))
        elif name == "reset":
            adapter.command(Reset())
        else:
            self._faults.set(name, value)
            adapter.command(Fault(name, value))

    def _own(self) -> Switch:
        if self.switch is None:
            raise Unavailable("the switch is the host's: change ports there")
        return self.switch

    def _follow(self, switch: Switch) -> None:
        switch.follow()
        self._save(switch.ports)

    # What happens ----------------------------------------------------------------------------------------

    def _decided(self, member: Member, decision: Decision, other: Member | None) -> None:
        score = decision.other_score
        self.tell(
            SaPlaced(
                outcome=decision.outcome.value,
                spi=f"{member.inbound.spi:08x}",
                peer=member.name,
                rule=member.rule,
                port=decision.port,
                directions=tuple(one.value for one in decision.directions),
                reason=decision.reason.value if decision.reason else "",
                score=round(decision.score),
                instead_of=f"{other.inbound.spi:08x}" if other is not None else "",
                other_score=round(score) if score is not None else None,
            )
        )

    def _gone(self, reason: str) -> None:
        self.tell(AdapterGone(reason=reason))

    def _warn(self, text: str) -> None:
        self.tell(Warned(about="offload", warning=text))


PLANES: Final[Mapping[str, type[Plane]]] = {"software": HostPlane, "memory": MemoryPlane}


def make_plane(
    settings: DataplaneSettings,
    transport: Transport,
    guarded: Guarded,
    tell: Callable[[Event], None],
    options: AdapterOptions,
) -> Plane:
    """The plane that the settings ask for."""
    if settings.backend == "nic":
        return AdapterPlane(settings, transport, guarded, tell, options)
    return PLANES[settings.backend](settings, transport, guarded, tell)
