"""Counters and gauges as Prometheus reads them: counters are fed by events, gauges are asked when they are
read.

Nothing in the protocol counts. Labels have few values by construction, and where an event carries a text
its values are limited to `MOST_VALUES`, the rest counting as "other", so that a stranger cannot make the
exposition grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ikd import events
from ikd.control.protocol import hyphened
from ikd.events import Event

MOST_VALUES: Final = 64
OTHER: Final = "other"
LAGS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds

Listener = Callable[[Event], None]
Count = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Reading:
    """One value asked for when metrics are read: `name` without prefix, `labels` with their values."""

    name: str
    text: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()
    counter: bool = False


class Readings(Protocol):
    """Whoever knows the state of things now."""

    def __call__(self) -> Iterable[Reading]: ...


class _Labelled:
    """A counter whose label values are bounded. It counts in a dictionary, which takes a fifth of the time of
    the library's counters with their locks; the library asks for it when metrics are read."""

    __slots__ = ("_counts", "_labels", "_name", "_text")

    def __init__(self, registry: CollectorRegistry, name: str, text: str, *labels: str) -> None:
        self._name = f"ikd_{name}"
        self._text = text
        self._labels = labels
        self._counts: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def add(self, *values: str, by: float = 1) -> None:
        """Count."""
        counts = self._counts
        if values in counts:
            counts[values] += by
            return
        if len(counts) >= MOST_VALUES:
            values = (OTHER,) * len(values)
        counts[values] = counts.get(values, 0) + by

    def by(self, label: str) -> dict[str, int]:
        """Sums by the values of one label."""
        at, sums = self._labels.index(label), Counter[str]()
        for values, count in self._counts.items():
            sums[values[at]] += int(count)
        return sums

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric(values, count)
        yield family


class Metrics:
    """All of them. `listener` says who counts an event; `text` is the exposition; `lag` is told how late the
    event loop was."""

    def __init__(self, readings: Readings) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self.registry.register(_Asked(readings))
        self.lag = Histogram(
            "ikd_loop_lag_seconds",
            "How late the event loop is with what is due.",
            buckets=LAGS,
            registry=self.registry,
        )
        self._happened = self._make("events", "Events by name.", "event")
        self._dropped = self._make("datagrams_dropped", "IKE datagrams dropped, by reason.", "reason")
        self._counting: dict[type[Event], Count] = self._table()

    def listener(self, kind: type[Event]) -> Listener:
        """What counts events of a kind."""
        name = hyphened(kind.__name__)
        happened, more = self._happened.add, self._counting.get(kind)
        if more is None:
            return lambda event: happened(name)

        def both(event: Event) -> None:
            happened(name)
            more(event)

        return both

    @property
    def dropped(self) -> dict[str, int]:
        """IKE datagrams that were dropped, by reason."""
        return self._dropped.by("reason")

    def text(self) -> str:
        """The exposition."""
        return generate_latest(self.registry).decode()

    def _make(self, name: str, text: str, *labels: str) -> _Labelled:
        return _Labelled(self.registry, name, text, *labels)

    def _table(self) -> dict[type[Event], Count]:
        """What is counted of an event besides its name."""
        messages = self._make("ike_messages", "IKE messages.", "direction", "exchange")
        repeated = self._make("ike_repetitions", "IKE messages sent or received again.", "direction")
        established = self._make("ike_established", "IKE SAs established or rekeyed.", "role", "how")
        authenticated = self._make("peers_authenticated", "Peers that proved who they are.", "method")
        failed = self._make("negotiations_failed", "Negotiations that came to nothing.", "stage", "notify")
        handshakes = self._make("handshakes", "Negotiations of IKE SAs.", "module", "role", "outcome")
        unproven = self._make("authentication_failures", "Peers not believed.", "method", "reason")
        users = self._make("users_authenticated", "Second authentications.", "method")
        children = self._make("child_established", "Child SAs established or rekeyed.", "mode", "how")
        octets = self._make("child_octets", "Octets through Child SAs that have ended.", "direction")
        expired = self._make("child_expired", "Child SAs that met a limit.", "limit", "reason")

        def sent(event: events.MessageSent) -> None:
            messages.add("sent", event.exchange)
            if event.tries > 1:
                repeated.add("sent")

        def received(event: events.MessageReceived) -> None:
            messages.add("received", event.exchange)
            if event.repeated:
                repeated.add("received")

        def negotiated(event: events.IkeEstablished) -> None:
            role = _role(event.initiator)
            established.add(role, "rekeyed" if event.replaces else "new")
            if not event.replaces:
                handshakes.add(event.keying, role, "established")

        def came_to_nothing(event: events.NegotiationFailed) -> None:
            failed.add(event.stage, event.notify)
            if event.ike and not event.child:  # else none was begun, or its IKE SA stays
                handshakes.add(event.keying, _role(event.initiator), "failed")

        def closed(event: events.ChildClosed) -> None:
            octets.add("in", by=event.octets_in)
            octets.add("out", by=event.octets_out)

        return {
            events.MessageSent: sent,
            events.MessageReceived: received,
            events.DatagramDropped: lambda e: self._dropped.add(e.reason),
            events.NegotiationStarted: lambda e: handshakes.add(e.keying, _role(e.initiator), "begun"),
            events.IkeEstablished: negotiated,
            events.PeerAuthenticated: lambda e: authenticated.add(e.method),
            events.UserAuthenticated: lambda e: users.add(e.method),
            events.AuthenticationFailed: lambda e: unproven.add(e.method, e.cause),
            events.NegotiationFailed: came_to_nothing,
            events.ChildEstablished: lambda e: children.add(e.mode, "rekeyed" if e.replaces else "new"),
            events.ChildClosed: closed,
            events.ChildExpired: lambda e: expired.add("hard" if e.hard else "soft", e.reason),
        }


def _role(initiator: bool) -> str:
    return "initiator" if initiator else "responder"


class _Asked:
    """Gauges and counters kept elsewhere, asked when the metrics are read."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        families: dict[str, Metric] = {}
        for one in self._readings():
            family = families.get(one.name)
            if family is None:
                kind = CounterMetricFamily if one.counter else GaugeMetricFamily
                family = kind(f"ikd_{one.name}", one.text, labels=[name for name, _ in one.labels])
                families[one.name] = family
            family.add_metric([value for _, value in one.labels], one.value)  # type: ignore[attr-defined]
        yield from families.values()
