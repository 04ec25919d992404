"""`ikctl bench`: its options, and what it says when it cannot."""

from __future__ import annotations

import os

import pytest

from ikd.control.cli import run


def test_unknown_authentication_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing mistake must not measure something else."""
    assert run(["bench", "ike", "--auth", "psk,dsa"]) == 1
    told = capsys.readouterr().err
    assert "dsa" in told
    assert "ecdsa-p256" in told


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback of `ip` tells nobody to use sudo."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(["bench", "ike"]) == 5
    assert "root" in capsys.readouterr().err


def test_help_needs_no_privilege(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever asks what it does must not start it."""
    assert run(["bench", "--help"]) == 0
    told = capsys.readouterr().out
    assert "ike" in told
    assert "sadb" in told
