"""Runs the fuzz targets for a bounded time (FUZZ_SECONDS, 30 by default) from the seeds below."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.ikev1 import IKE_SCAN, WINDOWS
from support.require import require

from ikd.authip.channel import Channel
from ikd.authip.message import notify, plain
from ikd.authip.numbers import Exchange, GssFlags, Method, N, Subject
from ikd.authip.payloads import PAYLOADS as PAYLOADS_A
from ikd.authip.payloads import Auth, AuthEntry, GssApi, GssId
from ikd.ikev2.payloads import PAYLOADS, KeyExchange, Nonce, Notify, Proposal, SecurityAssociation, Transform
from ikd.isakmp.payloads import Identification
from ikd.isakmp.payloads import Nonce as Nonce1
from ikd.wire.isakmp import HEADER_SIZE, ZERO_SPI, Header, Payload, encode_chain

ROOT = Path(__file__).resolve().parents[2]
SECONDS = int(os.environ.get("FUZZ_SECONDS", "30"))
KINDS = sorted(PAYLOADS)
KINDS_A = sorted(PAYLOADS_A)


def seeds() -> list[bytes]:
    """A first message of IKE_SA_INIT whole, each of its payloads alone, and messages of IKEv1 and
    AuthIP."""
    transforms = tuple(
        Transform(type=t, id=n, attributes=((14, 128),)) for t, n in ((1, 20), (2, 5), (4, 31))
    )
    payloads: list[Payload] = [
        SecurityAssociation(proposals=(Proposal(number=1, protocol=1, spi=b"", transforms=transforms),)),
        KeyExchange(group=31, public=bytes(32)),
        Nonce(data=bytes(32)),
        Notify(type=16388, spi=b"", data=bytes(20)),
    ]
    kind, octets = encode_chain(payloads)
    header = Header(b"\1" * 8, ZERO_SPI, kind, 0x20, 34, 0x08, 0, HEADER_SIZE + len(octets))
    single = [bytes((1, KINDS.index(one.kind))) + one.encode() for one in payloads]
    first = [b"\3" + one for one in (WINDOWS, IKE_SCAN)]
    whole = [b"\0" + header.encode() + octets, b"\2" + bytes((kind,)) + octets]
    return [*whole, *single, *first, *seeds_of_authip()]


def seeds_of_authip() -> list[bytes]:
    """A message with a token, the answer to a first message, each of its payloads, and a cookie."""
    name = GssId(name="host/a.example".encode("utf-16-le"))
    token = GssApi(flags=GssFlags.NEW, token=bytes(20))
    auth = Auth(entries=(AuthEntry(method=Method.KERBEROS), AuthEntry(method=Method.TLS)))
    acquire = [notify(N.ACQUIRE, Subject.QUICK, bytes(8), 1), *[Identification(type=1, data=bytes(4))] * 2]
    channel = Channel(b"\1" * 8, b"\2" * 8, bytes)
    answer = [auth, Nonce1(data=bytes(32)), Nonce1(data=bytes(32)), name, token]
    messages = [channel.seal(plain(Exchange.MAIN, 0, *one))[0] for one in ([token], answer, acquire)]
    single = [bytes((6, KINDS_A.index(one.kind))) + one.encode() for one in (name, token, auth, acquire[0])]
    kind, cookie = encode_chain([notify(N.DOS_COOKIE, Subject.MAIN, bytes(8))])
    return [*(b"\5" + one for one in messages), *single, b"\7" + bytes((kind,)) + cookie]


@pytest.mark.timeout(SECONDS + 90)
def test_any_octets_decode_or_are_malformed(tmp_path: Path) -> None:
    """Another exception out of the codec would be a way for a stranger to disturb the daemon."""
    require(importlib.util.find_spec("atheris") is not None, "atheris (pip install atheris)")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for n, seed in enumerate(seeds()):
        (corpus / str(n)).write_bytes(seed)
    result = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("fuzz_wire.py")),
            f"-max_total_time={SECONDS}",
            "-max_len=4096",
            f"-artifact_prefix={tmp_path}/",
            str(corpus),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
