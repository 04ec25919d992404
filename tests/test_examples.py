"""Every file in conf/ loads: an example with a mistake is worse than none."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from ikd import offload_file, settings
from policy.parse import parse
from policy.schema import KEYWORDS
from sadb.selector import Fields

CONF = Path(__file__).resolve().parents[1] / "conf"
FILES = sorted(CONF.rglob("*.toml"))
POLICIES = [one for one in FILES if one.name not in (settings.FILE, offload_file.FILE)]
RESOLVED = {word: [ip_network("192.0.2.0/24")] for word in KEYWORDS}


def test_there_are_examples() -> None:
    """If the folder moved, the tests below would pass without testing anything."""
    assert CONF / "policy.toml" in POLICIES
    assert len([one for one in POLICIES if one.parent.name == "examples"]) >= 5


@pytest.mark.parametrize("path", [one for one in FILES if one.name == settings.FILE], ids=str)
def test_settings_load(path: Path) -> None:
    """The first thing an administrator copies must be accepted as it is."""
    assert settings.load(path.parent).directory == path.parent


def test_offload_loads(tmp_path: Path) -> None:
    """Its comments show every key; what they say must be what is read."""
    ports = offload_file.load(CONF, tmp_path)
    assert ports is not None
    assert [port.name for port in ports] == ["host", "build", "db"]
    assert (ports["build"].limit, ports["db"].reserve, ports["db"].weight) == (64, 32, 100)


@pytest.mark.parametrize(
    ("name", "carried"),
    [
        ("authip-domain", {"controllers": (), "domain": ("authip", "ikev1")}),
        ("authip-user", {"payroll": ("authip",), "intranet": ("authip",)}),
        ("authip-health", {"servers": ("authip",), "laptops": ("ikev2",), "health authority": ()}),
    ],
)
def test_what_carries_the_examples_of_authip(name: str, carried: dict[str, tuple[str, ...]]) -> None:
    """An example that another protocol carries than its comment says, or that loads with a warning, misleads
    those who start from it."""
    path = CONF / "examples" / f"{name}.toml"
    policy = parse(path.read_text(encoding="utf-8"), path.name)
    assert not policy.warnings
    assert {rule.name: rule.keying if rule.secures else () for rule in policy.in_force} == carried


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: str(path.relative_to(CONF)))
def test_policy_loads(path: Path) -> None:
    """Every example parses, and its rules can be asked about a packet."""
    policy = parse(path.read_text(encoding="utf-8"), path.name, RESOLVED)
    address = ip_network("192.0.2.0/24")[1]
    policy.classify(Fields(address, address, 6, 40000, 443))
    assert policy.flows()
