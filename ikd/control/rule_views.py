"""What the requests answer about the policy, as plain JSON: its rules with every default, and why one
applies.

Used by the daemon and, without one, by `control.offline`. Rules are told in the words of the policy file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches

from ikd.control.protocol import ControlError, Json, plain
from policy.engine import Policy
from policy.rules import AccessList, AuthMethod, AuthSet, CryptoSet, Rule
from policy.values import ports, protocol
from sadb.address import Address, parse
from sadb.selector import TrafficSelector


def policy(one: Policy, notices: Iterable[str] = ()) -> Json:
    """Every rule with every default, in the order of matching."""
    return {"rules": [rule(each) for each in one.rules], "warnings": [*one.warnings, *notices]}


def rule(one: Rule) -> Json:
    """One rule, in the words of the file."""
    answer: dict[str, Json] = {
        "name": one.name,
        "source": one.source,
        "enabled": one.enabled,
        "status": one.status,
        "group": one.group,
        "description": one.description,
        "action": one.action.value,
        "local": _addresses(one.selector.local),
        "remote": _addresses(one.selector.remote),
    }
    answer |= _service(one)
    if not one.secures:
        return answer
    return answer | {
        "inbound": one.inbound.value,
        "outbound": one.outbound.value,
        "mode": one.mode.value,
        "tunnel": _tunnel(one),
        "encrypt": one.encrypt,
        "peer": one.peer or "any identity that is proven",
        "keying": list(one.keying),
        "auth": _auth(one.auth),
        "crypto": _crypto(one.crypto),
        "allow": _access(one.allow),
        "deny": _access(one.deny),
        "offload": one.offload,
    }


_EVERYTHING = ("0.0.0.0/0", "::/0")


def _addresses(selectors: Iterable[TrafficSelector]) -> list[str]:
    bare = dict.fromkeys(str(TrafficSelector(one.low, one.high)) for one in selectors)
    return ["any"] if set(_EVERYTHING) <= set(bare) else list(bare)


def _service(one: Rule) -> dict[str, Json]:
    """Protocol and ports, which stand inside the selectors."""

    def texts(selectors: Iterable[TrafficSelector]) -> list[str]:
        found = (str(each).partition("[")[2].rstrip("]").partition("/") for each in selectors)
        return list(dict.fromkeys(port for _, _, port in found if port))

    first = next(iter(one.selector.remote), None)
    number = first.protocol if first else 0
    name = str(TrafficSelector(first.low, first.high, number)).partition("[")[2].rstrip("]") if first else ""
    return {
        "protocol": name or "any",
        "local_port": texts(one.selector.local),
        "remote_port": texts(one.selector.remote),
    }


def _tunnel(one: Rule) -> Json:
    if one.tunnel is None:
        return None
    return {
        "local": str(one.tunnel.local or "any"),
        "remote": one.tunnel.remote_host or str(one.tunnel.remote or "any"),
        "address": str(one.tunnel.remote) if one.tunnel.remote_host and one.tunnel.remote else "",
    }


def _auth(one: AuthSet | None) -> Json:
    if one is None:
        return None
    return {
        "name": one.name,
        "first": [_method(each) for each in one.first],
        "second": [_method(each) for each in one.second],
    }


def _method(one: AuthMethod) -> Json:
    wants = plain(one)
    if not one.method.endswith("certificate"):
        del wants["minimum_rsa_bits"]
    wants["one_way"] = not wants.pop("mutual")
    told = {key: value for key, value in wants.items() if value not in (None, "", [], False)}
    return told if len(told) > 1 else one.method


def _crypto(one: CryptoSet | None) -> Json:
    if one is None:
        return None
    return {
        "name": one.name,
        "main": [str(suite) for suite in one.main],
        "quick": [str(suite) for suite in one.quick],
        "lifetime": plain(one.lifetime),
    }


def _access(one: AccessList | None) -> Json:
    return None if one is None else {"machines": list(one.machines), "users": list(one.users)}


# Explanations --------------------------------------------------------------------------------------------


def explain(one: Policy, source: str, destination: str, service: str, here: Collection[Address] = ()) -> Json:
    """Which rule decides a packet; raises `ControlError` for what is no address or service."""
    ends = [_address(source), _address(destination)]
    if ends[0].version != ends[1].version:
        raise ControlError("usage", f"{source} and {destination} are of different IP versions")
    number, port = _service_of(service)
    found = one.explain(ends[0], ends[1], number, port, here)
    text = str(found)
    return found.document() | {"lines": text.splitlines()}


def _address(text: str) -> Address:
    try:
        return parse(text)
    except ValueError:
        raise ControlError(
            "usage", f"{text!r} is not an address", "for example: ikctl explain 10.0.0.5 10.0.0.9 tcp/443"
        ) from None


def _service_of(text: str) -> tuple[int | None, int | None]:
    """`tcp/443`, `tcp` or nothing."""
    if not text:
        return None, None
    name, _, port = text.partition("/")
    try:
        number = protocol(int(name) if name.isdigit() else name)
        if port in ("", "any"):
            return number, None
        low, high = ports(int(port) if port.isdigit() else port)
    except ValueError as error:
        raise ControlError("usage", str(error), "a service is written tcp/443, udp/dns or icmp") from None
    if low != high:
        raise ControlError("usage", f"{port} is more than one port", "ask for one port")
    return number, low


def no_such_rule(name: str, known: Iterable[str]) -> ControlError:
    """There is no rule of that name; with the nearest one."""
    near = get_close_matches(name, [*known], n=1)
    remedy = f'did you mean "{near[0]}"?' if near else "ikctl policy show lists the rules"
    return ControlError("no-such-rule", f"there is no rule {name!r}", remedy)
