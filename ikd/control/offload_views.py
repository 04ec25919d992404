"""Shell. What `ikctl offload` tells and does, as JSON: adapter, ports, and SAs that contend for slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ikd.control.protocol import ControlError, Json
from ikd.nic_plane import AdapterPlane
from offload.nic.capabilities import Direction
from offload.switch.ports import Port, PortError
from offload.switch.steering import Member
from offload.switch.switch import Switch
from sadb.backend import Unavailable

if TYPE_CHECKING:
    from ikd.daemon import Daemon

TOP = 20  # SAs that are told one by one, in the adapter and in software


def offload(daemon: Daemon) -> Json:
    """The whole view."""
    plane, now = _plane(daemon), daemon.loop.time()
    switch = plane.switch
    if switch is None:
        return {"guest": _guest(daemon, plane), "driver": dict(plane.steering.counters)}
    steering = switch.steering
    placed = sorted((one for one in steering if one.hard), key=lambda one: -one.claim.score(now))
    return {
        "adapter": _adapter(switch),
        "counters": dict(sorted(switch.status.counters.items())) if switch.status else {},
        "driver": dict(sorted(plane.steering.counters.items())),
        "placement": dict(sorted(steering.counters.items())),
        "ports": [_port(switch, port) for port in switch.ports],
        "sas": len(steering),
        "offloaded": [_member(one, plane, switch, now) for one in placed[:TOP]],
        "software": [_member(one, plane, switch, now) for one in steering.busiest(TOP, now)],
    }


def brief(daemon: Daemon, most: int) -> Json:
    """The adapter's state and the busiest SAs that are in software all the same; None without an adapter."""
    plane, now = daemon.plane, daemon.loop.time()
    if not isinstance(plane, AdapterPlane):
        return None
    if (switch := plane.switch) is None:
        return {"guest": _guest(daemon, plane)}
    busiest = switch.steering.busiest(most, now)
    return {"adapter": _adapter(switch), "software": [_member(one, plane, switch, now) for one in busiest]}


def set_port(daemon: Daemon, name: str, wanted: dict[str, Any]) -> Json:
    """Change a port, or make it."""
    plane = _plane(daemon)
    if not wanted:
        raise ControlError("usage", f"nothing to set on port {name!r}", "see its --help")
    _doing(lambda: plane.change_port(name, wanted))
    assert plane.switch is not None
    return _port(plane.switch, plane.switch.ports[name])


def remove_port(daemon: Daemon, name: str) -> Json:
    """Take a port off the switch."""
    plane = _plane(daemon)
    _doing(lambda: plane.remove_port(name))
    return {"text": f"port {name} is gone; SAs of who was behind it go on in software"}


def enable(daemon: Daemon, enabled: bool) -> Json:
    """Turn the offload on or off for all ports."""
    plane = _plane(daemon)
    _doing(lambda: plane.enable(enabled))
    told = "SAs are placed as slots allow" if enabled else "SAs leave it and go on in software"
    return {"enabled": enabled, "text": f"the adapter is {'on' if enabled else 'off'}: {told}"}


def fault(daemon: Daemon, name: str, value: str) -> Json:
    """Have the simulated adapter fail."""
    plane = _plane(daemon)
    _doing(lambda: plane.fault(name, value), "docs/offload.md has what each takes, and link and reset")
    return {"text": f"{name} is {value}"}


def _plane(daemon: Daemon) -> AdapterPlane:
    plane = daemon.plane
    if not isinstance(plane, AdapterPlane):
        raise ControlError(
            "no-adapter",
            "this daemon has no adapter",
            'set dataplane.backend = "nic", write offload.toml, and start again',
        )
    return plane


def _doing(work: Callable[[], None], remedy: str = "ikctl offload shows the ports") -> None:
    try:
        work()
    except (PortError, ValueError) as error:
        raise ControlError("usage", str(error), remedy) from None
    except Unavailable as error:
        raise ControlError("no-adapter", str(error)) from None
    except OSError as error:
        why = f"it is in force, and lost at the next start: offload.toml cannot be written: {error}"
        raise ControlError("configuration", why, "make room for it, and say it again") from None


def _guest(daemon: Daemon, plane: AdapterPlane) -> Json:
    assert plane.guest is not None
    return {
        "switch": str(plane.guest.path),
        "port": plane.guest.port,
        "connected": bool(plane.guest.port),
        "pairs_offloaded": sum(bool(plane.hard(pair)) for pair in daemon.database.pairs()),
    }


def _adapter(switch: Switch) -> Json:
    can, status = switch.ports.capabilities, switch.status
    return {
        "profile": can.name,
        "mode": "packet" if switch.ports.packet_mode else "crypto",
        "enabled": switch.ports.enabled,
        "running": switch.adapter.pid is not None,
        "pid": switch.adapter.pid,
        "link": "up" if status is not None and status.up else "down",
        "capacity": can.slots,
        "usage": sum(status.used.values()) if status is not None else 0,
        "pools": _pools(switch),
        "granted": switch.steering.placement.table.used,
        "addresses": can.rx_addresses,
        "addresses_used": status.addresses if status is not None else 0,
    }


def _pools(switch: Switch) -> Json:
    can, status = switch.ports.capabilities, switch.status
    names = ("both",) if can.shared else tuple(one.value for one in Direction)
    used = status.pools if status is not None else (0,) * len(names)
    return [
        {"of": name, "slots": slots, "used": some}
        for name, slots, some in zip(names, can.pools, used, strict=False)
    ]


def _port(switch: Switch, port: Port) -> Json:
    used = switch.status.used.get(port.name, 0) if switch.status is not None else 0
    return {
        "name": port.name,
        "attached": switch.attached(port.name),
        "limit": port.limit,
        "reserve": port.reserve,
        "weight": port.weight,
        "trusted": port.trusted,
        "exclusive": port.exclusive,
        "used": used,
        "granted": port.used,
        "octets_offloaded": port.octets_offloaded,
        "octets_software": port.octets_software,
        "refused": {reason.value: number for reason, number in sorted(port.refused.items(), key=_value)},
        "socket": str(switch.path(port.name)) if port.name != "host" else "",
    }


def _value(row: tuple[Any, int]) -> str:
    return str(row[0].value)


def _member(one: Member, plane: AdapterPlane, switch: Switch, now: float) -> Json:
    why, lease = {}, plane.steering.lease(one)
    for direction in Direction:
        reason = switch.steering.why(one, direction, now)
        if reason is not None:
            why[direction.value] = {"reason": reason.value, "text": reason.text}
    return {
        "spi_in": f"{one.inbound.spi:08x}",
        "spi_out": f"{one.outbound.spi:08x}",
        "peer": one.name,
        "rule": one.rule,
        "port": one.port.name,
        "in_adapter": sorted(direction.value for direction in one.hard),
        "why": why,
        "lease": {"next": lease[0], "end": lease[1]} if lease is not None else None,
        "octets_per_second": round(one.claim.rate.at(now)),
        "octets": one.octets,
        "octets_offloaded": one.octets_offloaded,
        "moves": one.moves,
        "since": round(now - one.since, 3),
    }
