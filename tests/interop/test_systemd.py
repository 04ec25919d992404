"""The unit, with systemd as the first process of a container: everything docs/operator.md promises of it."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.containers import Podman, why_not
from support.machine import Machine
from support.require import require
from support.scenario import eventually

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

RIGHTS = {"net_admin": 12, "net_raw": 13, "chown": 0}


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a rule for each other."""
    directory = Path(tempfile.mkdtemp(prefix="ikd-"))
    try:
        reason = why_not(directory)
        require(not reason, f"containers: {reason}")
        with Podman(directory) as podman:
            numbers = {"alpha": 11, "beta": 12}
            alpha, beta = (
                Machine(podman, directory, name, numbers[name], other, f"{podman.subnet}.{numbers[other]}")
                for name, other in (("alpha", "beta"), ("beta", "alpha"))
            )
            yield alpha, beta
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def running(machines: tuple[Machine, Machine]) -> Machine:
    """A machine whose service has been started and says that it serves."""
    machine = machines[0]
    machine.write_policy(machine.policy)
    machine("systemctl", "reset-failed", "ikd.service", check=False)
    machine("systemctl", "start", "ikd.service")
    return machine


def pid(machine: Machine) -> int:
    return int(machine.show("MainPID"))


def status_of(machine: Machine, process: int) -> dict[str, str]:
    """`/proc/PID/status` of a process in the machine."""
    lines = machine("cat", f"/proc/{process}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def children(machine: Machine, process: int) -> list[str]:
    """The processes that a process has started."""
    return machine("cat", f"/proc/{process}/task/{process}/children").split()


def test_service_serves_with_the_rights_it_needs(running: Machine) -> None:
    """More rights than these would be there for whoever takes the daemon over; its workers have none."""
    assert running.show("ActiveState") == "active"
    assert re.fullmatch(r"1 rule, software engine \(\w+\)", running.show("StatusText"))
    main = pid(running)
    daemon = status_of(running, main)
    assert int(daemon["CapEff"], 16) == sum(1 << number for number in RIGHTS.values())
    assert (daemon["CapBnd"], daemon["NoNewPrivs"], daemon["Seccomp"]) == (daemon["CapEff"], "1", "2")
    assert running("stat", "-c", "%U", f"/proc/{main}").strip() == "ikd"
    mounts = [line.split() for line in running("cat", f"/proc/{main}/mountinfo").splitlines()]
    *_, own = [options for _, _, _, _, place, options, *_ in mounts if place == "/etc/ikd"]
    assert own.split(",")[0] == "ro"  # what it is told to do at the next start
    workers = [status_of(running, int(one)) for one in children(running, main)]
    assert workers
    assert {(one["CapEff"], one["CapPrm"], one["NoNewPrivs"]) for one in workers} == {
        ("0" * 16, "0" * 16, "1")
    }


def test_members_of_the_group_may_use_ikctl(running: Machine) -> None:
    """Operating it must not take root; and a stranger must be told why, with the status for that."""
    done = running.ikctl("policy", "show", user="member")
    assert done.returncode == 0, done.stderr
    assert "other" in done.stdout
    refused = running.ikctl("policy", "show", user="stranger")
    assert refused.returncode == 5
    assert "join the group" in refused.stderr


def test_reload_tells_systemd_how_it_went(running: Machine) -> None:
    """`systemctl reload` that succeeds with files nobody can use would leave the administrator in belief."""
    good = running.policy
    running.write_policy(good + good.replace("other", "second"))
    running("systemctl", "reload", "ikd.service")
    assert running.show("StatusText").startswith("2 rules")
    before = running.now()
    running.write_policy(good.replace("security", "securiti"))
    assert running.attempt("systemctl", "reload", "ikd.service").returncode != 0
    (refused,) = running.entries(before, "IKD_EVENT=reload-refused")
    assert "securiti" in refused["IKD_COMPLAINTS"]
    assert running.show("ActiveState") == "active"
    assert running.show("StatusText").startswith("2 rules")


def test_datagram_starts_the_service(running: Machine) -> None:
    """A peer that calls while nobody serves must be answered when somebody does, not be lost."""
    running("systemctl", "stop", "ikd.service")
    assert running.show("ActiveState") == "inactive"
    answer, error = running.ask().communicate(timeout=60)
    assert answer.startswith("0102030405060708"), error
    assert running.show("ActiveState") == "active"


def test_ikctl_starts_the_service(running: Machine) -> None:
    """The control socket is there as long as systemd is."""
    running("systemctl", "stop", "ikd.service")
    assert running.ikctl("status", user="member").returncode == 0
    assert running.show("ActiveState") == "active"


def test_restart_loses_no_datagram(running: Machine) -> None:
    """A peer whose request falls into the gap would wait for its retransmission, or give up."""
    running.drop_in("gap", 'ExecStartPre=sh -c "until test -e /run/go; do sleep 0.1; done"')
    try:
        running("systemctl", "restart", "--no-block", "ikd.service")
        running.wait("SubState", "start-pre")
        asking = running.ask()
        assert running.show("SubState") == "start-pre"
        running("touch", "/run/go")
        answer, error = asking.communicate(timeout=60)
        assert answer.startswith("0102030405060708"), error
    finally:
        running("rm", "-f", "/run/go")
        running.drop_in("gap")


def test_connections_outlive_a_restart(machines: tuple[Machine, Machine], running: Machine) -> None:
    """Whoever updates the daemon of a gateway must not cut everybody's connections, nor hold them up long."""
    alpha, beta = machines
    workers = children(beta, pid(beta))
    restarts = []
    with alpha.talking_to(beta) as talk:
        talk.goes_on()
        for machine in (beta, alpha):
            before, began = pid(machine), time.monotonic()
            machine("systemctl", "restart", "ikd.service")
            restarts.append(time.monotonic() - began)
            assert pid(machine) != before
            talk.goes_on()
        longest = talk.end()
    assert longest < max(2, min(restarts)), f"nothing came through for {longest} s"
    left = [one for one in workers if beta.attempt("test", "-e", f"/proc/{one}").returncode == 0]
    assert left == workers, "packets went on by chance: their process did not"
    assert beta.entries("IKD_EVENT=taken-over")


def test_killed_daemon_comes_back(running: Machine) -> None:
    """A crash must not need anybody to be awake."""
    before, number = pid(running), int(running.show("NRestarts"))
    running("kill", "-9", str(before))
    running.wait("NRestarts", str(number + 1))
    running.wait("ActiveState", "active")
    assert pid(running) != before


def test_daemon_that_hangs_is_replaced(running: Machine) -> None:
    """A loop that does not turn answers nobody, and looks alive to everything but the watchdog."""
    running.drop_in("watchdog", "WatchdogSec=3s")
    try:
        running("systemctl", "restart", "ikd.service")
        before, number, since = pid(running), int(running.show("NRestarts")), running.now()
        running("kill", "-STOP", str(before))
        eventually(lambda: int(running.show("NRestarts")) > number, "another daemon")
        running.wait("ActiveState", "active")
        messages = [one["MESSAGE"] for one in running.entries(since)]
        assert any("Watchdog timeout" in one for one in messages)
        assert any("most recent call first" in one for one in messages), "where it hung is not said"
    finally:
        running.drop_in("watchdog")
        running("systemctl", "restart", "ikd.service")


def test_configuration_nobody_can_use_is_not_tried_again(running: Machine) -> None:
    """A loop of starts would bury the message that says what to mend. (A peer's datagram may start it.)"""
    before = running.now()
    running.write_policy("[[rule]]\nnam = 1\n")
    assert running.attempt("systemctl", "restart", "ikd.service").returncode != 0
    time.sleep(1.5)  # RestartSec is one
    said = [one["MESSAGE"] for one in running.entries(before)]
    assert any("status=78/CONFIG" in one for one in said)
    assert any("policy.toml" in one and "nam" in one for one in said)
    assert not any("Scheduled restart" in one for one in said)


def test_journal_has_the_keys_of_events(running: Machine) -> None:
    """Whoever watches for an event filters by its name and keys, and not by a sentence that may change."""
    running("systemctl", "stop", "ikd.service")
    before = running.now()
    running("systemctl", "start", "ikd.service")
    assert running.ikctl("up", "other").returncode == 0
    (started,) = running.entries(before, "IKD_EVENT=started")
    assert (started["PRIORITY"], started["SYSLOG_IDENTIFIER"]) == ("6", "ikd")
    assert (started["IKD_GROUP"], started["IKD_RULES"]) == ("daemon", "1")
    assert started["_SYSTEMD_UNIT"] == "ikd.service"
    (proven,) = running.entries(before, "IKD_EVENT=peer-authenticated")
    assert (proven["IKD_RULE"], proven["IKD_IDENTITY"], proven["IKD_GROUP"]) == ("other", "beta.lab", "auth")


def test_stop_leaves_nothing(running: Machine) -> None:
    """What stays behind blocks the host's traffic with nobody to ask why."""
    assert "ikd0" in running("ip", "-br", "link")
    assert "table inet ikd" in running("nft", "list", "tables")
    main = pid(running)
    processes = [str(main), *children(running, main)]
    running("systemctl", "stop", "ikd.service")
    left = [one for one in processes if running.attempt("test", "-e", f"/proc/{one}").returncode == 0]
    assert not left
    assert "ikd0" not in running("ip", "-br", "link")
    assert running("nft", "list", "tables") == ""
    rules = running("ip", "rule").splitlines()
    assert [one.split(":")[0] for one in rules] == ["0", "32766", "32767"]
    routes = running("ip", "route", "show", "table", "all")
    assert "ikd" not in routes
