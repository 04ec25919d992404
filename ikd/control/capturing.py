"""Shell. The daemon's part of `ikctl capture`: which peer is meant, and its keys in a file for as long as the
capture lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ikd.control import targets
from ikd.control.protocol import Caller, ControlError, Json
from ikd.keylog import KeyLog
from sadb.address import Address, parse

if TYPE_CHECKING:
    from ikd.daemon import Daemon

MOST: Final = 4  # captures at a time

WARNING: Final = "whoever can read both files can read the traffic: delete them when you are done"


def begin(daemon: Daemon, name: str, file: str, caller: Caller) -> Json:
    """Write the keys there are, and those that are made until the caller hangs up; raises `ControlError`."""
    peer = _peer(daemon, name)
    keylogs = daemon.driver.keylogs
    if len(keylogs) > MOST:
        raise ControlError("usage", f"{MOST} captures are under way", "end one of them")
    mine = KeyLog(lambda text: daemon.warn("exported keys", text), peer)
    mine.export(file)
    for association in daemon.endpoint.associations.values():
        if (keys := association.main.exported()) is not None:
            mine.ike(keys)
    for pair in daemon.database.pairs():
        mine.child(pair)
    keylogs.append(mine)
    daemon.warn("exported keys", f"keys of {peer} are written to {file}")

    def end() -> None:
        keylogs.remove(mine)
        mine.close()
        daemon.warn("exported keys", f"keys of {peer} are not written any more")

    caller.on_close(end)
    ports = [daemon.transport.port, daemon.transport.nat_port]
    return {"peer": str(peer), "ports": ports, "keys": file, "warning": WARNING}


def _peer(daemon: Daemon, name: str) -> Address:
    """The one address that is meant."""
    try:
        return parse(name)
    except ValueError:
        policy, associations = daemon.endpoint.policy, daemon.endpoint.associations
        found = targets.find(name, policy, associations, daemon.database.pairs())
    addresses = {one.path.peer.address for one in found.associations}
    addresses |= {pair.outbound.destination for pair in found.pairs}
    rule = policy.rule(name)
    if not addresses and rule is not None and rule.tunnel is not None and rule.tunnel.remote is not None:
        addresses = {rule.tunnel.remote}
    if len(addresses) == 1:
        return addresses.pop()
    many = f"{name} has {len(addresses)} peers" if addresses else f"{name} has no peer yet"
    raise ControlError("ambiguous", many, "name one by its address")
