"""ikd.auth.files: credentials from a directory; every complaint names file, key and remedy, and no secret."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from support.certificates import DAY, KINDS, NOW, authority, below, build, der, dns, host, key

from ikd import pki
from ikd.auth.credentials import Material
from ikd.auth.files import MaterialError, load_material, load_secrets
from ikd.auth.revocation import CrlCheck
from ikd.auth.secret_tables import Secrets
from ikd.pki import Pair
from ikd.settings import IdentitySettings

ROOT = authority()
SUB = below(ROOT, "Sub")
LEAF = host(SUB)


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    """A file with this mode, whatever the umask is."""
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A configuration directory with everything in order."""
    write(tmp_path / "host.pem", pki.certificate_pem(LEAF.certificate, SUB.certificate), 0o644)
    write(tmp_path / "host.key", pki.key_pem(LEAF.key))
    write(tmp_path / "ca.pem", pki.certificate_pem(ROOT.certificate), 0o644)
    return tmp_path


WHOLE = IdentitySettings(certificate="host.pem", key="host.key", trust=("ca.pem",))


def complaints(directory: Path, settings: IdentitySettings) -> tuple[str, ...]:
    """What is wrong; every line names a file."""
    with pytest.raises(MaterialError) as caught:
        load_material(directory, settings, NOW)
    return caught.value.complaints


def load(directory: Path, settings: IdentitySettings = WHOLE, now: float = NOW) -> Material:
    """Everything."""
    return load_material(directory, settings, now)


def test_everything_in_order(directory: Path) -> None:
    """A good directory would not load."""
    material = load(directory)
    assert material.hosts[0].chain == (LEAF.certificate, SUB.certificate)
    assert material.anchors == (ROOT.certificate,)
    assert (material.identity, material.keys, material.crls, material.warnings) == (None, (), (), ())
    assert load(directory, IdentitySettings()) == Material()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [Encoding.PEM, Encoding.DER])
def test_keys_of_every_kind_and_form(tmp_path: Path, kind: str, form: Encoding) -> None:
    """A key that openssl or another CA wrote would not load."""
    pair = host(ROOT, kind=kind)
    forms = [PrivateFormat.PKCS8]
    if not kind.startswith("ed"):
        forms.append(PrivateFormat.TraditionalOpenSSL)
    for private in forms:
        write(tmp_path / "k", pair.key.private_bytes(form, private, NoEncryption()))
        write(tmp_path / "c", pair.certificate.public_bytes(form))
        assert load(tmp_path, IdentitySettings(certificate="c", key="k")).hosts[0].leaf == pair.certificate


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o666, 0o644])
def test_private_key_that_others_can_read(directory: Path, mode: int) -> None:
    """A key everybody on the host can read proves nothing about the host."""
    (directory / "host.key").chmod(mode)
    (said,) = complaints(directory, WHOLE)
    assert f"(mode {mode:04o}); run: chmod 600 {directory / 'host.key'}" in said


def test_private_key_of_somebody_else(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the file can change it."""
    if os.geteuid() == 0:
        os.chown(directory / "host.key", 4711, -1)
        owner, we = 4711, 0
    else:  # only root can give a file away: be somebody else instead
        owner, we = os.geteuid(), 4712
        monkeypatch.setattr(os, "geteuid", lambda: 4712)
    (said,) = complaints(directory, WHOLE)
    assert f"belongs to user {owner}; run: chown {we} " in said


def test_root_accepts_what_belongs_to_the_daemons_user(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ikctl policy check` as root must not refuse what the daemon, which has a user of its own, takes."""
    if os.geteuid() == 0:
        for path in (directory, directory / "host.key"):
            os.chown(path, 4711, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load(directory, WHOLE).hosts


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("host.key", b"", "no private key in PEM or DER form"),
        ("host.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key"),
        ("host.key", pki.key_pem(key(number=44)), "this is not the key of certificate CN=peer.example"),
        ("host.key", pki.key_pem(key("p192-like")), "must be RSA, ECDSA on P-256"),
        (
            "host.key",
            LEAF.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw")),
            "openssl pkey",
        ),
        ("host.pem", b"garbage", "no certificate in PEM or DER form"),
        ("host.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate"),
        ("host.pem", pki.certificate_pem(SUB.certificate, LEAF.certificate), "must begin with our own"),
        ("ca.pem", pki.key_pem(ROOT.key), "no certificate in PEM or DER form"),
        ("secrets.toml", b"[[psk]]\n", "psk[1].secret: exactly one of"),
    ],
)
def test_file_that_is_not_what_it_should_be(directory: Path, name: str, data: bytes, reason: str) -> None:
    """The daemon would start without a credential, or with a traceback."""
    write(directory / name, data)
    said = complaints(directory, WHOLE)
    assert len(said) == 1
    assert str(directory) in said[0]
    assert reason in said[0]


def test_certificate_of_an_authority_is_no_host_certificate(directory: Path) -> None:
    """Peers refuse it; better to say so at the start."""
    write(directory / "host.pem", pki.certificate_pem(SUB.certificate))
    write(directory / "host.key", pki.key_pem(SUB.key))
    (said,) = complaints(directory, WHOLE)
    assert "CN=Sub is a CA certificate; issue a host certificate: ikctl cert issue" in said


HEALTH = pki.issue(
    SUB, "peer.example", ["peer.example"], now=NOW, days=0.2, key=key(number=1), eku=["health"]
)
USER = pki.issue(
    SUB, "alice@corp.example", ["alice@corp.example"], now=NOW, key=key(number=2), eku=["client"]
)
THREE = replace(
    WHOLE,
    health_certificate="health.pem",
    health_key="health.key",
    user_certificate="user.pem",
    user_key="user.key",
)


@pytest.fixture
def three(directory: Path) -> Path:
    """A directory with a health certificate and a user's, besides the machine's."""
    for name, pair in (("health", HEALTH), ("user", USER)):
        write(directory / f"{name}.pem", pki.certificate_pem(pair.certificate, SUB.certificate))
        write(directory / f"{name}.key", pki.key_pem(pair.key))
    return directory


def test_certificates_of_health_and_of_the_user(three: Path) -> None:
    """A rule that demands health would find none; or a machine pass for its user, or the user for it."""
    material = load(three, THREE)
    assert [one.leaf for one in material.hosts] == [LEAF.certificate, HEALTH.certificate]
    assert material.user is not None
    assert material.user.chain == (USER.certificate, SUB.certificate)
    assert material.warned(NOW) == ()  # a health certificate is always about to expire
    assert load(three, WHOLE).user is None
    (said,) = material.warned(NOW + DAY)
    assert "our health certificate CN=peer.example expired" in said


@pytest.mark.parametrize(
    ("settings", "files", "reason"),
    [
        (THREE, {"health.key": "user.key"}, "health.key: this is not the key of certificate CN=peer.example"),
        (THREE, {"user.key": "host.key"}, "identity.user_certificate must begin with our own certificate"),
        (THREE, {"health.pem": "host.pem", "health.key": "host.key"}, "lacks the extended key usage"),
        (replace(THREE, user_key=None), {}, "identity.user_certificate is set but identity.user_key is not"),
        (replace(THREE, health_certificate="none.pem"), {}, "(identity.health_certificate of ikd.toml)"),
    ],
)
def test_files_of_the_other_certificates(
    three: Path, settings: IdentitySettings, files: dict[str, str], reason: str
) -> None:
    """The complaint would be about the machine's certificate, or there would be none."""
    for name, source in files.items():
        write(three / name, (three / source).read_bytes())
    (said,) = complaints(three, settings)
    assert reason in said


def test_all_complaints_at_once(directory: Path) -> None:
    """One restart for each mistake."""
    settings = IdentitySettings(
        id="a b", certificate="hst.pem", key="host.key", trust=("nowhere.pem",), crls=("ca.pem",)
    )
    said = complaints(directory, settings)
    assert [part in line for part, line in zip(("hst.pem: no such file", "nowhere.pem"), said, strict=False)]
    assert any("did you mean host.pem?" in line for line in said)
    assert any("identity.trust" in line for line in said)
    assert any("identity.id" in line for line in said)


def test_certificate_without_key(directory: Path) -> None:
    """Half a setting would be ignored in silence."""
    assert "identity.key is not" in complaints(directory, IdentitySettings(certificate="host.pem"))[0]
    assert "identity.certificate is not" in complaints(directory, IdentitySettings(key="host.key"))[0]


def test_directories_of_certificates_and_lists(directory: Path) -> None:
    """A directory of anchors, other files beside them left alone, lists in both forms."""
    trust = directory / "trust"
    trust.mkdir()
    other = authority("Other")
    write(trust / "b.crt", der(other)[0])
    write(trust / "a.pem", pki.certificate_pem(ROOT.certificate))
    write(trust / "README", b"not a certificate")
    lists = [pki.make_crl(ca, [], NOW) for ca in (ROOT, SUB, other)]
    write(directory / "all.pem", lists[0].public_bytes(Encoding.PEM) + lists[1].public_bytes(Encoding.PEM))
    write(directory / "one.crl", lists[2].public_bytes(Encoding.DER))
    settings = IdentitySettings(trust=("trust",), crls=("all.pem", "one.crl"), crl_check="require")
    material = load(directory, settings)
    assert material.anchors == (ROOT.certificate, other.certificate)
    assert material.crls == tuple(lists)
    assert material.crl_check is CrlCheck.REQUIRE


def test_warnings_before_it_is_too_late(directory: Path) -> None:
    """The tunnel would break one night without a word before."""
    crl = pki.make_crl(ROOT, [], NOW, days=1)
    write(directory / "crl.pem", crl.public_bytes(Encoding.PEM))
    settings = IdentitySettings(
        id="wrong.example", certificate="host.pem", key="host.key", trust=("ca.pem",), crls=("crl.pem",)
    )

    def warned(now: float) -> str:
        return "\n".join(load(directory, settings, now).warned(now))

    assert "identity.id is wrong.example, but our certificate names peer.example" in warned(NOW)
    assert "expires" not in warned(NOW)
    assert "our certificate CN=peer.example expires 2028-01-14" in warned(NOW + 355 * DAY)
    assert "our certificate CN=peer.example expired 2028-01-14" in warned(NOW + 400 * DAY)
    assert "is not valid before" in warned(NOW - 10 * DAY)
    assert "revocation list of CN=Root is out of date since 2027-01-16" in warned(NOW + 2 * DAY)


def test_expired_credentials_still_load(directory: Path) -> None:
    """One expired certificate must not keep the pre-shared keys of other rules from working."""
    old = Pair(build(ROOT, extensions=[dns("peer.example")], end=NOW - 1), key())
    write(directory / "host.pem", pki.certificate_pem(old.certificate))
    write(directory / "secrets.toml", b'[[psk]]\nsecret = "x"\n')
    assert len(load(directory).keys) == 1


# secrets.toml --------------------------------------------------------------------------------------------


def secrets(tmp_path: Path, text: str) -> Path:
    """A secrets.toml."""
    return write(tmp_path / "secrets.toml", text.encode())


def wrong(tmp_path: Path, text: str) -> str:
    """What is wrong with it."""
    with pytest.raises(MaterialError) as caught:
        load_secrets(secrets(tmp_path, text))
    return "\n".join(caught.value.complaints)


def test_keys_in_every_encoding(tmp_path: Path) -> None:
    """Two hosts whose files say the same key in different forms would not come together."""
    octets = "schlüssel".encode()
    keys = load_secrets(
        secrets(
            tmp_path,
            f"""
            [[psk]]
            peers = ["VPN.example", "10.0.0.9", "2001:DB8::9", "*.branch.example", "10.1.0.0/16", "cn = a"]
            local = "hub.example"
            secret = "schlüssel"
            [[psk]]
            peers = ["b.example"]
            secret_hex = "{octets.hex()}"
            [[psk]]
            peers = ["c.example"]
            secret_hex = "0x{octets.hex().upper()}"
            [[psk]]
            peers = ["d.example"]
            secret_base64 = "{base64.b64encode(octets).decode()}"
            [[psk]]
            secret_base64 = "0s{base64.b64encode(octets).decode()}"
            """,
        )
    ).keys
    assert {bytes(entry.secret) for entry in keys} == {octets}
    assert keys[0].peers == (
        "VPN.example",
        "10.0.0.9",
        "2001:db8::9",
        "*.branch.example",
        "10.1.0.0/16",
        "CN=a",
    )
    assert (keys[0].local, keys[4].peers, keys[4].local) == ("hub.example", (), None)
    assert load_secrets(secrets(tmp_path, "")) == Secrets()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[[psk]]\npears = ["a"]\nsecret = "x"', 'psk[1].pears: unknown key, did you mean "peers"?'),
        ('[[psk]]\nsecret = "x"\nzzz = 1', "psk[1].zzz: unknown key; known:"),
        ('[[psc]]\nsecret = "x"', "psc: unknown table, only [[psk]] and [[ntlm]] are known"),
        ('[psk]\nsecret = "x"', "write [[psk]] with two brackets"),
        ("psk = [1]", "write [[psk]] with two brackets"),
        ('[[psk]]\npeers = "a.example"\nsecret = "x"', 'psk[1].peers: a list, such as ["a.example"]'),
        ('[[psk]]\npeers = []\nsecret = "x"', "psk[1].peers: a list of identities"),
        ('[[psk]]\npeers = ["a b"]\nsecret = "x"', 'psk[1].peers: "a b" is not an identity'),
        ('[[psk]]\npeers = [7]\nsecret = "x"', "psk[1].peers: must be text"),
        ('[[psk]]\nlocal = 7\nsecret = "x"', "psk[1].local: must be text"),
        ('[[psk]]\nlocal = "10.0.0.0/8"\nsecret = "x"', 'psk[1].local: "10.0.0.0/8" is not an identity'),
        ('[[psk]]\npeers = ["a"]', "psk[1].secret: exactly one of secret, secret_hex, secret_base64"),
        (
            '[[psk]]\nsecret = "x"\nsecret_hex = "00"',
            "exactly one of secret, secret_hex, ",
        ),
        ('[[psk]]\nsecret = ""', "psk[1].secret: is empty"),
        ("[[psk]]\nsecret = 7", "psk[1].secret: must be text in quotes"),
        ('[[psk]]\nsecret_hex = "abc"', "psk[1].secret_hex: not hex digits"),
        ('[[psk]]\nsecret_base64 = "a"', "psk[1].secret_base64: not base64 digits"),
        ('[[psk]]\nsecret_base64 = "ä==="', "psk[1].secret_base64: not base64 digits"),
        ('[[psk]]\nsecret = "x', "Unterminated string (at end of document)"),
    ],
)
def test_mistakes_in_secrets(tmp_path: Path, text: str, reason: str) -> None:
    """A typing error would leave a peer without its key, found out when it calls."""
    said = wrong(tmp_path, text)
    assert reason in said
    assert str(tmp_path / "secrets.toml") in said


@pytest.mark.parametrize(
    ("first", "second", "whom"),
    [
        ('peers = ["a.example"]', 'peers = ["b.example", "A.EXAMPLE"]', '"A.EXAMPLE"'),
        ("", "", "any peer"),
        ('peers = ["*.example"]', 'peers = ["*.example"]', '"*.example"'),
        ('peers = ["a"]\nlocal = "hub"', 'peers = ["a"]\nlocal = "HUB"', '"a"'),
    ],
)
def test_second_key_for_the_same_peer(tmp_path: Path, first: str, second: str, whom: str) -> None:
    """The key that is changed would not be the one in use."""
    said = wrong(tmp_path, f'[[psk]]\n{first}\nsecret = "x"\n[[psk]]\n{second}\nsecret = "y"')
    assert said.endswith(f"psk[2].peers: psk[1] has a key for {whom} already")


def test_same_peer_for_other_identities_of_ours(tmp_path: Path) -> None:
    """A gateway with two names needs two keys for one peer."""
    text = '[[psk]]\npeers = ["a", "a"]\nlocal = "{}"\nsecret = "x"\n'
    both = text.format("hub1") + text.format("hub2") + '[[psk]]\npeers = ["a"]\nsecret = "z"\n'
    assert len(load_secrets(secrets(tmp_path, both)).keys) == 3


def test_secrets_that_others_can_read(tmp_path: Path) -> None:
    """Mode 0600, and refused when others can read it: who has the key is either host."""
    path = secrets(tmp_path, '[[psk]]\nsecret = "x"')
    path.chmod(0o640)
    with pytest.raises(MaterialError, match=r"mode 0640\); run: chmod 600"):
        load_secrets(path)
    path.chmod(0o400)
    assert len(load_secrets(path).keys) == 1


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\0", b"[[psk]]\nsecret = 'a\x01b'", b"[" * 50, b"psk = 1"])
def test_any_file_is_complaint(tmp_path: Path, data: bytes) -> None:
    """A traceback instead of a reason."""
    with pytest.raises(MaterialError):
        load_secrets(write(tmp_path / "secrets.toml", data))
    with pytest.raises(MaterialError, match="No such file"):
        load_secrets(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    "text",
    [
        '[[psk]]\nsecret = "hunter2hunter2',
        '[[psk]]\nsecret_hex = "hunter2hunter2"',
        '[[psk]]\nsecret_base64 = "hunter2hunter2!"',
        '[[psk]]\nsecret = "hunter2hunter2" x',
        "[[psk]]\nsecret = hunter2hunter2",
        '[[psk]]\nsecret = ["hunter2hunter2"]',
        '[[psk]]\nsecret = "hunter2hunter2"\nsecret = "hunter2hunter2"',
        '[[psk]]\nsecret = "hunter2hunter2"\nsecrte = "hunter2hunter2"',
        '[[psk]]\nsecret = "hunter2hunter2"\nsecret_hex = "hunter2hunter2"',
    ],
)
def test_no_complaint_shows_a_secret(tmp_path: Path, text: str) -> None:
    """Complaints go to the log and over the control socket."""
    assert "hunter2" not in wrong(tmp_path, text)


# NTLM accounts -------------------------------------------------------------------------------------------


def test_accounts(tmp_path: Path) -> None:
    """Nobody could prove to be anybody; a hash in place of the password must be the same account."""
    found = load_secrets(
        secrets(
            tmp_path,
            """
            [[ntlm]]
            account = 'CORP\\clerk'
            password = "Password"
            [[ntlm]]
            account = "CORP\\\\ALPHA$"
            nt_hash = "A4F49C406510BDCAB6824EE7C30FD852"
            use = ["user", "machine"]
            """,
        )
    )
    clerk, alpha = found.accounts
    assert (clerk.name, alpha.name) == ("CORP\\clerk", "CORP\\ALPHA$")
    assert clerk.nt_hash == alpha.nt_hash
    assert (clerk.use, alpha.use) == (("accept",), ("machine", "user"))
    assert found.keys == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[ntlm]", "ntlm: write [[ntlm]] with two brackets"),
        ("[[ntlm]]\npassword = 'x'", "ntlm[1].account: text such as"),
        ("[[ntlm]]\naccount = 'clerk'\npassword = 'x'", 'ntlm[1].account: "clerk" is not DOMAIN'),
        ("[[ntlm]]\naccount = 'A\\*'\npassword = 'x'", "characters that no account has"),
        ("[[ntlm]]\naccount = 'A\\b'", "exactly one of password, nt_hash is needed, not 0"),
        ("[[ntlm]]\naccount = 'A\\b'\npassword = 'x'\nnt_hash = '00'", "is needed, not 2"),
        ("[[ntlm]]\naccount = 'A\\b'\npassword = ''", "ntlm[1].password: is empty"),
        ("[[ntlm]]\naccount = 'A\\b'\npassword = 7", "ntlm[1].password: must be text in quotes"),
        ("[[ntlm]]\naccount = 'A\\b'\nnt_hash = 'xyz'", "nt_hash: not 32 hexadecimal digits"),
        ("[[ntlm]]\naccount = 'A\\b'\nnt_hash = '0011'", "nt_hash: not 32 hexadecimal digits"),
        ("[[ntlm]]\nacount = 'A\\b'\npassword = 'x'", 'acount: unknown key, did you mean "account"?'),
        ("[[ntlm]]\naccount = 'A\\b'\npassword = 'x'\nuse = 'user'", 'use: a list, such as ["user"]'),
        ("[[ntlm]]\naccount = 'A\\b'\npassword = 'x'\nuse = []", 'use: a list of "accept", "machine"'),
        ("[[ntlm]]\naccount = 'A\\b'\npassword = 'x'\nuse = ['all']", 'use: a list of "accept", "machine"'),
        ("[[ntlm]]\naccount = 'A\\b'\npassword = 'x'\nuse = ['machine']", "whose name ends in $"),
        (
            "[[ntlm]]\naccount = 'A\\b'\npassword = 'x'\n[[ntlm]]\naccount = 'a\\B'\npassword = 'y'",
            "ntlm[2].account: ntlm[1] has a\\B already",
        ),
    ],
)
def test_mistakes_in_accounts(tmp_path: Path, text: str, reason: str) -> None:
    """A typing error would be found out by the peer that is refused."""
    assert reason in wrong(tmp_path, text)


@pytest.mark.parametrize("line", ["password = 'hunter2'x", "nt_hash = 'hunter2'", "password = ['hunter2']"])
def test_no_complaint_shows_a_password(tmp_path: Path, line: str) -> None:
    """Complaints go to the log and over the control socket."""
    assert "hunter2" not in wrong(tmp_path, f"[[ntlm]]\naccount = 'A\\b'\n{line}")


# Groups and tickets --------------------------------------------------------------------------------------


def test_accounts_groups_and_tickets_reach_the_material(tmp_path: Path) -> None:
    """A setting that is read and then forgotten."""
    secrets(tmp_path, "[[ntlm]]\naccount = 'CORP\\clerk'\npassword = 'x'")
    write(tmp_path / "groups.toml", b"['CORP\\HR']\nmembers = ['CORP\\clerk']", 0o644)
    cache = "FILE:/run/user/1000/krb5cc"
    material = load(tmp_path, IdentitySettings(groups="groups.toml", user_tickets=cache))
    assert [one.name for one in material.accounts] == ["CORP\\clerk"]
    assert material.groups.of(("CORP\\clerk",)) == ("group:CORP\\HR",)
    assert material.tickets is not None
    assert material.tickets.cache == cache


def test_mistakes_in_groups(tmp_path: Path) -> None:
    """A group nobody is in denies nobody."""
    settings = IdentitySettings(groups="groups.toml")
    (said,) = complaints(tmp_path, settings)
    assert said == f"{tmp_path / 'groups.toml'}: No such file or directory (identity.groups of ikd.toml)"
    write(tmp_path / "groups.toml", b"[HR]\nmembers = 'x'\n[IT]\nsids = 'S-1-1-0'")
    first, second = complaints(tmp_path, settings)
    assert '"HR": members: a list, such as ["x"] (identity.groups' in first
    assert '"IT": sids: unknown key, did you mean "sid"?' in second


@pytest.mark.parametrize("name", ["/run/user/1000/krb5cc", "FILE:", "MEMORY:x", "WHAT:x"])
def test_what_is_no_ticket_cache(tmp_path: Path, name: str) -> None:
    """The library takes such a name for its default, and has no ticket."""
    (said,) = complaints(tmp_path, IdentitySettings(user_tickets=name))
    assert f'identity.user_tickets: "{name}" is no ticket cache' in said
