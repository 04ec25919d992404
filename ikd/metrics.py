"""Counters and gauges as Prometheus reads them: counters are fed by events, gauges are asked when they are
read.

Nothing in the protocol counts. Labels have few values by construction, and where an event carries a text
its values are limited to `MOST_VALUES`, the rest counting as "other", so that a stranger cannot make the
exposition grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ikd import events
from ikd.control.protocol import hyphened
from ikd.events import Event

MOST_VALUES: Final = 64
MOST_BEFORE: Final = 1024  # counters of earlier runs that nothing feeds by events
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
    whole: bool = False  # of a counter: what earlier runs of the daemon have counted is in it


Counted = Mapping[str, Iterable[tuple[tuple[str, ...], float]]]  # by name: values of labels, and the count


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

    def counted(self) -> list[tuple[tuple[str, ...], float]]:
        """What it has come to."""
        return list(self._counts.items())

    def go_on(self, counted: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """Go on from there."""
        for values, count in counted:
            if len(values) == len(self._labels):
                self.add(*values, by=count)

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
        self._asked = _Asked(readings)
        self.registry.register(self._asked)
        self._labelled: dict[str, _Labelled] = {}
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

    def counted(self) -> Counted:
        """Every counter, for the next run of the daemon."""
        return {name: one.counted() for name, one in self._labelled.items()} | self._asked.counted()

    def go_on(self, counted: Counted) -> None:
        """Go on from what an earlier run has counted. Once, at the start."""
        for name, rows in counted.items():
            if name in self._labelled:
                self._labelled[name].go_on(rows)
            else:
                self._asked.go_on(name, rows)

    def _make(self, name: str, text: str, *labels: str) -> _Labelled:
        made = self._labelled[name] = _Labelled(self.registry, name, text, *labels)
        return made

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
        limited = self._make("peers_limited", "How often proven peers met a limit of theirs.", "limit")

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
            events.PeerLimited: lambda e: limited.add(e.limit),
            events.ChildExpired: lambda e: expired.add("hard" if e.hard else "soft", e.reason),
        }


def _role(initiator: bool) -> str:
    return "initiator" if initiator else "responder"


def _values(one: Reading) -> tuple[str, ...]:
    return tuple(value for _, value in one.labels)


class _Asked:
    """Gauges and counters kept elsewhere, asked when the metrics are read."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings
        self._before: dict[tuple[str, tuple[str, ...]], float] = {}  # what earlier runs have counted

    def counted(self) -> dict[str, list[tuple[tuple[str, ...], float]]]:
        """Counters, and those of earlier runs that have not moved in this one."""
        now = self._before | {
            (one.name, _values(one)): self._value(one)
            for one in self._readings()
            if one.counter and not one.whole
        }
        found: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        for (name, values), count in now.items():
            found.setdefault(name, []).append((values, count))
        return found

    def go_on(self, name: str, counted: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """Go on from there."""
        for values, count in counted:
            if len(self._before) < MOST_BEFORE:
                self._before[name, values] = count

    def _value(self, one: Reading) -> float:
        """With what earlier runs have counted."""
        before = self._before.get((one.name, _values(one)), 0) if one.counter and not one.whole else 0
        return one.value + before

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        families: dict[str, Metric] = {}
        for one in self._readings():
            family = families.get(one.name)
            if family is None:
                kind = CounterMetricFamily if one.counter else GaugeMetricFamily
                family = kind(f"ikd_{one.name}", one.text, labels=[name for name, _ in one.labels])
                families[one.name] = family
            family.add_metric(_values(one), self._value(one))  # type: ignore[attr-defined]
        yield from families.values()
