"""What `ikctl why` remembers: which failures, how they are found, when they are over, and that strangers
cannot make it forget or grow."""

from __future__ import annotations

import pytest

from ikd.control import views
from ikd.control.failures import MOST_PEERS_OF_A_RULE, MOST_STRANGERS, Failures
from ikd.events import (
    AuthenticationFailed,
    ChildEstablished,
    Comparison,
    Event,
    IkeEstablished,
    NegotiationFailed,
    PeerAuthenticated,
    Reloaded,
    Row,
)
from policy.parse import parse as parse_policy
from sadb.address import Path, SocketAddress, parse


class Clock:
    """Time that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def table() -> tuple[Failures, Clock]:
    clock = Clock()
    return Failures(clock), clock


def feed(failures: Failures, *events: Event) -> None:
    """Publish as the publisher does."""
    for event in events:
        listener = failures.listener(type(event))
        assert listener is not None
        listener(event)


def failed(
    rule: str, peer: str, reason: str = "no answer", *, ike: int = 1, **more: object
) -> NegotiationFailed:
    values: dict[str, object] = {
        "ike": ike,
        "rule": rule,
        "peer": peer,
        "initiator": True,
        "stage": "IKE_AUTH",
        "notify": "",
        "reason": reason,
    }
    return NegotiationFailed(**(values | more))  # type: ignore[arg-type]


def path(peer: str) -> Path:
    return Path(SocketAddress(parse("192.0.2.1"), 500), SocketAddress(parse(peer), 500))


def ike_up(ike: int, peer: str) -> IkeEstablished:
    return IkeEstablished(
        ike=ike, keying="ikev2", peer="peer.test", authenticated_as="", local="", suite="", initiator=True,
        spi_i="", spi_r="", path=path(peer), nat=False,
    )  # fmt: skip


def child_up(ike: int, rule: str) -> ChildEstablished:
    return ChildEstablished(
        ike=ike, rule=rule, peer="peer.test", spi_in="", spi_out="", mode="tunnel", suite="", local=(),
        remote=(), encapsulated=False,
    )  # fmt: skip


def test_found_by_rule_address_and_identity() -> None:
    """People ask by whichever name they know; an answer that depends on it looks as if nothing had failed."""
    failures, _ = table()
    identified = AuthenticationFailed(
        ike=7, rule="net", identity="peer.test", address="192.0.2.2", reason="wrong key"
    )
    feed(failures, identified, failed("net", "192.0.2.2", ike=7))
    feed(failures, failed("", "198.51.100.9", "no proposal", ike=8))
    for name in ("net", "192.0.2.2", "peer.test"):
        assert [one.event.rule for one in failures.find(name)] == ["net"], name
    assert [one.event.reason for one in failures.find("198.51.100.9")] == ["no proposal"]
    assert len(failures.find("")) == 2
    assert not failures.find("other")


def test_identity_told_after_the_failure_is_found_too() -> None:
    """The order of two events must not decide whether `ikctl why peer.test` knows anything."""
    failures, _ = table()
    refused = AuthenticationFailed(ike=7, rule="net", identity="peer.test", address="192.0.2.2", reason="")
    feed(failures, failed("net", "192.0.2.2", ike=7), refused)
    assert failures.find("peer.test")


def test_repetition_counts_and_a_new_reason_replaces() -> None:
    """A hundred retries are one failure seen a hundred times; another reason is another failure."""
    failures, clock = table()
    feed(failures, failed("net", "192.0.2.2"))
    clock.now = 130.0
    feed(failures, failed("net", "192.0.2.2"))
    (one,) = failures.find("net")
    assert (one.times, one.first, one.last) == (2, 100.0, 130.0)
    feed(failures, failed("net", "192.0.2.2", "wrong key"))
    (one,) = failures.find("net")
    assert (one.event.reason, one.times) == ("wrong key", 1)


def test_success_mends_what_it_shows_to_be_over() -> None:
    """`ikctl status` must not complain about what works by now, nor fall silent about what does not."""
    failures, clock = table()
    feed(failures, failed("net", "192.0.2.2"), failed("net", "192.0.2.3"), failed("net", ""))
    clock.now = 150.0
    feed(failures, ike_up(3, "192.0.2.2"), child_up(3, "net"))
    mended = {one.event.peer: one.mended for one in failures.find("net")}
    assert mended == {"192.0.2.2": 150.0, "192.0.2.3": None, "": 150.0}
    assert len(views.wrong(failures, 151.0)) == 1
    feed(failures, failed("net", "192.0.2.2"))
    assert next(one for one in failures.find("192.0.2.2")).mended is None


def test_failed_child_outlives_its_ike_sa() -> None:
    """An IKE SA that comes up says nothing about a Child SA that was refused on it."""
    failures, _ = table()
    feed(failures, failed("net", "192.0.2.2", child=True), ike_up(3, "192.0.2.2"))
    assert failures.find("net")[0].mended is None


def test_strangers_push_out_only_strangers() -> None:
    """Somebody who varies addresses must neither fill memory nor hide why a rule does not work."""
    failures, _ = table()
    feed(failures, failed("net", "192.0.2.2"))
    for n in range(MOST_STRANGERS * 2):
        feed(failures, failed("", f"10.0.{n // 256}.{n % 256}", ike=n))
        feed(failures, PeerAuthenticated(
            ike=n, rule="", identity=f"i{n}", method="psk", description="", address=""
        ))  # fmt: skip
    assert failures.find("net")
    assert len(failures.find("")) == MOST_STRANGERS + 1
    for n in range(MOST_PEERS_OF_A_RULE * 2):
        feed(failures, failed("net", f"10.1.0.{n}"))
    assert len(failures.find("net")) == MOST_PEERS_OF_A_RULE


def test_rules_that_are_gone_have_not_failed() -> None:
    """After a reload the status must not speak of rules that are in no file."""
    failures, _ = table()
    feed(failures, failed("net", "192.0.2.2"))
    feed(failures, failed("other", "192.0.2.3"), Reloaded(rules=1, removed=("net",), changed=("other",)))
    assert not failures.find("net")
    assert not failures.find("other")


def test_answer_has_both_sides_aligned() -> None:
    """The comparison is what makes `ikctl why` worth typing."""
    failures, clock = table()
    comparison = Comparison(
        "we offered", "the peer", (Row("DH", ("x25519",), ("modp1024",), "nothing in common"),)
    )
    feed(failures, failed("net", "192.0.2.2", comparison=comparison, remedy="ask for x25519"))
    clock.now = 112.0
    answer = views.why(failures.find("net"), "net", clock.now)
    (one,) = answer["failures"]
    assert one["rows"] == [
        {"what": "DH", "ours": ["x25519"], "theirs": ["modp1024"], "note": "nothing in common"}
    ]
    assert (one["ours_title"], one["ago"], one["remedy"]) == ("we offered", 12.0, "ask for x25519")
    assert views.why([], "net", clock.now) == {"about": " for net", "under_way": [], "failures": []}


@pytest.mark.parametrize(
    "text",
    [
        'remote = "192.0.2.2"\n',
        'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"\ntunnel = { remote = "192.0.2.2" }\n',
    ],
)
def test_what_failed_before_a_rule_was_found(text: str) -> None:
    """The responder whose proposals do not fit would read under the rule's name that nothing has failed."""
    failures, _ = table()
    feed(failures, failed("", "192.0.2.2"), failed("", "192.0.2.3"))
    (rule,) = parse_policy(f'[[rule]]\nname = "net"\n{text}').rules
    assert [one.event.peer for one in failures.find("net", rule)] == ["192.0.2.2"]
    assert not failures.find("net")


def test_a_command_that_is_printed_can_be_typed() -> None:
    """A rule's name may have spaces and anything else that means something to a shell."""
    failures, clock = table()
    feed(failures, failed("my $rule", "192.0.2.2"))
    (sentence,) = views.wrong(failures, clock.now)
    assert sentence.endswith("see: ikctl why 'my $rule'")
