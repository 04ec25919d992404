"""What the daemon takes from outside its files' syntax: keywords, names, systemd, and who listens to
events."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from ikd import loading, network, pki, systemd
from ikd.auth.credentials import Material
from ikd.events import Event, Started, Warned
from ikd.loading import Configuration
from ikd.publisher import Publisher
from ikd.settings import Settings, parse
from policy.parse import parse as parse_policy

NAMED = '[[rule]]\nname="vpn"\nremote="10.2.0.0/16"\nlocal="10.1.0.0/16"\ntunnel={ remote="localhost" }\n'


def test_keywords_stand_for_this_hosts_networks(tmp_path: Path) -> None:
    """`remote = "DNS"` must mean the servers of resolv.conf, and nothing when there is none."""
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# comment\nsearch example\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver x\n"
    )
    assert network.name_servers(file) == [ip_address("192.0.2.53"), ip_address("fe80::1")]
    assert network.name_servers(tmp_path / "none") == []
    assert ip_address("127.0.0.1") in network.addresses()


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        ("", ['rule "a" and 1 other: this host has nothing to prove itself with (certificate, psk); see ']),
        ('[[psk]]\nsecret = "twenty characters or more"\n', []),
    ],
)
def test_rules_without_a_credential(tmp_path: Path, secrets: str, said: list[str]) -> None:
    """Whoever forgot certificate and key would look for the mistake in the network; one sentence for all."""
    (tmp_path / "ikd.toml").touch()
    rules = "".join(f'[[rule]]\nname = "{one}"\nremote = "192.0.2.{n}"\n' for n, one in enumerate("ab", 1))
    permit = '[[rule]]\nname = "c"\nremote = "192.0.2.3"\naction = "permit"\n'
    (tmp_path / "policy.toml").write_text(rules + permit)
    if secrets:
        (tmp_path / "secrets.toml").touch(0o600)
        (tmp_path / "secrets.toml").write_text(secrets)
    found = loading.load(tmp_path).warnings
    assert len(found) == len(said)
    assert all(map(str.startswith, found, said)), found


def test_keywords_are_looked_up_only_when_used(tmp_path: Path) -> None:
    """A policy without them must load where netlink may not be asked."""
    file = tmp_path / "policy.toml"
    file.write_text('[[rule]]\nname="x"\nremote="10.0.0.9"\n')
    assert loading.keywords(tmp_path) == {}
    file.write_text('[[rule]]\nname="x"\nremote="localsubnet"\n')
    assert isinstance(loading.keywords(tmp_path), dict)
    assert loading.keywords(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("engine", "ports", "said"),
    [
        ("auto", "", 'ikd.toml: dataplane.backend: "nic", and no offload.toml says which adapter'),
        ("native", 'mode = "packet"', 'offload.toml: adapter.mode: "packet" needs the engine in Python'),
        ("auto", 'mode = "packet"', ""),
        ("native", 'mode = "crypto"', ""),
    ],
)
def test_settings_and_adapter_go_together(tmp_path: Path, engine: str, ports: str, said: str) -> None:
    """Else the daemon would end in a traceback instead of a sentence."""
    (tmp_path / "policy.toml").write_text("")
    (tmp_path / "ikd.toml").write_text(f'[dataplane]\nbackend = "nic"\nengine = "{engine}"\n')
    if ports:
        (tmp_path / "offload.toml").write_text(f'[adapter]\nprofile = "ideal"\n{ports}\n')
    try:
        loading.load(tmp_path)
        complaints: tuple[str, ...] = ("",)
    except loading.ConfigurationError as error:
        complaints = error.complaints
    assert len(complaints) == 1
    assert said in complaints[0]
    assert bool(said) == bool(complaints[0])


@pytest.mark.parametrize("again", [True, False])
def test_a_certificate_is_being_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """`ikctl cert renew` replaces the key and then the certificate: a daemon that starts in between must not
    say that they do not belong together, unless it stays like that."""
    authority = pki.make_ca("CN=Some CA", time.time(), days=2)
    old, new = (
        pki.issue(authority, "CN=this.test", ["this.test"], now=time.time(), days=1) for _ in range(2)
    )
    (tmp_path / "ikd.toml").write_text('[identity]\ncertificate = "host.pem"\nkey = "host.key"\n')
    (tmp_path / "policy.toml").write_text("")
    (tmp_path / "host.pem").write_bytes(pki.certificate_pem(old.certificate))
    key = tmp_path / "host.key"
    key.touch(mode=0o600)
    key.write_bytes(pki.key_pem(new.key))
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if again:
            (tmp_path / "host.pem").write_bytes(pki.certificate_pem(new.certificate))

    monkeypatch.setattr(time, "sleep", sleep)
    if again:
        assert loading.load(tmp_path).material.hosts
    else:
        with pytest.raises(loading.ConfigurationError, match="key"):
            loading.load(tmp_path)
    assert slept == [loading.SETTLES]


async def test_names_are_resolved_and_kept_when_the_server_is_away() -> None:
    """A name server that is down for a minute must not end a tunnel."""
    policy = parse_policy(NAMED.replace("localhost", "name.invalid"))
    known = policy.resolved({"name.invalid": (ip_address("198.51.100.7"),)})
    assert (await loading.resolved(policy)).rules[0].tunnel == policy.rules[0].tunnel
    again = await loading.resolved(policy, known)
    assert again.rules[0].tunnel is not None
    assert again.rules[0].tunnel.remote == ip_address("198.51.100.7")


async def test_name_keeps_its_address_while_it_is_offered() -> None:
    """A name with two addresses in turn must not move the tunnel with every answer."""
    policy = parse_policy(NAMED)
    offered = (await network.resolve(["localhost"]))["localhost"]
    known = policy.resolved({"localhost": (offered[-1],)})
    found = await loading.resolved(policy, known)
    assert found.rules[0].tunnel is not None
    assert found.rules[0].tunnel.remote == offered[-1]


def test_running_daemon_keeps_what_it_has_opened() -> None:
    """Ports and devices cannot change under a running daemon; everything else does."""
    running = Settings()
    text = '[daemon]\nport = 5000\ncontrol = "/x"\n[limits]\nhalf_open = 5\n[dataplane]\nmtu = 1300\n'
    wanted = Configuration(parse(text, running.directory), parse_policy(""), Material())
    kept = wanted.following(running, wanted.policy)
    assert kept.settings == replace(running, ike=replace(running.ike, half_open=5))
    assert {one.split(":")[0] for one in kept.postponed} == {"daemon.port", "daemon.control", "dataplane.mtu"}


def test_systemd_hears_what_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Type=notify, a daemon that says nothing is killed after its start."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(30)
        listener.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        systemd.notify("READY=1", "STATUS=2 rules")
        assert listener.recv(100) == b"READY=1\nSTATUS=2 rules"
        systemd.reloading()
        assert listener.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    systemd.notify("READY=1")  # nobody listens any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("3000000", "", 1.5), ("x", "", None), ("0", "", None), ("3000000", "1", None)],
)
def test_watchdog_interval(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, seconds: float | None
) -> None:
    """Pinging too seldom gets the daemon killed; pinging for another process is wrong."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert systemd.watchdog() == seconds


def test_listener_that_fails_silences_nobody() -> None:
    """A bug in the metrics must not keep an event from the log."""
    broken: list[str] = []
    heard: list[Event] = []
    publisher = Publisher(lambda where, error: broken.append(where))

    def fails(event: Event) -> None:
        raise ZeroDivisionError

    publisher.listen(fails, frozenset({Started}))
    end: Callable[[], None] = publisher.listen(heard.append)
    started, warned = Started(version="1", plane="", rules=1), Warned(about="", warning="")
    publisher.publish(started)
    publisher.publish(warned)
    assert heard == [started, warned]
    assert broken == ["a listener to Started"]
    end()
    publisher.publish(warned)
    assert len(heard) == 2


def test_source_is_asked_once_for_each_kind() -> None:
    """Who listens is worked out once and not with every event: there are a dozen in every handshake."""
    asked: list[type[Event]] = []

    def source(kind: type[Event]) -> None:
        asked.append(kind)

    publisher = Publisher(lambda where, error: None)
    publisher.add_source(source)
    for _ in range(3):
        publisher.publish(Warned(about="", warning=""))
    assert asked == [Warned]
    publisher.rewire()
    publisher.publish(Warned(about="", warning=""))
    assert asked == [Warned, Warned]
