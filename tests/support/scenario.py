"""ikd on the left, charon or a second ikd on the right, with a policy for the networks behind them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import lab as place
from support.daemon import Ikd
from support.lab import Lab
from support.strongswan import Charon, merged, psk_connection, pubkey

from ikd import pki

SECRET = "a-secret-of-the-lab-0123456789"
IKD_ID, PEER_ID = "ikd.lab", "peer.lab"

TUNNEL = """\
[[rule]]
name     = "net"
local    = "{local_net}"
remote   = "{remote_net}"
tunnel   = {{ local = "{local}", remote = "{remote}" }}
security = "require"
peer     = "{peer}"
{extra}
"""


def tunnel_policy(
    local: str,
    remote: str,
    *,
    local_net: str = place.NET_LEFT,
    remote_net: str = place.NET_RIGHT,
    peer: str = PEER_ID,
    extra: str = "",
) -> str:
    """policy.toml with one tunnel rule, `net`."""
    return TUNNEL.format(
        local=local, remote=remote, local_net=local_net, remote_net=remote_net, peer=peer, extra=extra
    )


def ikev1_rule(
    *,
    more: str = "",
    keying: tuple[str, ...] = ("ikev1",),
    main: tuple[str, ...] = ("p256 aes128 sha256", "modp2048 aes128 sha256"),
    quick: tuple[str, ...] = ("aes128 sha256",),
    crypto: str = "",
) -> str:
    """The end of a rule of IKEv1 with its crypto set; `more` goes into the rule, `crypto` into the set."""
    return (
        f'keying = {json.dumps(keying)}\n{more}\ncrypto = "old"\n\n'
        f"[crypto.old]\nmain = {json.dumps(main)}\nquick = {json.dumps(quick)}\n{crypto}"
    )


def secrets(secret: str = SECRET, peer: str = PEER_ID) -> str:
    """secrets.toml with one pre-shared key."""
    return f'[[psk]]\npeers = ["{peer}"]\nsecret = "{secret}"\n'


def eventually(true: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Wait until it holds; fails naming `what`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Peers:
    """ikd left and charon right, both running, nothing negotiated."""

    lab: Lab
    ikd: Ikd
    charon: Charon

    def up(self, initiator: str) -> None:
        """Bring the Child SA up from one side, "ikd" or "charon"."""
        if initiator == "ikd":
            self.ikd.ctl("up", "net")
        else:
            self.charon.initiate()
        eventually(lambda: self.ikd.quick(), "ikd has a Child SA")
        eventually(lambda: self.charon.children(), "charon has a Child SA")

    def charon_says(self, *texts: str) -> None:
        """Wait until one of these is in charon's log."""
        eventually(lambda: any(one in self.charon.log() for one in texts), " or ".join(texts))

    def check_traffic(self) -> None:
        """Ping and TCP both ways."""
        left, right = self.lab.left, self.lab.right
        for client, server, source, destination in (
            (left, right, place.INSIDE_LEFT, place.INSIDE_RIGHT),
            (right, left, place.INSIDE_RIGHT, place.INSIDE_LEFT),
        ):
            pinged = place.ping(client, destination, source)
            assert pinged.received == pinged.sent, f"{source} -> {destination}: {pinged}"
            data = bytes(range(256)) * 2000
            assert place.tcp(client, server, destination, data, source) == data, f"{source} -> {destination}"


@dataclass(frozen=True)
class Twins:
    """ikd on both sides."""

    lab: Lab
    left: Ikd
    right: Ikd

    def __enter__(self) -> Twins:
        self.right.launch()
        self.left.launch()
        try:
            self.right.started()
            self.left.started()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.left.stop()
        self.right.stop()


def twins(
    lab: Lab,
    directory: Path,
    left_policy: str,
    right_policy: str,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    left: Mapping[str, Mapping[str, Any]] | None = None,
) -> Twins:
    """Two daemons with a policy each, sharing a pre-shared key, as left.lab and right.lab; `settings` are
    those of both, `left` more of the left one."""
    made = [
        Ikd(
            namespace,
            directory / own,
            policy,
            secrets=secrets(SECRET, f"{other}.lab"),
            settings=merged(merged({"identity": {"id": f"{own}.lab"}}, settings or {}), more),
        )
        for namespace, own, other, policy, more in (
            (lab.left, "left", "right", left_policy, left or {}),
            (lab.right, "right", "left", right_policy, {}),
        )
    ]
    return Twins(lab, *made)


def psk_peers(
    lab: Lab,
    directory: Path,
    *,
    secret: str = SECRET,
    peer: str = PEER_ID,
    extra: str = "",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    connection: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    swapped: bool = False,
) -> Peers:
    """Both sides with a pre-shared key. `secret`, `peer`, `extra` and `settings` change ikd's side,
    `connection` and `options` charon's. `swapped` puts charon on the left, behind the NAT if there is one."""
    if swapped:
        seen = place.NAT if lab.nat else lab.left_address
        nets = {"local_net": place.NET_RIGHT, "remote_net": place.NET_LEFT}
        policy = tunnel_policy(place.RIGHT, seen, peer=peer, extra=extra, **nets)
    else:
        policy = tunnel_policy(lab.left_address, place.RIGHT, peer=peer, extra=extra)
    ikd = Ikd(
        lab.right if swapped else lab.left,
        directory / "ikd",
        policy,
        secrets=secrets(secret, peer),
        settings=merged({"identity": {"id": IKD_ID}}, settings or {}),
    )
    ids = (IKD_ID, PEER_ID)
    change = connection or {}
    return Peers(
        lab,
        ikd,
        _charon(lab, directory, change, options, swapped=swapped, secret=SECRET, secret_ids=ids),
    )


def certificate_peers(
    lab: Lab,
    directory: Path,
    kind: str,
    *,
    padding: int = 0,
    peer: str = PEER_ID,
    extra: str = "",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    connection: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Peers:
    """Both sides with certificates of one authority; `padding` makes them that many octets larger."""
    now = time.time()
    authority = pki.make_ca("CN=Lab CA,O=Lab", now, kind=kind)
    filler = [f"filler-{n:03}.{'x' * 50}.lab" for n in range(padding // 66)]
    ours = pki.issue(authority, f"CN={IKD_ID},O=Lab", [IKD_ID, *filler], now=now, kind=kind)
    theirs = pki.issue(authority, f"CN={PEER_ID},O=Lab", [PEER_ID, *filler], now=now, kind=kind)
    home = directory / "ikd"
    identity = write_identity(home, authority, ours) | {"id": IKD_ID}
    ikd = Ikd(
        lab.left,
        home,
        tunnel_policy(lab.left_address, place.RIGHT, peer=peer, extra=extra),
        settings=merged({"identity": identity}, settings or {}),
    )
    charon = _charon(lab, directory, merged(pubkey(PEER_ID, IKD_ID), connection or {}), options)
    charon.credentials(authority.certificate, theirs)
    return Peers(lab, ikd, charon)


def write_identity(directory: Path, authority: pki.Pair, host: pki.Pair) -> dict[str, Any]:
    """Write a certificate, its key and its authority into `pki/`; returns the table [identity] that names
    them."""
    (directory / "pki").mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("host.pem", pki.certificate_pem(host.certificate)),
        ("host.key", pki.key_pem(host.key)),
        ("ca.pem", pki.certificate_pem(authority.certificate)),
    ):
        (directory / "pki" / name).write_bytes(content)
        (directory / "pki" / name).chmod(0o600)
    return {"certificate": "pki/host.pem", "key": "pki/host.key", "trust": ["pki/ca.pem"]}


def _charon(
    lab: Lab,
    directory: Path,
    change: Mapping[str, Any],
    options: Mapping[str, Any] | None,
    *,
    swapped: bool = False,
    **secret: Any,
) -> Charon:
    remote = "%any" if lab.nat else lab.left_address
    base = psk_connection(place.RIGHT, remote, place.NET_RIGHT, place.NET_LEFT)
    if swapped:
        base = psk_connection(lab.left_address, place.RIGHT, place.NET_LEFT, place.NET_RIGHT)
    return Charon(
        lab.left if swapped else lab.right,
        directory / "charon",
        merged(base, change),
        options=options,
        **secret,
    )
