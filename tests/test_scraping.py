"""The listener for Prometheus: what it answers, and what a stranger cannot do with it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.loopback import INSIDE, datagram, free_ports, pair, start, until, write

from ikd import keying, scraping, settings
from ikd.events import Broken, ChildClosed, Warned
from ikd.scraping import MOST_CONNECTIONS, MOST_OCTETS, Scraping
from ikd.settings import SettingsError
from sadb.address import SocketAddress, parse

ROOT = Path(__file__).resolve().parents[1]
BOARD, GUIDE = ROOT / "conf" / "grafana.json", ROOT / "docs" / "operator.md"
PING = datagram(INSIDE["left"], INSIDE["right"], b"ping")
ANYWHERE = SocketAddress(parse("127.0.0.1"), 0)

Place = SocketAddress


async def ask(place: Place, request: bytes) -> bytes:
    """Everything that is answered."""
    reader, writer = await asyncio.open_connection(str(place.address), place.port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return answer


def get(target: str = "/metrics", method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.fixture
async def served() -> AsyncIterator[tuple[Place, list[str], list[BaseException]]]:
    """A listener that gives out the number of its makings; and what broke."""
    made: list[str] = []
    broken: list[BaseException] = []

    def text() -> str:
        made.append(f"number {len(made)}\n")
        return made[-1]

    async with Scraping(text, lambda _, error: broken.append(error)).serve(ANYWHERE) as place:
        yield place, made, broken


Served = tuple[Place, list[str], list[BaseException]]


async def test_answers_are_http(served: Served) -> None:
    """Prometheus must understand it, and everything else is refused without making anything."""
    place, made, broken = served
    for request, status in (
        (get("/"), b"404"),
        (get(method="POST"), b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 2 * MOST_OCTETS + b" HTTP/1.1\r\n\r\n", b"400"),
    ):
        answer = await ask(place, request)
        assert answer.startswith(b"HTTP/1.1 " + status) or not answer, request[:40]
    assert not made
    head, _, body = (await ask(place, get())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert f"Content-Length: {len(body)}".encode() in head
    assert body == made[0].encode()
    assert not (await ask(place, get(method="HEAD"))).partition(b"\r\n\r\n")[2]
    assert not broken


async def test_reading_often_costs_no_more(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making the exposition looks at every SA; a loop of requests would else stop the daemon."""
    place, made, _ = served
    monkeypatch.setattr(scraping, "FRESH", 600.0)
    answers = {await ask(place, get()) for _ in range(20)}
    assert len(made) == len(answers) == 1


async def test_connections_have_an_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens connections and says nothing may neither keep others out for ever nor use up descriptors."""
    place, _, broken = served
    loop = asyncio.get_running_loop()
    usual, passed = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: usual() + passed[0])
    held = [
        await asyncio.open_connection(str(place.address), place.port) for _ in range(MOST_CONNECTIONS + 9)
    ]

    async def again() -> bool:
        try:
            return b" 200 " in await ask(place, get())
        except OSError:
            return False

    assert not await again()
    passed[0] = scraping.PATIENCE
    await until(again)
    for _, writer in held:
        writer.close()
    assert not broken


async def test_a_bug_in_making_is_told() -> None:
    """An exception must reach the log, not only end a connection."""
    broken: list[BaseException] = []

    def text() -> str:
        raise KeyError("x")

    async with Scraping(text, lambda _, error: broken.append(error)).serve(ANYWHERE) as place:
        assert await ask(place, get()) == b""
    assert isinstance(broken[0], KeyError)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("127.0.0.1:9550", "127.0.0.1"),
        (":9550", "127.0.0.1"),
        ("[::1]:9550", "::1"),
        ("[::]:9550", "::"),
        ("192.0.2.1:9550", "192.0.2.1"),
    ],
)
def test_places(written: str, meant: str) -> None:
    """Without an address it must not be every address."""
    found = settings.parse(f'[metrics]\nlisten = "{written}"\n', Path("/"))
    assert found.metrics.listen == SocketAddress(ip_address(meant), 9550)


@pytest.mark.parametrize(
    "written", ['"9550"', '"::1:9550"', '"[127.0.0.1]:9550"', '"localhost:9550"', '":0"', "1"]
)
def test_places_that_are_none(written: str) -> None:
    """A mistake is told, not guessed at."""
    with pytest.raises(SettingsError, match=r"metrics\.listen: must be an address and a port"):
        settings.parse(f"[metrics]\nlisten = {written}\n", Path("/"))
    assert settings.Settings().metrics.listen is None, "off unless asked for"


async def test_totals_and_dashboard_of_two_daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP a rule's traffic goes on counting over a rekey; and every metric and label that the dashboard
    names exists, or its panel stays empty."""
    monkeypatch.setattr(scraping, "FRESH", 0.0)
    monkeypatch.setattr(keying, "LINGER", 0.05)
    port = free_ports()[0]
    async with pair(tmp_path, settings=f'[metrics]\nlisten = ":{port}"\n') as (left, _):
        place = SocketAddress(parse("127.0.0.1"), port)

        async def samples() -> dict[str, list[tuple[dict[str, str], float]]]:
            left.daemon.metrics.lag.observe(0)
            text = (await ask(place, get())).partition(b"\r\n\r\n")[2].decode()
            found: dict[str, list[tuple[dict[str, str], float]]] = {}
            for family in text_string_to_metric_families(text):
                for one in family.samples:
                    found.setdefault(one.name, []).append((one.labels, one.value))
                found.setdefault(family.name + ("_total" if family.type == "counter" else ""), [])
            return found

        def sent(found: dict[str, list[tuple[dict[str, str], float]]], name: str) -> float:
            (value,) = [value for labels, value in found[name] if labels["direction"] == "out"]
            return value

        left.tun.inject(PING)
        await until(lambda: len(left.daemon.database))
        (made,) = left.daemon.database.pairs()
        await until(lambda: left.daemon.plane.backend.usage(made)[1].octets)
        first = await samples()
        assert sent(first, "ikd_rule_octets_total") == sent(first, "ikd_peer_octets_total") == len(PING)
        await left.ask("rekey", name="net")
        await until(lambda: left.happened(ChildClosed) and len(left.daemon.database) == 1)
        left.tun.inject(PING)
        left.tun.inject(datagram(INSIDE["left"], "192.0.2.77", b"for nobody"))
        await until(lambda: left.daemon.plane.dropped())
        second = await samples()
        assert sent(second, "ikd_rule_octets_total") == 2 * len(PING)
        assert sent(second, "ikd_peer_packets_total") == 2
        wanted = {"module": "ikev2", "role": "initiator", "outcome": "established"}
        assert (wanted, 1) in second["ikd_handshakes_total"]
        assert not left.happened(Broken)
        assert not [one for one in left.happened(Warned) if one.about == "metrics"]
        # only where there are certificates; tests/test_renewal.py has seen it
        second["ikd_certificate_expires_seconds"] = [({"use": "host", "subject": "CN=a"}, 1.0)]
        # only where there are workers; tests/interop/test_soak.py has seen it
        second["ikd_engine_pairs"] = [({}, 1.0)]
        _all_there(second)
        _all_documented(second)


def _all_documented(found: dict[str, list[tuple[dict[str, str], float]]]) -> None:
    """The operator's guide has a row for each, with its labels, and for nothing else."""
    described: dict[str, set[str]] = {}
    for line in GUIDE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `ikd_"):
            names, labels, _ = line.strip("|").split("|")
            for name in re.findall(r"`(\w+)`", names):
                described[name] = set(re.findall(r"`(\w+)`", labels))
    there = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in found if name.startswith("ikd_")}
    assert there == set(described)
    for name, labels in described.items():
        for sample, _ in found.get(name, ()):
            assert set(sample) <= labels, name


def _all_there(found: dict[str, list[tuple[dict[str, str], float]]]) -> None:
    """Every name and label in the dashboard's expressions is one of these."""
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    expressions = [
        (one["expr"], one["legendFormat"]) for panel in board["panels"] for one in panel["targets"]
    ]
    assert len(expressions) > 20
    for expression, legend in expressions:
        names = re.findall(r"\b(?:ikd|process)_\w+", expression)
        assert names, expression
        labels = {"instance"}
        for name in names:
            assert name in found, f"there is no metric {name}"
            labels |= {label for sample, _ in found[name] for label in sample}
        used = {
            label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")
        }
        used |= set(re.findall(r"\{\{(\w+)\}\}", legend))
        if any(found[name] for name in names):
            assert used <= labels, (expression, used - labels)


async def test_a_listener_for_everybody_is_warned_of(tmp_path: Path) -> None:
    """Traffic by peer is nobody else's business; who opens it wide shall have read so."""
    ports = free_ports()
    home = write(tmp_path, "left", ports, settings=f'[metrics]\nlisten = "0.0.0.0:{ports[0]}"\n')
    side = await start(home)
    try:
        assert [one for one in side.happened(Warned) if one.about == "metrics"]
    finally:
        await side.stop()
