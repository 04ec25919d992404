"""What `ikctl explain` says: the deciding rule, and why it and not the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from policy.ranking import effect, extent
from policy.rules import Rule
from sadb.sa import Action, Level
from sadb.selector import Fields, Selector, TrafficSelector


@dataclass(frozen=True, slots=True)
class Explanation:
    """The rule that decides (None: nothing is said, the packet passes in the clear), the next rule that would
    have, the criterion between them in short and in words, and rules that decide a part of what was asked."""

    fields: Fields
    outbound: bool
    rule: Rule | None
    beaten: Rule | None = None
    criterion: str = ""
    because: str = ""
    partly: tuple[Rule, ...] = ()

    @property
    def action(self) -> str:
        """secure, permit, block, or pass when no rule speaks of it."""
        if self.rule is None:
            return "pass"
        return {"secures": "secure", "permits": "permit", "blocks": "block"}[effect(self.rule)]

    def document(self) -> dict[str, object]:
        """The same as plain values, for the control socket."""
        return {
            "action": self.action,
            "rule": self.rule.name if self.rule else None,
            "direction": "outbound" if self.outbound else "inbound",
            "level": {"inbound": self.rule.inbound.value, "outbound": self.rule.outbound.value}
            if self.rule and self.rule.secures
            else None,
            "beats": self.beaten.name if self.beaten else None,
            "criterion": self.criterion or None,
            "because": self.because or None,
            "partly": [rule.name for rule in self.partly],
            "text": str(self),
        }

    def __str__(self) -> str:
        lines = [self._verdict()]
        if self.beaten:
            lines.append(f'  beats rule "{self.beaten.name}" ({extent(_far(self.beaten))}): {self.because}')
        for rule in self.partly:
            lines.append(f'  but rule "{rule.name}" {effect(rule)} {_service(rule)}')
        return "\n".join(lines)

    def _verdict(self) -> str:
        rule = self.rule
        if rule is None:
            return "passes in the clear: no rule speaks of it"
        if rule.source == "built-in":
            return f"passes in the clear: always {rule.name.replace('exempt: ', 'exempt (')})"
        if rule.action is Action.BLOCK:
            return f'blocked by rule "{rule.name}"'
        if not rule.secures:
            return f'permitted in the clear by rule "{rule.name}"'
        parts = [f"{rule.inbound.value} in, {rule.outbound.value} out"]
        if rule.tunnel:
            to = rule.tunnel.remote or rule.tunnel.remote_host or "any"
            parts.append(f"tunnel to {to}")
        if rule.encrypt:
            parts.append("encryption guaranteed")
        text = f'secured by rule "{rule.name}" ({", ".join(parts)})'
        if rule.auth and rule.auth.second:
            what = "user authentication" if rule.auth.proves_users else "health certificate"
            text += f", {what} {'asked for' if rule.auth.optional else 'needed'}"
        return text + (
            "" if rule.outbound is not Level.NONE or not self.outbound else "; only the peer can start it"
        )


def _far(rule: Rule) -> tuple[TrafficSelector, ...]:
    """The side that says more about a rule: the remote one unless it is any."""
    return rule.selector.local if extent(rule.selector.remote) == "any" else rule.selector.remote


def _service(rule: Rule) -> str:
    """The protocol and ports of a rule in words."""
    sides = []
    for label, selectors in (("", rule.selector.remote), (" from port", rule.selector.local)):
        texts = dict.fromkeys(str(s).partition("[")[2].rstrip("]") for s in selectors)
        sides.append((label, ", ".join(text for text in texts if text)))
    (_, remote), (_, local) = sides
    if not local or local == remote.partition("/")[0]:
        return remote or "everything"
    return f"{remote} (at this end {local})"


def narrower(rules: Iterable[Rule], fields: Fields, outbound: bool) -> tuple[Rule, ...]:
    """Rules that would decide a part of what was asked, had protocol and both ports been given."""
    return tuple(
        rule for rule in rules if rule.source != "built-in" and _may_fit(rule.selector, fields, outbound)
    )


def _may_fit(selector: Selector, fields: Fields, outbound: bool) -> bool:
    sources, destinations = (
        (selector.local, selector.remote) if outbound else (selector.remote, selector.local)
    )
    ends = (
        (sources, fields.source, fields.source_port),
        (destinations, fields.destination, fields.destination_port),
    )
    return all(
        any(
            s.has_address(address)
            and (not fields.protocol or s.protocol in (0, fields.protocol))
            and (port is None or s.ports[0] <= port <= s.ports[1])
            for s in side
        )
        for side, address, port in ends
    )
