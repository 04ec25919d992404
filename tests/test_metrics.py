"""Counters come from events, gauges are asked; Prometheus can read the result and no stranger makes it
grow."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from ikd.events import (
    AuthenticationFailed,
    ChildClosed,
    DatagramDropped,
    Event,
    MessageSent,
    NegotiationFailed,
    NegotiationStarted,
    Started,
)
from ikd.metrics import MOST_VALUES, Metrics, Reading
from sadb.address import Path, SocketAddress, parse

HERE = SocketAddress(parse("192.0.2.1"), 500)


def values(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """The exposition as Prometheus reads it: value by name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }


def feed(metrics: Metrics, *events: Event) -> None:
    for event in events:
        metrics.listener(type(event))(event)


def test_events_are_counted_by_name_and_detail() -> None:
    """What the documentation calls a counter must count."""
    metrics = Metrics(list)
    sent = {"ike": 1, "message_id": 0, "response": False, "payloads": ("SA",), "path": Path(HERE, HERE)}
    feed(
        metrics,
        Started(version="1", plane="", rules=1),
        MessageSent(exchange="IKE_AUTH", **sent),  # type: ignore[arg-type]
        MessageSent(exchange="IKE_AUTH", tries=2, **sent),  # type: ignore[arg-type]
        ChildClosed(
            ike=1, rule="net", peer="", spi_in="", spi_out="", reason="", octets_in=700, octets_out=30
        ),
    )
    found = values(metrics)
    assert found["ikd_events_total", ("started",)] == 1
    assert found["ikd_ike_messages_total", ("sent", "IKE_AUTH")] == 2
    assert found["ikd_ike_repetitions_total", ("sent",)] == 1
    assert found["ikd_child_octets_total", ("in",)] == 700
    assert found["ikd_child_octets_total", ("out",)] == 30


def test_handshakes_and_refusals_are_told_apart() -> None:
    """What an alarm is made of: which protocol fails, and why nobody believes whom; a Child SA that fails, or
    an IKE SA that is rekeyed, is no handshake."""
    metrics = Metrics(list)
    path = Path(HERE, HERE)
    failed = {"rule": "net", "peer": "", "initiator": False, "stage": "", "notify": "", "reason": ""}
    feed(
        metrics,
        NegotiationStarted(ike=1, rule="", initiator=False, path=path, keying="ikev1"),
        NegotiationFailed(ike=1, keying="ikev1", **failed),  # type: ignore[arg-type]
        NegotiationFailed(ike=2, keying="ikev1", child=True, **failed),  # type: ignore[arg-type]
        NegotiationFailed(ike=0, keying="ikev1", **failed),  # type: ignore[arg-type]
        AuthenticationFailed(
            ike=1, rule="net", identity="", address="", reason="long", method="psk", cause="wrong-key"
        ),
    )
    found = values(metrics)
    handshakes = {labels: value for (name, labels), value in found.items() if name == "ikd_handshakes_total"}
    assert {frozenset(labels): value for labels, value in handshakes.items()} == {
        frozenset(("ikev1", "responder", "begun")): 1,
        frozenset(("ikev1", "responder", "failed")): 1,
    }
    assert found["ikd_authentication_failures_total", ("psk", "wrong-key")] == 1


def test_labels_are_bounded() -> None:
    """Peers choose some of these texts; a time series for each would be a gift."""
    metrics = Metrics(list)
    failed = {"ike": 1, "rule": "", "peer": "", "initiator": False, "stage": "IKE_AUTH", "reason": ""}
    for n in range(MOST_VALUES * 3):
        feed(metrics, DatagramDropped(reason=f"reason {n}"))
        feed(metrics, NegotiationFailed(notify=f"NOTIFY_{n}", **failed))  # type: ignore[arg-type]
    found = values(metrics)
    reasons = [labels for name, labels in found if name == "ikd_datagrams_dropped_total"]
    assert len(reasons) == MOST_VALUES + 1
    assert found["ikd_datagrams_dropped_total", ("other",)] == MOST_VALUES * 2
    assert found["ikd_negotiations_failed_total", ("other", "other")] == MOST_VALUES * 2


def test_gauges_are_asked_when_read() -> None:
    """A gauge that is only updated by events drifts; these are what is there at that moment."""
    held = [3.0]

    def readings() -> list[Reading]:
        return [
            Reading("ike_sas", "IKE SAs.", held[0], (("state", "established"),)),
            Reading("ike_sas", "IKE SAs.", 1, (("state", "deleting"),)),
            Reading("packets_dropped", "Packets.", 9, (("reason", "late"),), counter=True),
        ]

    metrics = Metrics(readings)
    assert values(metrics)["ikd_ike_sas", ("established",)] == 3
    held[0] = 4.0
    found = values(metrics)
    assert found["ikd_ike_sas", ("established",)] == 4
    assert found["ikd_ike_sas", ("deleting",)] == 1
    assert found["ikd_packets_dropped_total", ("late",)] == 9


def test_process_is_in_it() -> None:
    """Memory is the first thing to look at in a flood."""
    assert values(Metrics(list))["process_resident_memory_bytes", ()] > 1e6
