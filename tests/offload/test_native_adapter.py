"""What the native loop does beside an adapter, and what it leaves to Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from support import engines
from support.engines import GCM_ESN, Host, arrived, between, hosts, segments
from support.native import PLAIN
from support.require import require

from offload import vnet
from offload.nic.capabilities import Direction
from offload.nic.lanes import Stage
from offload.outer import Arrived, CryptoStatus, Mark
from offload.software import Batch
from sadb.algorithms import QuickSuite

try:
    from support.native_adapter import NativeAdapterEngine
except ImportError:
    NativeAdapterEngine = None  # type: ignore[assignment, misc]

IN, OUT = Direction.INBOUND, Direction.OUTBOUND


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    """Hosts have an adapter with everything it can have, and the native loop."""
    require(NativeAdapterEngine is not None, "the native loop")
    before, engines.chosen = engines.chosen, "native-adapter"
    yield
    engines.chosen = before


def of(host: Host) -> NativeAdapterEngine:
    assert isinstance(host.engine, NativeAdapterEngine)
    return host.engine


def marked(suite: QuickSuite = engines.GCM, count: int = 3) -> tuple[Host, Host, list[bytes], list[Arrived]]:
    """Two hosts; packets of one flow, and what the second one's adapter makes of them. One came before."""
    a, b = hosts(suite)
    sent = [between(4, bytes([number])) for number in range(count + 1)]
    wire = arrived(a.engine.outbound(sent, 1.0).wire)
    assert b.engine.inbound(wire[:1], 1.0).local == sent[:1]
    return a, b, sent[1:], of(b).adapter.receive("host", wire[1:])


def python_is_asked(host: Host, monkeypatch: pytest.MonkeyPatch) -> list[Arrived]:
    """What the loop leaves to Python from now on."""
    found: list[Arrived] = []
    opened = of(host).opened

    def seen(one: Arrived, now: float) -> Batch:
        found.append(one)
        return opened(one, now)

    monkeypatch.setattr(host.engine, "opened", seen)
    return found


@pytest.mark.parametrize("suite", [engines.GCM, GCM_ESN], ids=["32 bits", "64 bits"])
def test_plain_marked_packets_need_no_python(suite: QuickSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else offload is worth nothing for single packets: that is what this loop is for."""
    _, b, sent, wire = marked(suite)
    asked = python_is_asked(b, monkeypatch)
    assert of(b).looked_at(wire, 1.0).local == sent
    assert not asked
    assert of(b).looked_at(wire, 1.0).local == []  # the same again
    assert len(asked) == len(sent)
    assert b.engine.counters["replayed"] == len(sent)
    octets = sum(map(len, sent)) + len(sent[0])
    assert of(b).carried(b.pair)[:2] == (octets, len(sent) + 1)
    assert (b.pair.inbound.usage.octets, b.pair.inbound.usage.packets) == (octets, len(sent) + 1)


def test_frames_that_an_adapter_put_together_need_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = hosts()
    sent = segments(4, [500] * 9)
    first, *rest = arrived(a.engine.outbound(sent, 1.0).wire)
    b.engine.inbound([first], 1.0)
    asked = python_is_asked(b, monkeypatch)
    (frame,) = of(b).looked_at(of(b).adapter.receive("host", rest), 1.0).local
    assert vnet.packets(frame) == sent[1:]
    assert not asked
    assert b.pair.inbound.usage.packets == 9


MARK = Mark(0, CryptoStatus.SUCCESS)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"handle": 5}, id="another handle"),
        pytest.param({"handle": 0}, id="no handle"),
        pytest.param({"status": CryptoStatus.TUNNEL_ESP_FAILED}, id="status"),
        pytest.param({"evict": True}, id="evict"),
        pytest.param({"judged": True}, id="judged"),
        pytest.param({"high": 1}, id="upper half"),
        pytest.param({"numbers": (2, 3)}, id="numbers of no frame"),
    ],
)
def test_any_other_mark_is_for_python_and_nothing_is_touched(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is believed here is delivered without another look."""
    _, b, _, wire = marked()
    asked = python_is_asked(b, monkeypatch)
    assert wire[0].mark is not None
    seen: list[tuple[int, int, int]] = []
    slot = of(b).native.slots[b.pair]
    opened = of(b).opened
    monkeypatch.setattr(
        b.engine, "opened", lambda one, now: (seen.append(of(b).table.read(slot, True)), opened(one, now))[1]
    )
    before = of(b).table.read(slot, True)
    one = replace(wire[0], mark=replace(wire[0].mark, **changes))  # type: ignore[arg-type]
    of(b).looked_at([one], 1.0)
    assert asked == [one]
    assert seen == [before]


def test_an_sa_that_left_the_adapter_has_no_mark_that_is_believed_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Marks of before are true, but only the driver knows until when."""
    _, b, sent, wire = marked()
    of(b).driver.displace(b.pair, [IN], 1.0)
    asked = python_is_asked(b, monkeypatch)
    assert of(b).looked_at(wire[:1], 1.0).local == sent[:1]
    assert asked == wire[:1]


def test_the_loop_sends_again_only_behind_what_has_waited() -> None:
    """Packets of an SA that leaves the adapter wait for it; one that the loop sends meanwhile would overtake
    them, and have them dropped by the peer's window."""
    a, _ = hosts()
    one = of(a)
    one.outbound([between(4, b"0")], 1.0)
    frame = PLAIN + between(4, b"late")
    assert one.table.seal(frame) is None  # the adapter's
    one.driver.displace(a.pair, [OUT], 1.0)
    assert one.driver.stage(a.pair, OUT) is Stage.DRAINING
    lane = one.driver.lanes[a.pair]
    one.driver.hold(lane, between(4, b"held"), 1.0)
    one.driver._lost(lane, "lost")
    assert one.driver.stage(a.pair, OUT) is Stage.SOFT
    assert one.table.seal(frame) is None  # not yet
    assert len(one.released(1.0).wire) == 1
    assert one.table.seal(frame) is not None


def test_packets_for_an_adapter_are_framed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one in Python they cost more than what the adapter spares."""
    a, b = hosts()
    sent = segments(4, [500] * 9)
    a.engine.outbound(sent[:1], 1.0)
    monkeypatch.setattr(a.engine, "_protect", lambda *of_it: pytest.fail("protected one by one"))
    (frame,) = vnet.frames(sent[1:])
    wire = a.engine.frames([frame], 1.0).wire
    assert len(wire) == 8
    assert b.engine.inbound(arrived(wire), 1.0).local == sent[1:]
    assert of(a).carried(a.pair)[2:] == (sum(map(len, sent)), 9)
