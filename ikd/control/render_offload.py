"""The answers of `ikctl offload` as text for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from ikd.control.protocol import Json
from ikd.control.render import safe, size, span, table
from ikd.events import count


def offload(out: Console, answer: Json) -> None:
    """Adapter, ports, SAs."""
    if "guest" in answer:
        _guest(out, answer["guest"])
        return
    adapter = answer["adapter"]
    parts = [
        f"adapter {adapter['profile']}, {adapter['mode']} mode",
        _state(adapter),
        ", ".join(f"{one['used']} of {one['slots']} slots {_POOLS[one['of']]}" for one in adapter["pools"]),
        f"{adapter['addresses_used']} of {adapter['addresses']} addresses",
        count(answer["sas"], "SA pair"),
    ]
    out.print(safe(" · ".join(parts)))
    out.print()
    ports(out, answer["ports"])
    for title, key in (("in the adapter", "offloaded"), ("in software, the busiest first", "software")):
        if answer[key]:
            out.print()
            out.print(f"[bold]{title}[/]")
            _sas(out, answer[key])
    reasons = {one["reason"]: one["text"] for row in answer["software"] for one in row["why"].values()}
    if reasons:
        out.print()
        for reason, text in reasons.items():
            out.print(f"[bold]{safe(reason)}[/]  {safe(text)}")


def ports(out: Console, rows: Iterable[Json]) -> None:
    """Ports with limits and use."""
    heads = ("PORT", "STATE", "IN USE", "MAX SA", "RESERVE", "WEIGHT", "OFFLOADED", "SOFTWARE", "REFUSED")
    table(out, heads, map(_port, rows))


_POOLS = {"both": "for both directions", "inbound": "inbound", "outbound": "outbound"}


def _state(adapter: Json) -> str:
    if not adapter["running"]:
        return "not running"
    if not adapter["enabled"]:
        return "off"
    return f"link {adapter['link']}"


def _port(one: Json) -> tuple[str, ...]:
    marks = [word for word, on in (("untrusted", not one["trusted"]), ("exclusive", one["exclusive"])) if on]
    state = ", ".join(["attached" if one["attached"] else "nobody there", *marks])
    refused = ", ".join(f"{reason} {number}" for reason, number in one["refused"].items())
    return (
        one["name"],
        state,
        str(one["used"]),
        str(one["limit"]) if one["limit"] else "0 (off)",
        str(one["reserve"]),
        str(one["weight"]),
        size(one["octets_offloaded"]),
        size(one["octets_software"]),
        refused or "-",
    )


def _sas(out: Console, rows: Iterable[Json]) -> None:
    heads = ("SPI IN", "SPI OUT", "PEER", "RULE", "PORT", "PER SECOND", "OFFLOADED", "SINCE", "IN", "OUT")
    table(out, heads, map(_sa, rows))


def _sa(one: Json) -> tuple[str, ...]:
    where = [
        one["why"][way]["reason"]
        if way in one["why"]
        else "adapter"
        if way in one["in_adapter"]
        else "moving"
        for way in ("inbound", "outbound")
    ]
    if one["lease"] is not None:  # of outbound numbers, in packet mode
        where[1] += f", {one['lease']['next']} of {one['lease']['end'] - 1}"
    part = f"{100 * one['octets_offloaded'] / one['octets']:.0f} %" if one["octets"] else "-"
    return (
        one["spi_in"],
        one["spi_out"],
        one["peer"],
        one["rule"],
        one["port"],
        f"{size(one['octets_per_second'])}",
        part,
        span(one["since"]),
        *where,
    )


def _guest(out: Console, guest: Json) -> None:
    if guest["connected"]:
        told = (
            f"port {guest['port']} of the host's adapter, {count(guest['pairs_offloaded'], 'SA pair')} in it"
        )
    else:
        told = f"the host's switch does not answer at {guest['switch']}: everything is in software"
    out.print(safe(told))
