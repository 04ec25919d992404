"""The packet filter: ordered flows as one nftables table that steers, and drops what policy forbids.

What each chain does (RFC 4301 section 5: the SPD is asked for every packet, in order, on its way out and in):

    arriving   before any NAT: drops `block` flows and what `require` flows get in the clear
    decrypted  the same for what comes out of the device, where only `block` flows drop
    departing  local packets, after NAT of their destination: marks what secure flows cover, so that routing
    passing    leads it into the TUN device; the same for packets this host forwards
    led        marks local packets that routing had led there already, without asking it again
    leaving    after any NAT: drops what has to be protected and goes elsewhere than to the device
    receiving  drops ESP in UDP, and IKE on its port, for this host off interfaces that nobody listens on

`departing` sees packets with their inner addresses, `leaving` with those on the wire; what either one has to
protect does not pass. The table refers to the device by name, so it goes on working when the device is gone.

Later fragments show no ports. Where the kernel reassembles before us (it does as soon as anything on the
host uses connection tracking) there are none; else those that could belong to a dropping flow with ports are
dropped. No state is kept, loopback is never touched, and marks of packets that are not steered stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from zlib import crc32

from sadb.address import IKE_PORT, NATT_PORT
from sadb.sa import Action, Flow, Level
from sadb.selector import ANY_PORT, ICMP, ICMPV6, OPAQUE, PORTED, TrafficSelector

BLOCKED: Final = "blocked"  # a block rule, in either direction
CLEAR_IN: Final = "clear_in"  # came in the clear, protection is required
CLEAR_OUT: Final = "clear_out"  # was about to leave in the clear, protection is required
FRAGMENTS: Final = "fragments"  # a later fragment without ports that might belong to one of these
INTERFACE: Final = "interface"  # ESP in UDP on an interface that is not listened on
REASONS: Final = (BLOCKED, CLEAR_IN, CLEAR_OUT, FRAGMENTS, INTERFACE)

AH: Final = 51
OWN_BITS: Final = 0xFFFF  # the part of a mark that says it is one of ours
WHOLE_MARK: Final = 0xFFFFFFFF
STEERED_BITS: Final = 0xFFF1FFFF  # the part that says it is led into the device
OURS_BITS: Final = 0xFFF0FFFF  # the part that all marks of a device have in common

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Marks:
    """Packet marks. `own`: the daemon's packets; `must` and `wish`: steered into the device; `clear`: not
    steered; `opened`: came out of it. The upper bits are a number of the device, so that two daemons do not
    take each other's."""

    own: int
    number: int

    @classmethod
    def of(cls, device: str, own: int) -> Marks:
        """The marks of a device; raises `ValueError` when `own` leaves no room for the others."""
        if not 0 < own <= OWN_BITS:
            raise ValueError(f"mark {own:#x} is not within 16 bits")
        return cls(own, crc32(device.encode()) & 0xFFF)

    @property
    def wish(self) -> int:
        """Covered by a secure flow that may also go in the clear."""
        return self.own | self.number << 20 | 0x10000

    @property
    def must(self) -> int:
        """Covered by a secure flow, protected or not at all."""
        return self.wish | 0x20000

    @property
    def clear(self) -> int:
        """Led to the device by its destination and not to be protected after all."""
        return self.own | self.number << 20 | 0x40000

    @property
    def opened(self) -> int:
        """Came out of the device, decrypted."""
        return self.own | self.number << 20 | 0x80000


def table_name(device: str) -> str:
    """The name of the table that belongs to a device."""
    return f"ikd_{device}"


def ruleset(
    flows: Iterable[Flow],
    device: str,
    mtu: int,
    marks: Marks,
    *,
    stay_closed: bool = True,
    interfaces: Sequence[str] = (),
) -> str:
    """The table's definition. With `stay_closed` false the kernel removes it when its maker is gone. ESP in
    UDP is taken from `interfaces` only, which need not exist yet; none means all."""
    ordered = sorted(flows, key=lambda flow: flow.order)
    arriving = _classified(ordered, _INBOUND, lambda flow: _fate(flow, flow.inbound, "unprotected_in"))
    decrypted = _classified(ordered, _INBOUND, lambda flow: _fate(flow, Level.NONE, ""), fragments=False)
    leaving = _classified(ordered, _OUTBOUND, lambda flow: _fate(flow, flow.outbound, "unprotected_out"))
    steering = _classified(ordered, _OUTBOUND, _steered, fragments=False)
    words = {
        "table": table_name(device),
        "flags": "" if stay_closed else "flags owner\n",
        "device": f'"{device}"',
        "counters": "\n".join(f"counter {reason} {{ }}" for reason in REASONS),
        "own": f"{marks.own:#x}",
        "must": f"{marks.must:#x}",
        "wish": f"{marks.wish:#x}",
        "clear": f"{marks.clear:#x}",
        "opened": f"{marks.opened:#x}",
        "mss4": max(mtu - 40, 536),
        "mss6": max(mtu - 60, 1220),
        "ports": f"{{ {IKE_PORT}, {NATT_PORT} }}",
        "ours": f"{OURS_BITS:#x}",
        "known": f"{marks.wish & OURS_BITS:#x}",
        "arriving": "\n".join(arriving),
        "decrypted": "\n".join(decrypted),
        "leaving": "\n".join(leaving),
        "steering": "\n".join(steering),
        "receiving": _elsewhere(interfaces),
    }
    return _TABLE.format_map(words)


# ICMP messages about the path MTU of ESP, AH and UDP 4500 always pass: they hold the header of the packet
# they are about, `@th,136,8` and `@th,112,8` are its protocol, `@th,224,16` and `@th,384,16` its source port.
_TABLE: Final = """\
table inet {table} {{
{flags}{counters}

chain refused {{
counter name blocked drop
}}
chain unprotected_in {{
counter name clear_in drop
}}
chain unprotected_out {{
counter name clear_out drop
}}
chain fragments_in {{
counter name fragments drop
}}
chain fragments_out {{
counter name fragments drop
}}
chain must {{
oifname {device} accept
meta mark set {must} accept
}}
chain wish {{
oifname {device} accept
meta mark set {wish} accept
}}
chain clear {{
oifname {device} meta mark set {clear}
accept
}}

chain clamp {{
meta nfproto ipv4 tcp flags & (syn | rst) == syn tcp option maxseg size set {mss4}
meta nfproto ipv6 tcp flags & (syn | rst) == syn tcp option maxseg size set {mss6}
}}

chain decrypted {{
meta mark set {opened}
meta l4proto 6 jump clamp
{decrypted}
}}
chain arriving {{
type filter hook prerouting priority -300; policy accept;
iifname lo accept
iifname {device} goto decrypted
meta l4proto 50 accept
meta nfproto ipv4 meta l4proto 51 accept
ip6 nexthdr 51 accept
udp dport {ports} accept
icmp type destination-unreachable icmp code frag-needed @th,136,8 {{ 50, 51 }} accept
icmp type destination-unreachable icmp code frag-needed @th,136,8 17 @th,224,16 4500 accept
icmpv6 type packet-too-big @th,112,8 {{ 50, 51 }} accept
icmpv6 type packet-too-big @th,112,8 17 @th,384,16 4500 accept
{arriving}
}}

chain steering {{
{steering}
goto clear
}}
chain departing {{
type route hook output priority -99; policy accept;
oifname lo accept
meta mark {own} accept
meta l4proto 50 accept
udp sport {ports} accept
goto steering
}}
chain led {{
type filter hook output priority -98; policy accept;
oifname {device} meta mark & {ours} != {known} meta mark set {must}
}}
chain passing {{
type filter hook prerouting priority -99; policy accept;
iifname lo accept
fib daddr type {{ local, broadcast, multicast }} accept
goto steering
}}

chain leaving {{
type filter hook postrouting priority 300; policy accept;
oifname lo accept
oifname {device} meta l4proto 6 jump clamp
oifname {device} accept
meta mark {own} accept
meta l4proto 50 accept
meta nfproto ipv4 meta l4proto 51 accept
ip6 nexthdr 51 accept
udp sport {ports} accept
meta mark {must} goto unprotected_out
{leaving}
}}
chain receiving {{
type filter hook input priority -300; policy accept;
iifname lo accept
{receiving}
}}
}}
"""

# From flows to rules ----------------------------------------------------------------------------------------

_ACCEPT: Final = "accept"
_CLEAR: Final = "goto clear"
_REFUSED: Final = "goto refused"
_HARMLESS: Final = frozenset((_ACCEPT, _CLEAR))  # also what happens to packets of no flow
_INBOUND, _OUTBOUND = ("daddr", "saddr"), ("saddr", "daddr")  # which address is the local one, and the remote
_PORTS: Final = {"saddr": "sport", "daddr": "dport"}
_WHOLE: Final = {4: (0, (1 << 32) - 1), 6: (0, (1 << 128) - 1)}
_FAMILY: Final = {4: ("ip", "meta nfproto ipv4"), 6: ("ip6", "meta nfproto ipv6")}
_LATER: Final = {4: "ip frag-off & 0x1fff != 0", 6: "frag frag-off != 0"}
_FOREIGN_ICMP: Final = {4: ICMPV6, 6: ICMP}


def _elsewhere(interfaces: Sequence[str]) -> str:
    """What drops ESP in UDP that came in elsewhere, if that matters."""
    if not interfaces:
        return ""
    names = ", ".join(f'"{name}"' for name in sorted(set(interfaces)))
    return f"udp dport {NATT_PORT} iifname != {{ {names} }} counter name {INTERFACE} drop"


def _fate(flow: Flow, level: Level, unprotected: str) -> str:
    """Where a clear packet of a flow goes."""
    if flow.action is Action.BLOCK:
        return _REFUSED
    if flow.action is Action.SECURE and level is Level.REQUIRE:
        return f"goto {unprotected}"
    return _ACCEPT


def _steered(flow: Flow) -> str:
    """Where an outgoing packet of a flow goes before it is routed for good."""
    if flow.action is Action.BLOCK:
        return _REFUSED
    if flow.action is Action.SECURE:
        return "goto must" if flow.outbound is Level.REQUIRE else "goto wish"
    return _CLEAR


def _classified(
    flows: Sequence[Flow], ends: tuple[str, str], fate: Callable[[Flow], str], *, fragments: bool = True
) -> list[str]:
    """One rule or a few for each flow, in order, so that the first match decides. Those at the end that only
    let pass are left out: so does the end of the chain."""
    kept = [(flow, fate(flow)) for flow in flows]
    while kept and kept[-1][1] in _HARMLESS:
        kept.pop()
    lines: list[str] = []
    for flow, verdict in kept:
        for match, later in _matches(flow, ends):
            lines.append(f"{match} {verdict}")
            if later and fragments and verdict not in _HARMLESS:
                lines.append(f"{later} goto fragments_{'in' if ends is _INBOUND else 'out'}")
    return list(dict.fromkeys(lines))


def _matches(flow: Flow, ends: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Expressions that together match the flow, each with one for its later fragments if ports count."""
    for version, local_protocol, local, local_ports in _grouped(flow.selector.local):
        for other, remote_protocol, remote, remote_ports in _grouped(flow.selector.remote):
            if version != other or (local_protocol and remote_protocol and local_protocol != remote_protocol):
                continue
            addresses = " ".join(
                filter(None, (_addresses(version, ends[0], local), _addresses(version, ends[1], remote)))
            )
            where = addresses or _FAMILY[version][1]
            protocol = local_protocol or remote_protocol
            if local_ports == remote_ports == (ANY_PORT,):
                yield f"{where} {_protocol(version, protocol)}".rstrip(), ""
                continue
            for ported in (protocol,) if protocol else sorted(PORTED - {_FOREIGN_ICMP[version]}):
                base = f"{where} {_protocol(version, ported)}"
                ports = _port_match(version, ported, ends, local_ports, remote_ports)
                if ports is not None:
                    yield f"{base} {ports}", f"{base} {_LATER[version]}"


def _grouped(
    selectors: Iterable[TrafficSelector],
) -> list[tuple[int, int, tuple[Span, ...], tuple[Span, ...]]]:
    """Version, protocol, address spans and port spans of a side: selectors that differ in one thing only are
    put together."""
    by_ports: dict[tuple[int, int, Span], list[Span]] = {}
    for one in selectors:
        by_ports.setdefault((one.version, one.protocol, one.ports), []).append((int(one.low), int(one.high)))
    by_addresses: dict[tuple[int, int, tuple[Span, ...]], list[Span]] = {}
    for (version, protocol, ports), spans in by_ports.items():
        by_addresses.setdefault((version, protocol, _merged(spans)), []).append(ports)
    return [
        (version, protocol, spans, (ANY_PORT,) if ANY_PORT in ports else tuple(ports))
        for (version, protocol, spans), ports in by_addresses.items()
    ]


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same numbers without overlaps, which nftables refuses in a set."""
    merged: list[Span] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return tuple(merged)


def _set(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{{ {', '.join(items)} }}"


def _addresses(version: int, end: str, spans: Sequence[Span]) -> str:
    """A condition on one address, nothing for any."""
    if tuple(spans) == (_WHOLE[version],):
        return ""
    return f"{_FAMILY[version][0]} {end} {_set([_span(version, *span) for span in spans])}"


def _span(version: int, low: int, high: int) -> str:
    """An address, a prefix, or a range."""
    kind = IPv4Address if version == 4 else IPv6Address
    return str(TrafficSelector(kind(low), kind(high)))


def _protocol(version: int, protocol: int) -> str:
    if not protocol:
        return ""
    if version == 6 and protocol == AH:  # nftables looks through AH to what stands behind it
        return "ip6 nexthdr 51"
    return f"meta l4proto {protocol}"


def _port_match(
    version: int, protocol: int, ends: tuple[str, str], local: tuple[Span, ...], remote: tuple[Span, ...]
) -> str | None:
    """A condition on the ports, None when no packet fits."""
    if OPAQUE in (*local, *remote):  # ports that cannot be seen (RFC 7296 section 3.13.1)
        return _LATER[version] if protocol in PORTED else ""
    if protocol not in PORTED:
        return None
    if protocol in (ICMP, ICMPV6):  # type and code stand in both ports
        both = [(max(a, c), min(b, d)) for a, b in local for c, d in remote]
        spans = _merged(span for span in both if span[0] <= span[1])
        return f"@th,0,16 {_set([_number(*span) for span in spans])}" if spans else None
    conditions = [
        f"th {_PORTS[end]} {_set([_number(*span) for span in _merged(spans)])}"
        for end, spans in zip(ends, (local, remote), strict=True)
        if spans != (ANY_PORT,)
    ]
    return " ".join(conditions)


def _number(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"
