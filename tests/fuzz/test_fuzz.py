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

from ikd.ikev2.payloads import PAYLOADS, KeyExchange, Nonce, Notify, Proposal, SecurityAssociation, Transform
from ikd.wire.isakmp import HEADER_SIZE, ZERO_SPI, Header, Payload, encode_chain

ROOT = Path(__file__).resolve().parents[2]
SECONDS = int(os.environ.get("FUZZ_SECONDS", "30"))
KINDS = sorted(PAYLOADS)


def seeds() -> list[bytes]:
    """A first message of IKE_SA_INIT whole, each of its payloads alone, and first messages of IKEv1."""
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
    return [b"\0" + header.encode() + octets, b"\2" + bytes((kind,)) + octets, *single, *first]


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
