"""`offload.toml`: what is read is what was written, and a mistake is told with its place and a remedy."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd import atomic
from ikd.nic_plane import AdapterPlane
from ikd.offload_file import FILE, load, parse, render, save
from ikd.settings import SettingsError
from offload.nic.capabilities import PROFILES
from offload.switch.ports import SETTABLE, Ports

PORTS = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True).filter(lambda name: name != "host"),
    st.fixed_dictionaries(
        {},
        optional={
            "limit": st.integers(0, 5000),
            "reserve": st.integers(0, 10),
            "weight": st.integers(0, 100),
            "trusted": st.booleans(),
            "exclusive": st.booleans(),
        },
    ),
    max_size=6,
)


def values(ports: Ports) -> object:
    """All that the file is about."""
    each = {port.name: [getattr(port, key) for key in SETTABLE] for port in ports}
    return ports.capabilities.name, ports.enabled, ports.packet_mode, ports.resend_lost, each


@given(st.sampled_from(sorted(PROFILES)), *[st.booleans()] * 3, PORTS, st.integers(0, 600))
def test_what_was_written_is_read(
    profile: str, enabled: bool, packets: bool, again: bool, wanted: dict[str, dict[str, int]], limit: int
) -> None:
    """A quota that is lost in a restart is another tenant's loss."""
    able = PROFILES[profile].packet_mode
    ports = Ports(PROFILES[profile], enabled=enabled, packet_mode=packets and able, resend_lost=again)
    ports.change("host", limit=limit)
    for name, words in wanted.items():
        ports.attach(name, **words)
    assert values(parse(render(ports))) == values(ports)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "offload.toml: adapter: missing; write [adapter] with its profile, or remove the file"),
        ("[adapter]", "offload.toml:1: adapter.profile: missing; name one of 82576, 82599, ideal"),
        (
            '[adapter]\nprofile = "82598"',
            'offload.toml:2: adapter.profile: "82598" is not one of 82576, 82599, ideal; did you mean '
            '"82599"?',
        ),
        (
            '[adapter]\nprofile = "82599"\nmode = "packet"',
            "offload.toml:3: adapter.mode: the 82599 knows crypto mode only; remove the key, or name the "
            "profile ideal",
        ),
        (
            '[adapter]\nprofile = "ideal"\nmode = "packets"',
            'offload.toml:3: adapter.mode: "packets" is not one of crypto, packet; did you mean "packet"?',
        ),
        (
            '[adaptor]\nprofile = "82599"',
            'offload.toml:1: adaptor: unknown key in offload.toml; did you mean "adapter"?',
        ),
        (
            '[adapter]\nprofile = "ideal"\n[port.vm1]\nlimits = 64',
            'offload.toml:4: port.vm1.limits: unknown key in a port; did you mean "limit"?',
        ),
        (
            '[adapter]\nprofile = "ideal"\n[port.vm1]\nlimit = "64"',
            'offload.toml:4: port.vm1.limit: "64" is text; it takes a whole number of SAs',
        ),
        (
            '[adapter]\nprofile = "ideal"\n[port.vm1]\n\nweight = 101',
            'offload.toml:5: port.vm1.weight: port "vm1": weight must be from 0 to 100, not 101',
        ),
        (
            '[adapter]\nprofile = "82576"\n[port.a]\nreserve = 200\n[port.b]\nreserve = 57',
            'offload.toml:6: port.b.reserve: port "b": a reserve of 57 makes 257 slots reserved in all, and '
            "the 82576 has 256; lower a reserve",
        ),
        (
            '[adapter]\nprofile = "ideal"\n[port]\nvm1 = 64',
            "offload.toml:4: port.vm1: a port is a table: write [port.vm1] above its keys",
        ),
        (
            '[adapter]\nprofile = "ideal"\n[port."a b"]',
            'offload.toml:3: port.a b: "a b" is not a name of a port: 1 to 63 letters, digits and . _ - of '
            "which the first is a letter or digit",
        ),
        ("[adapter", "offload.toml: not TOML: Expected ']' at the end of a table declaration"),
    ],
)
def test_a_mistake_has_its_place_and_a_remedy(text: str, said: str) -> None:
    """Who edits the file by hand needs the line, the key and what to write instead."""
    with pytest.raises(SettingsError) as error:
        parse(text)
    assert error.value.complaints[0].startswith(said)
    assert len(error.value.complaints) == 1


def test_all_mistakes_are_told_at_once() -> None:
    """One attempt, not one for each."""
    with pytest.raises(SettingsError) as error:
        parse("[adapter]\nenabled = 1\n[port.a]\nlimit = -1\n[port.b]\ntrust = true\n")
    assert [line.split(": ")[1] for line in error.value.complaints] == [
        "adapter.enabled",
        "adapter.profile",
        "port.a.limit",
        "port.b.trust",
    ]


def test_without_a_file_there_is_no_adapter(tmp_path: Path) -> None:
    """A host that was never given one must not carry SAs in it."""
    assert load(tmp_path, tmp_path / "state") is None
    (tmp_path / FILE).write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path, tmp_path / "state")


def test_the_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a crash must leave the former quotas, and nothing lying about."""
    ports = Ports(PROFILES["82599"])
    save(tmp_path, tmp_path / "state", ports)
    path = tmp_path / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    ports.attach("vm1", limit=64)
    save(tmp_path, tmp_path / "state", ports)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    former = path.read_text()
    ports.change("vm1", limit=0)

    def fails(_handle: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, tmp_path / "state", ports)
    assert path.read_text() == former
    assert os.listdir(tmp_path) == [FILE]
    again = load(tmp_path, tmp_path / "state")
    assert again is not None
    assert again["vm1"].limit == 64


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_configuration_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Under systemd it is: what `ikctl offload` sets must outlive a restart all the same, and must not stand
    against what an administrator writes afterwards."""
    state = tmp_path / "state"
    state.mkdir()
    (tmp_path / FILE).write_text(written := '[adapter]\nprofile = "82599"\n[port.vm1]\nlimit = 64\n')
    ports = load(tmp_path, state)
    assert ports is not None
    ports.change("vm1", limit=16)
    replace = atomic.replace

    def refused(path: Path, octets: bytes, mode: int) -> None:
        if path.parent == tmp_path:
            raise OSError(number, os.strerror(number))
        replace(path, octets, mode)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "replace", refused)
        save(tmp_path, state, ports)
    assert (tmp_path / FILE).read_text() == written
    again = load(tmp_path, state)
    assert again is not None
    assert again["vm1"].limit == 16
    (tmp_path / FILE).write_text(written.replace("64", "32"))
    edited = load(tmp_path, state)
    assert edited is not None
    assert edited["vm1"].limit == 32
    (tmp_path / FILE).write_text(written)
    for nonsense in (b"", b"\xff", (state / FILE).read_bytes()[:-20]):
        (state / FILE).write_bytes(nonsense)
        assert load(tmp_path, state) is not None


def test_what_cannot_be_kept_is_in_force_all_the_same() -> None:
    """The quotas that are shown must be those that the adapter has, also while the disk is full."""
    followed: list[int] = []

    def full(ports: Ports) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    plane: Any = AdapterPlane.__new__(AdapterPlane)
    ports, plane._save = Ports(PROFILES["82599"]), full
    plane.switch = SimpleNamespace(ports=ports, follow=lambda: followed.append(ports["host"].limit))
    with pytest.raises(OSError, match="No space"):
        plane.change_port("host", {"limit": 7})
    assert followed == [7]
