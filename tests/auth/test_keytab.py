"""ikd.auth.keytab and ikd.auth.principal: whose keys a file has; what names look like, and whose they are."""

from __future__ import annotations

import stat
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kerberos import ALPHA, BETA, REALM, Kdc

from ikd.auth import Declined, Identity, keytab
from ikd.auth.credentials import Material
from ikd.auth.files import MaterialError, load_material
from ikd.auth.identity import IdKind, canonical
from ikd.auth.kerberos import check_keytab
from ikd.auth.keytab import Keytab, KeytabEntry
from ikd.auth.principal import Principal
from ikd.settings import IdentitySettings
from policy.peers import matches

NOW = 1_800_000_000.0


def counted(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def entry(*names: str, version: int = 2, kind: int = 18, long: int | None = None) -> bytes:
    """One entry as MIT writes it: realm, then components; a long version behind the key."""
    realm, *parts = names
    body = struct.pack(">H", len(parts)) + counted(realm.encode())
    body += b"".join(counted(part.encode()) for part in parts)
    body += struct.pack(">IIBH", 1, 1_700_000_000, version & 0xFF, kind) + counted(bytes(range(32)))
    if long is not None:
        body += struct.pack(">I", long)
    return struct.pack(">i", len(body)) + body


def test_keytab_that_kadmin_wrote(kdc: Kdc) -> None:
    """What this reads must be what MIT writes, key versions and all."""
    loaded = kdc.keytab("both.keytab", BETA, ALPHA)
    listed = kdc.run("klist", "-kte", loaded.path)
    assert [str(one) for one in loaded.principals] == [f"{BETA}@{REALM}", f"{ALPHA}@{REALM}"]
    assert len(loaded.entries) == listed.count("host/")
    assert {one.kind for one in loaded.entries} == {17, 18}
    for one in loaded.entries:
        assert any(
            line.split()[0] == str(one.version) and str(one.principal) in line
            for line in listed.splitlines()
            if str(one.principal) in line
        )


def test_entries_holes_and_versions() -> None:
    """A deleted entry leaves a hole, and versions beyond 255 stand behind the key."""
    hole = struct.pack(">i", -6) + b"hidden"
    data = b"\x05\x02" + entry("R", "host", "a", long=300) + hole + entry("R", "B$", version=7, long=0)
    data += struct.pack(">i", 0) + b"whatever follows"
    assert keytab.parse(data) == (
        KeytabEntry(Principal(("host", "a"), "R"), 300, 18),
        KeytabEntry(Principal(("B$",), "R"), 7, 18),
    )
    assert keytab.parse(b"\x05\x02") == ()


def test_names_that_read_two_ways_are_left_out() -> None:
    """A component with a slash in it would read as another principal."""
    odd = (("R", "host/a"), ("R", "a@b"), ("R", "host", "a b"), ("R@S", "host", "a"), ("R", "host", "a\\n"))
    data = b"\x05\x02" + b"".join(entry(*names) for names in odd) + entry("R", "host", "good")
    assert [str(one.principal) for one in keytab.parse(data)] == ["host/good@R"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"\x05\x01" + bytes(20), "not a keytab"),
        (b"-----BEGIN", "not a keytab"),
        (b"\x05\x02" + struct.pack(">i", 100) + b"x", "in the middle"),
        (b"\x05\x02" + struct.pack(">i", 1) + b"x", "too short"),
        (b"\x05\x02" + struct.pack(">i", 4) + b"\xff\xff\x00\x01", "too short"),
        (b"\x05\x02" + entry("R", "host", "a") * 4097, "more than 4096"),
    ],
)
def test_what_is_no_keytab(data: bytes, reason: str) -> None:
    """The administrator would be told of missing keys instead of a wrong file."""
    with pytest.raises(ValueError, match=reason):
        keytab.parse(data)


@given(st.binary(max_size=300))
def test_any_octets_parse_or_are_refused(data: bytes) -> None:
    """A file is not hostile, but one half written must not end in a traceback."""
    for whole in (data, b"\x05\x02" + data, b"\x05\x02" + struct.pack(">i", len(data)) + data):
        try:
            for one in keytab.parse(whole):
                assert Principal.parse(str(one.principal)) == one.principal
        except ValueError:
            pass


def made(*names: tuple[str, ...]) -> Keytab:
    """A keytab of these principals, realm first."""
    data = b"\x05\x02" + b"".join(entry(*one) for one in names)
    return Keytab("/k", keytab.parse(data))


def test_which_principal_is_ours() -> None:
    """Active Directory gives tickets to the account only; peers ask for host/NAME."""
    both = made(("R", "HTTP", "a"), ("R", "host", "a"), ("R", "A$"))
    assert (str(both.client), str(both.service)) == ("A$@R", "host/a@R")
    assert str(made(("R", "host", "b"), ("R", "host", "a")).client) == "host/b@R"
    assert str(made(("R", "A$")).service) == "A$@R"
    assert made(("R", "HTTP", "a")).client is None


# Principals ----------------------------------------------------------------------------------------------


def test_principals() -> None:
    """Which names stand for machines decides who may be one."""
    whole = Principal.parse("host/db.example@EXAMPLE")
    assert (whole.parts, whole.realm, str(whole)) == (
        ("host", "db.example"),
        "EXAMPLE",
        "host/db.example@EXAMPLE",
    )
    for text in ("host/a", "HOST/a@R", "A$@R"):
        assert Principal.parse(text).machine, text
    for text in ("a@R", "ldap/a@R", "a/b/c", "host@R"):
        assert not Principal.parse(text).machine, text
    assert whole.names("EXAMPLE") == ("host/db.example@EXAMPLE", "host/db.example")
    assert whole.names("OTHER") == ("host/db.example@EXAMPLE",)
    assert Principal.parse("clerk@EXAMPLE").names("EXAMPLE") == ("clerk@EXAMPLE",)


@pytest.mark.parametrize(
    "text",
    ["", "@R", "a@", "a//b", "/a", "a/", "a@b@c", "a b", "a\\/b", "a\n", "a@b/c", "\x7f", "CN=db,O=Corp$@R"],
)
def test_texts_that_are_no_principals(text: str) -> None:
    """They would be compared with rules as if they were."""
    with pytest.raises(ValueError, match="principal"):
        Principal.parse(text)


def test_nobody_can_claim_a_proven_principal() -> None:
    """An ID payload that prints like a Kerberos name would pass for it wherever texts are compared."""
    proven = Identity(IdKind.PRINCIPAL, b"host/a@R")
    assert str(proven) == "principal:host/a@R"
    for kind in (IdKind.FQDN, IdKind.RFC822_ADDR, IdKind.KEY_ID):
        claimed = Identity(kind, b"principal:host/a@R")
        assert str(claimed) not in (str(proven), "host/a@R")
        assert claimed != proven
    with pytest.raises(ValueError, match="proven with a keytab"):
        canonical("principal:a@R")


@pytest.mark.parametrize("name", ["host/db@CORP.EXAMPLE", "host/db.corp.example", "CORP\\db$"])
@pytest.mark.parametrize("kind", [IdKind.FQDN, IdKind.RFC822_ADDR])
def test_a_name_in_a_certificate_is_no_principal(kind: IdKind, name: str) -> None:
    """An authority for mail may write any local part into a certificate, and a slash is one's right: it must
    not pass for the machine that a rule names as Kerberos or NTLM would prove it."""
    assert not matches(name, str(Identity(kind, name.encode())))


# The file of ikd.toml ------------------------------------------------------------------------------------


def load(directory: Path, name: str = "k", state: Path | None = None) -> Material:
    return load_material(directory, IdentitySettings(keytab=name), NOW, state)


def complaint(directory: Path) -> str:
    """The one thing that is wrong."""
    with pytest.raises(MaterialError) as caught:
        load(directory)
    (text,) = caught.value.complaints
    assert "identity.keytab" in text
    return text


def test_keytab_is_loaded(kdc: Kdc, tmp_path: Path) -> None:
    """Its names, a ticket cache of its own, and a record of replays where the state is."""
    (tmp_path / "k").write_bytes((kdc.base / "alpha.keytab").read_bytes())
    (tmp_path / "k").chmod(0o600)
    material = load(tmp_path, state=tmp_path)
    assert material.warnings == ()
    assert material.keytab is not None
    assert str(material.keytab.service) == f"{ALPHA}@{REALM}"
    assert material.keytab.replays == str(tmp_path / "kerberos.replays")
    assert load(tmp_path, state=tmp_path / "none").keytab != material.keytab
    # tickets got with an old key do not outlive it
    (tmp_path / "k").write_bytes((kdc.base / "beta.keytab").read_bytes())
    other = load(tmp_path).keytab
    assert other is not None
    assert other.cache != material.keytab.cache


def test_complaints_about_the_file(kdc: Kdc, tmp_path: Path) -> None:
    """Each before the first negotiation fails, with the file's name."""
    assert "no such file" in complaint(tmp_path)
    path = tmp_path / "k"
    path.write_bytes((kdc.base / "alpha.keytab").read_bytes())
    path.chmod(0o640)
    assert f"others may read it (mode 0640); run: chmod 600 {path}" in complaint(tmp_path)
    path.chmod(0o600)
    path.write_bytes(b"a text")
    assert "not a keytab" in complaint(tmp_path)


def test_warning_without_a_machine(kdc: Kdc, tmp_path: Path) -> None:
    """A web server's keytab loads, and nothing would work with it."""
    kdc.principal("HTTP/only.example.test")
    made = kdc.keytab("only.keytab", "HTTP/only.example.test")
    path = tmp_path / "k"
    path.write_bytes(Path(made.path).read_bytes())
    path.chmod(0o600)
    (warning,) = load(tmp_path).warnings
    assert f"keytab {path} has keys of HTTP/only.example.test@{REALM}, but of no machine" in warning
    path.write_bytes(b"\x05\x02")
    (warning,) = load(tmp_path).warnings
    assert "keys of nobody" in warning


def test_daemon_loads_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other methods must go on, and the administrator must know what is missing."""
    monkeypatch.setitem(sys.modules, "gssapi", None)
    path = tmp_path / "k"
    path.write_bytes(b"\x05\x02" + entry("R", "host", "a"))
    path.chmod(0o600)
    material = load(tmp_path)
    assert material.keytab is not None
    (warning,) = material.warnings
    assert "identity.keytab is set, but Kerberos needs the Python package gssapi" in warning
    assert "pip install 'ikd[kerberos]'" in warning


def test_library_that_refuses_the_file(kdc: Kdc, tmp_path: Path) -> None:
    """What we can read and the library cannot would fail at the first negotiation only."""
    lost = Keytab(str(tmp_path / "lost"))
    with pytest.raises(Declined, match="lost does not exist"):
        check_keytab(lost)
    check_keytab(kdc.load(kdc.base / "alpha.keytab"))
    assert stat.S_IMODE((kdc.base / "alpha.keytab").stat().st_mode) == 0o600
