"""ikd.settings: strict loading with exact complaints; the manual comes from the dataclasses."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import ip_address
from pathlib import Path

import pytest

from ikd import settings
from ikd.settings import IkeSettings, Levels, Settings, SettingsError, parse

HERE = Path("/etc/ikd")
ROOT = Path(__file__).resolve().parents[2]


def complaints(text: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        parse(text, HERE)
    return caught.value.complaints


def test_empty_file_is_all_defaults() -> None:
    """A file may leave everything out; a default that is not valid itself would show here."""
    assert parse("", HERE) == Settings(HERE)


def test_every_default_passes_its_own_check() -> None:
    """A default that the reader would refuse could not be written down by the administrator."""
    for option in settings.options():
        if option.default is None or option.default == () or option.name == "control_mode":
            continue
        value = option.default
        written = [str(item) for item in value] if isinstance(value, tuple) else value
        written = value.default if isinstance(value, Levels) else written
        assert option.read(written) == value, option.key


def test_keys_reach_their_fields() -> None:
    """A key that is read into the wrong section would be silently ignored."""
    loaded = parse(
        """
        [daemon]
        listen = ["127.0.0.1"]
        port = 15000
        control_mode = "0600"
        [dataplane]
        backend = "memory"
        replay_window = 1024
        [identity]
        trust = ["pki/ca.pem"]
        [limits]
        half_open = 7
        [ike]
        liveness = 0
        [log]
        level = { default = "warning", ike = "debug" }
        """,
        HERE,
    )
    assert loaded.daemon.listen == (ip_address("127.0.0.1"),)
    assert loaded.daemon.control_mode == 0o600
    assert loaded.dataplane.backend == "memory"
    assert loaded.identity.trust == ("pki/ca.pem",)
    assert loaded.ike == IkeSettings(port=15000, replay_window=1024, half_open=7, liveness=0.0)
    assert (loaded.log.level.of("ike"), loaded.log.level.of("auth")) == ("debug", "warning")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[deamon]", ("ikd.toml: unknown table [deamon]", 'did you mean "daemon"?')),
        ("[daemon]\nlisen = []", ("daemon.lisen: unknown key", 'did you mean "listen"?')),
        ("[daemon]\nhalf_open = 3", ("daemon.half_open: unknown key", "belongs into [limits]")),
        ("daemon = 3", ("daemon: a table is expected",)),
        ('[daemon]\nlisten = ["10.0.0.0/8"]', ("daemon.listen: must be a list of addresses",)),
        ("[daemon]\nlisten = []", ("daemon.listen: must be a list of addresses",)),
        ('[daemon]\nlisten = ["::", "::"]', ("daemon.listen: names an address twice",)),
        ('[daemon]\ncontrol_mode = "rw"', ("daemon.control_mode: must be permission bits",)),
        ("[daemon]\nport = 4500", ("daemon.nat_port: 4500 is daemon.port already",)),
        ("[limits]\nhalf_open = true", ("limits.half_open: must be a whole number", "not True")),
        ("[limits]\nhalf_open = 1.5", ("limits.half_open: must be a whole number",)),
        ("[ike]\nretransmit_first = 30", ("ike.retransmit_cap: shorter than",)),
        ('[dataplane]\nbackend = "sofware"', ("dataplane.backend: must be one of", '"software"?')),
        ('[identity]\ncertificate = "a.pem"', ("identity.key: missing",)),
        (
            '[identity]\nuser_key = "a.key"\nhealth_certificate = "h.pem"',
            ("identity.health_key: missing", "identity.user_certificate: missing, while identity.user_key"),
        ),
        ('[identity]\ncrl_check = "require"', ("identity.crls: empty",)),
        ('[log]\nlevel = { ikee = "debug" }', ("log.level", 'did you mean "ike"?')),
        ('[log]\nlevel = "loud"', ("log.level: must be one of",)),
        ("[log]\nlevel = \n[ike]", ("ikd.toml: ", "line 2")),
    ],
)
def test_complaint_says_where_what_and_how(text: str, parts: tuple[str, ...]) -> None:
    """An administrator must find the mistake from the message alone."""
    said = "\n".join(complaints(text))
    for part in parts:
        assert part in said


def test_every_complaint_at_once() -> None:
    """Being told one mistake a run makes a file of ten mistakes ten runs."""
    assert len(complaints("[daemon]\nfoo = 1\nport = 0\n[log]\nformat = 3\n[nothing]")) == 4


def test_missing_file_says_which(tmp_path: Path) -> None:
    """A wrong --config must not look like an empty configuration."""
    with pytest.raises(SettingsError, match="no such file; name the directory"):
        settings.load(tmp_path)


def test_shipped_file_loads() -> None:
    """The file people start from has to be right."""
    assert settings.load(ROOT / "conf").daemon.control == "/run/ikd/control.sock"


def test_manual_is_current() -> None:
    """docs/settings.md is generated; a change of the dataclasses must be followed by generating it again."""
    assert (ROOT / "docs" / "settings.md").read_text() == settings.manual()


def test_every_setting_is_documented() -> None:
    """A key without a sentence is a key nobody can use."""
    documented = {(option.section, option.name) for option in settings.options() if len(option.doc) > 20}
    every = {(section, one.name) for section, kind in settings.SECTIONS.items() for one in fields(kind)}
    assert every == documented
