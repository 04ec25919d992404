"""ikd.bench.ike, ikd.bench.kdc: what cannot be measured on a machine is told, with a remedy."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from ikd.bench import hosts, ike, kdc, parties


def test_kerberos_that_is_not_installed_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each half has a package of its own; a traceback of krb5kdc names neither."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert kdc.missing() == f"{kdc.INSTALL}; {kdc.INSTALL_LIBRARY}"
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/sbin/tool")
    assert kdc.missing() == kdc.INSTALL_LIBRARY


def test_each_gap_is_told_for_its_responder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent gap would look like a comparison that was not asked for."""
    monkeypatch.setattr(hosts, "strongswan_missing", lambda: True)
    monkeypatch.setattr(kdc, "missing", lambda: "install it")
    assert ike.gaps(("psk", "authip-kerberos", "authip-certificate")) == {
        ("strongswan", "psk"): parties.INSTALL_CHARON,
        ("strongswan", "authip-kerberos"): parties.NO_AUTHIP,
        ("ikd", "authip-kerberos"): "install it",
        ("strongswan", "authip-certificate"): parties.NO_AUTHIP,
    }
