"""A daemon whose certificate ends soon says so everywhere, and goes on with the one that `ikctl cert renew`
made."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from click.testing import CliRunner
from cryptography import x509
from support.loopback import ADDRESSES, Running, free_ports, start, write

from ikd.auth.validity import SOON, Watched
from ikd.control import cli_cert
from ikd.control.cli import Context
from ikd.events import Broken, CertificateExpires, PeerAuthenticated, Warned

DAY = 86400


def cert(*arguments: object) -> None:
    """`ikctl cert ARGUMENTS`."""
    done = CliRunner().invoke(cli_cert.group, list(map(str, arguments)), obj=Context(None, None, False))
    assert done.exit_code == 0, (done.output, done.exception)


def home(directory: Path, side: str, ports: tuple[int, int], ca: Path, days: int) -> Path:
    """A side that proves itself with a certificate of the authority."""
    found = write(directory, side, ports)
    cert("issue", f"{side}.test", "--ca", ca, "--out", found / "host.pem", "--days", days)
    settings = (found / "ikd.toml").read_text()
    files = f'certificate = "host.pem"\nkey = "host.key"\ntrust = ["{ca}"]\n'
    (found / "ikd.toml").write_text(settings.replace("[identity]\n", f"[identity]\n{files}"))
    policy = (found / "policy.toml").read_text()
    (found / "policy.toml").write_text(
        policy + 'auth = "certificates"\n[auth.certificates]\nfirst = ["certificate"]\n'
    )
    return found


async def left_of(side: Running, use: str) -> float:
    """Seconds that the metric tells."""
    text = (await side.ask("metrics"))["text"]
    (value,) = re.findall(rf'^ikd_certificate_expires_seconds{{.*use="{use}".*}} (\S+)', text, re.MULTILINE)
    return float(value)


async def test_a_certificate_is_told_of_renewed_and_used(tmp_path: Path) -> None:
    """The tunnel would break one night without a word before, or at once with the new certificate."""
    ca = tmp_path / "ca.pem"
    cert("ca", "Example CA", "--out", ca, "--days", 400)
    ports = free_ports()
    homes = home(tmp_path, "left", ports, ca, 5), home(tmp_path, "right", ports, ca, 300)
    left, right = [await start(one) for one in homes]
    try:
        await left.ask("up", name="net")
        (told,) = left.happened(CertificateExpires)
        assert (told.use, told.subject) == ("host", "CN=left.test")
        assert 4 * DAY < told.seconds <= 5 * DAY
        assert "ikctl cert renew" in told.text
        assert not [one for one in left.happened(Warned) if "expires" in one.text], "told twice"
        assert any("CN=left.test expires" in one for one in (await left.ask("status"))["wrong"])
        assert 4 * DAY < await left_of(left, "host") <= 5 * DAY
        assert 399 * DAY < await left_of(left, "trust") <= 400 * DAY
        assert not right.happened(CertificateExpires)

        pem = left.home / "host.pem"
        await asyncio.to_thread(cert, "renew", pem, "--ca", ca, "--days", 90, "--before", "14 d")
        await left.ask("reload")
        await left.ask("down", name="net")
        await left.ask("up", name="net")
        new = x509.load_pem_x509_certificate(pem.read_bytes())
        assert left.daemon.configuration.material.hosts[0].leaf == new
        # another key: what the right one has checked is a signature by it
        assert [one.identity for one in right.happened(PeerAuthenticated)] == ["left.test"] * 2
        assert not [one for one in (await left.ask("status"))["wrong"] if "expires" in one]
        assert await left_of(left, "host") > 89 * DAY
        assert len(left.happened(CertificateExpires)) == 1
        assert ADDRESSES["right"] in {one["peer_address"] for one in (await left.ask("sa"))["main"]}
        assert not left.happened(Broken) + right.happened(Broken)
    finally:
        await left.stop()
        await right.stop()


def test_a_certificate_ends_while_the_daemon_runs() -> None:
    """What was fine at the start, a year ago, would never be warned of."""
    now = time.time()
    one = Watched("host", "our certificate", "CN=a", now - DAY, now + SOON + DAY)
    brief = Watched("health", "our health certificate", "CN=a", now, now + DAY, brief=True)
    assert one.warning(now) == brief.warning(now) == ""
    assert "our certificate CN=a expires 20" in one.warning(now + 2 * DAY)
    assert "expired" in one.warning(now + 30 * DAY)
    assert "expired" in brief.warning(now + 2 * DAY)
    assert "is the clock right?" in one.warning(now - 2 * DAY)
