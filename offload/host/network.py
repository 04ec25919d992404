"""Shell. The host's network around the data plane: what leads packets into the TUN device, and the filter.

`Host` keeps the packet filter of `offload.host.filter` and the routes of `offload.host.routes` equal to a set
of flows. The filter is replaced in one transaction; routes are made before it and removed after it, so at no
moment is something forbidden let through or something allowed without a way. An orderly stop removes
everything. After a crash rules stay, and the table too if it shall stay closed, until the next start takes
over; routes go with the device, when the last worker has ended. A restart leaves everything as it is. It
reads no packets, and changes nothing that belongs to other devices."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any, Final, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from offload.host.filter import REASONS, Marks, ruleset, table_name
from offload.host.nft import Nft
from offload.host.routes import PLACES, Numbers, Plan, Route, Rule, plan
from sadb.address import Address
from sadb.backend import Unavailable
from sadb.sa import Flow

T = TypeVar("T")

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
# what the kernel says about IPv6 routes when it has no IPv6, or when that is switched off for the device
_WITHOUT_IPV6: Final = frozenset((errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.ENODEV))
_NOT_THERE: Final = frozenset((errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EAFNOSUPPORT, errno.EOPNOTSUPP))
_GOTO, _NOP = 2, 3  # actions of routing rules (linux/fib_rules.h)
_THROW: Final = 9  # types of routes (linux/rtnetlink.h)
_OURS: Final = (1, _THROW)


class Host:
    """Routes, rules and packet filter of one TUN device, which must exist already."""

    def __init__(
        self,
        device: str,
        mtu: int,
        mark: int,
        *,
        stay_closed: bool = True,
        interfaces: Sequence[str] = (),
        table: int | None = None,
        priority: int | None = None,
    ) -> None:
        self.device, self.mtu, self.stay_closed = device, mtu, stay_closed
        self.interfaces = interfaces
        self.marks = Marks.of(device, mark)
        self.numbers = Numbers.of(self.marks.number, table, priority)
        self._table = table_name(device)
        self._plan = Plan()
        self._flows: tuple[Flow, ...] = ()
        self._counted: Counter[str] = Counter()
        self._begun = False
        self._nft = Nft()

    def apply(self, flows: Sequence[Flow]) -> None:
        """Make the host follow these flows: at the start and at every reload. Raises `Unavailable`, and then
        the former state is in force."""
        self._do(lambda routes: self._apply(routes, flows))
        self._flows = tuple(flows)

    def refresh(self) -> None:
        """Make the routes anew: addresses or routes of this host have changed, and with an address the kernel
        removes the routes that name it. Raises `Unavailable`."""
        if self._begun:
            self._do(self._refresh)

    def _do(self, work: Callable[[IPRoute], None]) -> None:
        try:
            _with_routes(work)
        except (NetlinkError, OSError) as error:
            code = getattr(error, "code", None) or error.errno
            remedy = ": CAP_NET_ADMIN is missing" if code in (errno.EPERM, errno.EACCES) else ""
            raise Unavailable(f"routes for {self.device} cannot be made: {error}{remedy}") from None

    def forget_routes(self) -> None:
        """The device was deleted, and routes went with it: the next `apply` makes them for the one there is
        now."""
        self._plan = replace(self._plan, routes={})

    def close(self) -> None:
        """Remove everything `apply` made; safe to repeat. Without a successful `apply` a table that a crash
        left behind stays."""
        if self._begun:
            with suppress(NetlinkError, OSError):
                _with_routes(self._sweep)
            with suppress(Unavailable):
                self._nft.run(f"delete table inet {self._table}")
        self._begun = False
        self._nft.close()

    def leave(self) -> None:
        """Leave everything to the next daemon; the packet filter, too, if it would go with this one."""
        if self._begun and not self.stay_closed:
            self.stay_closed = True
            with suppress(Unavailable):
                self._replace_filter(self._flows)
        self._begun = False
        self._nft.close()

    def drops(self) -> dict[str, int]:
        """Packets the filter dropped since the start, by reason."""
        now: dict[str, int] = {}
        if self._begun:
            with suppress(Unavailable):  # somebody else removed the table
                now = self._nft.counters(self._table)
        return {reason: self._counted[reason] + now.get(reason, 0) for reason in REASONS}

    def addresses(self) -> set[Address]:
        """This host's addresses, loopback among them."""
        try:
            return set(_with_routes(_addresses))
        except (NetlinkError, OSError) as error:
            raise Unavailable(f"this host's addresses cannot be read: {error}") from None

    def _apply(self, routes: IPRoute, flows: Sequence[Flow]) -> None:
        former, wanted = self._plan, self._planned(routes, flows)
        try:
            wanted = self._add(routes, former, wanted)
            self._replace_filter(flows)
        except (NetlinkError, OSError, Unavailable):
            with suppress(NetlinkError, OSError):
                self._add(routes, wanted, former)
                self._remove(routes, wanted, former)
            raise
        begun, self._begun = self._begun, True
        self._plan, self._flows = wanted, tuple(flows)
        if begun:
            self._remove(routes, former, wanted)
        else:
            self._sweep(routes, wanted)

    def _refresh(self, routes: IPRoute) -> None:
        wanted = self._planned(routes, self._flows)
        former, self._plan = self._plan, self._add(routes, replace(self._plan, routes={}), wanted)
        self._remove(routes, former, wanted)

    def _planned(self, routes: IPRoute, flows: Sequence[Flow]) -> Plan:
        usable = [one for one in _addresses(routes) if not one.is_loopback and not one.is_link_local]
        return plan(flows, self.numbers, self.marks, usable, lambda to: self._source(routes, to))

    def _replace_filter(self, flows: Sequence[Flow]) -> None:
        """One transaction: the old table, also one of a former run, goes when the new one comes."""
        text = ruleset(
            flows,
            self.device,
            self.mtu,
            self.marks,
            stay_closed=self.stay_closed,
            interfaces=self.interfaces,
        )
        counted: dict[str, int] = {}
        if self._table in self._nft.tables():
            text = f"delete table inet {self._table}\n{text}"
            counted = self._nft.counters(self._table) if self._begun else {}
        self._nft.run(text)
        self._counted.update(counted)

    def _add(self, routes: IPRoute, former: Plan, wanted: Plan) -> Plan:
        """Make what is wanted and not there; what of the plan this host can have."""
        index = socket.if_nametoindex(self.device)
        for version in (4, 6):
            try:
                for key, route in wanted.routes.items():
                    if route.network.version == version and former.routes.get(key) != route:
                        routes.route("replace", **_route(route, index))
                for rule in wanted.rules:
                    if rule.version == version and rule not in former.rules:
                        _tolerating(errno.EEXIST, routes.rule, "add", **_rule(rule))
            except NetlinkError as error:
                if version == 4 or error.code not in _WITHOUT_IPV6:
                    raise
                four = {key: route for key, route in wanted.routes.items() if route.network.version == 4}
                return replace(wanted, routes=four, rules=tuple(r for r in wanted.rules if r.version == 4))
        return wanted

    def _remove(self, routes: IPRoute, former: Plan, wanted: Plan) -> None:
        """Remove what is there and not wanted."""
        index = socket.if_nametoindex(self.device)
        for rule in former.rules:
            if rule not in wanted.rules:
                _tolerating(_NOT_THERE, routes.rule, "del", **_rule(rule))
        for key, route in former.routes.items():
            if key not in wanted.routes:
                _tolerating(_NOT_THERE, routes.route, "del", **_route(route, index))

    def _sweep(self, routes: IPRoute, wanted: Plan | None = None) -> None:
        """Remove every rule and route of ours that is not wanted, whoever made it: a former run, or we."""
        tables = (self.numbers.steered, self.numbers.led)
        kept = Plan() if wanted is None else wanted
        rules = [_rule(rule) for rule in kept.rules]
        for family in _FAMILIES.values():
            try:
                found = list(routes.get_rules(family=family))
            except NetlinkError:  # a host without IPv6
                continue
            for one in found:
                words = _found(one, family)
                place = words["priority"] - self.numbers.priority in range(PLACES)
                ours = words.get("table") in tables or (place and "action" in words)
                if ours and words not in rules:
                    routes.rule("del", **words)
            for table in tables:
                for one in _routes(routes, family, table):
                    words = _route_found(one, family, table)
                    if (table, ip_network(words["dst"])) not in kept.routes:
                        _tolerating(_NOT_THERE, routes.route, "del", **words)

    def _source(self, routes: IPRoute, destination: Address) -> Address | None:
        """From which address the host would send there if we were not here."""
        try:
            answers = routes.route("get", dst=str(destination), mark=self.marks.own)
        except NetlinkError:
            return None
        found = next((one.get("RTA_PREFSRC") for one in answers), None)
        source = ip_address(found) if found else None
        return None if source is None or source.is_loopback else source


def _with_routes(work: Callable[[IPRoute], T]) -> T:
    """Work with pyroute2, in a thread: it runs an event loop of its own, which the daemon's does not allow.
    The thread is in our network namespace, and netlink answers at once."""

    def run() -> T:
        with IPRoute() as routes:
            return work(routes)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def _routes(routes: IPRoute, family: int, table: int) -> list[Any]:
    """The routes of a table."""
    try:
        return [one for one in routes.get_routes(family=family, table=table) if one["type"] in _OURS]
    except NetlinkError:  # nobody has made the table
        return []


def _addresses(routes: IPRoute) -> list[Address]:
    """This host's addresses in the order of its devices."""
    found = [one.get("IFA_LOCAL") or one.get("IFA_ADDRESS") for one in routes.get_addr()]
    return [ip_address(text) for text in found if text]


def _route(route: Route, index: int) -> dict[str, Any]:
    """A route in pyroute2's words."""
    words: dict[str, Any] = {
        "family": _FAMILIES[route.network.version],
        "dst": str(route.network),
        "table": route.table,
    }
    if route.throw:
        return words | {"type": "throw"}
    words["oif"] = index
    return words | ({"prefsrc": str(route.source)} if route.source else {})


def _rule(rule: Rule) -> dict[str, Any]:
    """A rule in pyroute2's words."""
    words: dict[str, Any] = {"family": _FAMILIES[rule.version], "priority": rule.priority}
    if rule.table is not None:
        words["table"] = rule.table
    elif rule.target is not None:
        words |= {"action": "goto", "goto": rule.target}
    else:
        words["action"] = "nop"
    if rule.mark is not None:
        words |= {"fwmark": rule.mark, "fwmask": rule.mask}
    if rule.source is not None:
        words |= {"src": str(rule.source.network_address), "src_len": rule.source.prefixlen}
    return words | ({"iifname": "lo"} if rule.local else {})


def _found(one: Any, family: int) -> dict[str, Any]:
    """A rule of the kernel's list, in the words of `_rule`."""
    words: dict[str, Any] = {"family": family, "priority": one.get("FRA_PRIORITY") or 0}
    if one["action"] == _NOP:
        words["action"] = "nop"
    elif one["action"] == _GOTO:
        words |= {"action": "goto", "goto": one.get("FRA_GOTO")}
    else:
        words["table"] = one.get("FRA_TABLE") or one["table"]
    if one.get("FRA_FWMASK"):
        words |= {"fwmark": one.get("FRA_FWMARK"), "fwmask": one.get("FRA_FWMASK")}
    if one["src_len"]:
        words |= {"src": str(ip_address(one.get("FRA_SRC"))), "src_len": one["src_len"]}
    return words | ({"iifname": one.get("FRA_IIFNAME")} if one.get("FRA_IIFNAME") else {})


def _route_found(one: Any, family: int, table: int) -> dict[str, Any]:
    """A route of the kernel's list, for removal."""
    anywhere = "0.0.0.0" if family == socket.AF_INET else "::"
    words = {"family": family, "dst": f"{one.get('RTA_DST') or anywhere}/{one['dst_len']}", "table": table}
    return words | ({"type": "throw"} if one["type"] == _THROW else {})


def _tolerating(codes: int | frozenset[int], call: Callable[..., object], *words: Any, **named: Any) -> None:
    """A netlink request whose aim may be reached already."""
    try:
        call(*words, **named)
    except NetlinkError as error:
        if error.code not in ((codes,) if isinstance(codes, int) else codes):
            raise
