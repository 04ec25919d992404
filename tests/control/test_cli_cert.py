"""ikd.control.cli_cert and ikd.pki: certificates made by `ikctl cert`, from the files it leaves behind."""

from __future__ import annotations

import json
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from support.certificates import DAY, NOW, der, key
from support.rights import without_rights

from ikd import pki
from ikd.auth import Declined
from ikd.auth.chain import Trust
from ikd.auth.files import load_material
from ikd.auth.identity import Identity
from ikd.control import cli_cert
from ikd.control.cli import Context
from ikd.control.protocol import ControlError
from ikd.settings import IdentitySettings


def run(*arguments: str, as_json: bool = False) -> Result:
    """`ikctl cert ARGUMENTS`; what it raises is for the caller of `ikctl` to print."""
    found = CliRunner().invoke(cli_cert.group, list(arguments), obj=Context(None, None, as_json))
    if isinstance(found.exception, ControlError):
        raise found.exception
    return found


def answer(*arguments: str) -> Any:
    """The same, as JSON."""
    found = run(*arguments, "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.output)


def written(path: Path, pair: pki.Pair) -> None:
    """A pair as `ikctl cert` leaves it."""
    path.write_bytes(pki.certificate_pem(pair.certificate))
    path.with_suffix(".key").write_bytes(pki.key_pem(pair.key))
    path.with_suffix(".key").chmod(0o600)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files go where the command is run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p521", "ed25519", "ed448", "rsa-2048"])
def test_files_from_the_commands_are_credentials(inside: Path, kind: str) -> None:
    """The README's commands would make files that the daemon refuses."""
    answer("ca", "Example CA", "--kind", kind)
    answer("issue", "db.example", "--san", "10.0.0.9", "--san", "db@corp.example", "--kind", kind)
    settings = IdentitySettings(certificate="host.pem", key="host.key", trust=("ca.pem",))
    material = load_material(inside, settings, time.time())
    assert material.warnings == ()
    assert material.hosts[0].facts.names == ("db.example", "10.0.0.9", "db@corp.example", "CN=db.example")
    assert material.hosts[0].facts.usages == frozenset(["1.3.6.1.5.5.7.3.17"])
    chain = Trust(material.anchors).verify(material.hosts[0].sent, time.time())
    assert chain.facts.prove(Identity.parse("db.example"))


def test_certificates_of_health_and_of_users(inside: Path) -> None:
    """`--health` would make what the daemon does not take for a health certificate, or one for a year."""
    answer("ca", "Example CA")
    made = answer("issue", "db.example", "--health", "--out", "health.pem")["about"]
    assert made["days_left"] == 0
    assert made["usages"] == ["1.3.6.1.4.1.311.47.1.1", "1.3.6.1.5.5.7.3.17", "1.3.6.1.5.5.7.3.2"]
    made = answer("issue", "alice@corp.example", "--eku", "client", "--out", "user.pem")["about"]
    assert made["names"][0] == "alice@corp.example"
    assert made["days_left"] >= 364
    settings = IdentitySettings(
        health_certificate="health.pem",
        health_key="health.key",
        user_certificate="user.pem",
        user_key="user.key",
    )
    assert load_material(inside, settings, time.time()).warnings == ()
    assert (
        answer("issue", "long.example", "--health", "--days", "90", "--out", "long.pem")["about"]["days_left"]
        >= 89
    )


def test_keys_are_the_owner_s_alone(inside: Path) -> None:
    """Everybody on the host could read the authority's key."""
    run("ca", "Example CA")
    run("issue", "db.example")
    assert [(inside / name).stat().st_mode & 0o777 for name in ("ca.key", "host.key")] == [0o600, 0o600]


def test_no_file_is_overwritten(inside: Path) -> None:
    """A second `ikctl cert ca` would make all certificates worthless."""
    run("ca", "Example CA")
    before = {path.name: path.read_bytes() for path in inside.iterdir()}
    with pytest.raises(ControlError, match="File exists") as caught:
        run("ca", "Another CA")
    assert caught.value.remedy
    (inside / "ca.key").rename(inside / "elsewhere.key")
    with pytest.raises(ControlError, match="File exists"):
        run("ca", "Another CA")
    left = {path.name: path.read_bytes() for path in inside.iterdir()}
    assert left["ca.pem"] == before["ca.pem"]
    assert "ca.key" not in left  # a key that belongs to no certificate


def test_answer_tells_what_was_made(inside: Path) -> None:
    """A script could not find the files, or a person not see how long they are good."""
    made = answer("ca", "Example CA", "--days", "10", "--out", "my.pem")
    assert (made["certificate"], made["key"]) == ("my.pem", "my.key")
    assert made["about"]["subject"] == "CN=Example CA"
    assert made["about"]["days_left"] in (9, 10)
    assert (
        "issued.pem and issued.key: CN=db.example, valid until 20"
        in run("issue", "db.example", "--ca", "my.pem", "--out", "issued.pem").output
    )


def test_subject_may_be_a_distinguished_name(inside: Path) -> None:
    """A name with attributes would become one long CN."""
    run("ca", "Example CA")
    made = answer("issue", "CN=db,O=Example", "--san", "db.example")
    assert made["about"]["subject"] == "CN=db,O=Example"
    assert made["about"]["names"] == ["db.example", "CN=db,O=Example"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("issue", "db.example", "--ca", "none.pem"), "No such file"),
        (("issue", "db.example", "--ca", "host.pem", "--out", "x.pem"), "is not a CA certificate"),
        (("issue", "db.example", "--ca", "mixed.pem", "--out", "x.pem"), "do not belong together"),
        (("issue", "db.example", "--eku", "nonsense", "--out", "x.pem"), "cannot issue"),
        (("issue", "CN=", "--out", "x.pem"), "cannot issue"),
        (("issue", "My Host", "--out", "x.pem"), '"My Host" is no DNS name'),
        (("issue", "ä" * 80 + ".example", "--out", "x.pem"), "cannot issue"),
        (("ca", "CN=", "--out", "x.pem"), "cannot make"),
        (("ca", "x" * 65, "--out", "x.pem"), "cannot make"),
        (("ca", "CA", "--days", "1e12", "--out", "x.pem"), "cannot make"),
        (("issue", "db.example", "--days", "1e12", "--out", "x.pem"), "cannot issue"),
        (("show", "ca.key"), "a PEM file with certificates is expected"),
        (("show", "none.pem"), "No such file"),
        (("ca", "CA", "--out", "nowhere/ca.pem"), "No such file"),
    ],
)
def test_mistakes_have_a_reason_and_a_remedy(inside: Path, arguments: tuple[str, ...], reason: str) -> None:
    """A traceback would be shown to somebody who mistyped a name."""
    run("ca", "Example CA")
    run("issue", "db.example")
    (inside / "mixed.pem").write_bytes((inside / "ca.pem").read_bytes())
    (inside / "mixed.key").write_bytes((inside / "host.key").read_bytes())
    with pytest.raises(ControlError) as caught:
        run(*arguments)
    assert reason in f"{caught.value} {caught.value.remedy}"
    assert caught.value.remedy
    assert not (inside / "x.pem").exists()
    assert not (inside / "x.key").exists()


def test_show_prints_every_certificate(inside: Path) -> None:
    """A chain file would show its first certificate only."""
    run("ca", "Example CA")
    run("issue", "db.example")
    both = (inside / "host.pem").read_bytes() + (inside / "ca.pem").read_bytes()
    (inside / "chain.pem").write_bytes(both)
    shown = answer("show", "chain.pem")
    assert [(one["subject"], one["ca"], one["key"]) for one in shown] == [
        ("CN=db.example", False, "ecdsa-p256"),
        ("CN=Example CA", True, "ecdsa-p256"),
    ]
    text = run("show", "chain.pem").output
    assert "names       db.example, CN=db.example" in text
    assert "ca          no" in text


# Renewing ------------------------------------------------------------------------------------------------


def leaf(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def extensions(certificate: x509.Certificate) -> dict[str, tuple[bool, bytes]]:
    """All but those that name keys."""
    keys = x509.SubjectKeyIdentifier | x509.AuthorityKeyIdentifier
    return {
        one.oid.dotted_string: (one.critical, one.value.public_bytes())
        for one in certificate.extensions
        if not isinstance(one.value, keys)
    }


@pytest.mark.parametrize("kind", ["ecdsa-p384", "ed25519", "rsa-2048"])
def test_renewed_is_the_same_for_a_new_key(inside: Path, kind: str) -> None:
    """A name or usage that is lost locks the host out; the same key again is not what was asked for."""
    answer("ca", "Example CA")
    answer("issue", "db.example", "--san", "10.0.0.9", "--eku", "ike", "--eku", "1.2.3.4", "--kind", kind)
    old, old_key = leaf(inside / "host.pem"), (inside / "host.key").read_bytes()
    made = answer("renew", "host.pem")
    new = leaf(inside / "host.pem")
    assert (made["renewed"], made["key"], made["about"]["days_left"]) == (True, "host.key", 364)
    assert (new.subject, new.issuer, extensions(new)) == (old.subject, old.issuer, extensions(old))
    assert new.serial_number != old.serial_number
    assert new.public_key() != old.public_key()
    assert made["about"]["key"] == kind
    settings = IdentitySettings(certificate="host.pem", key="host.key", trust=("ca.pem",))
    material = load_material(inside, settings, time.time())
    Trust(material.anchors).verify(material.hosts[0].sent, time.time())
    assert leaf(inside / "host.pem.old") == old
    assert (inside / "host.key.old").read_bytes() == old_key
    modes = {
        name: (inside / name).stat().st_mode & 0o777 for name in ("host.pem", "host.key", "host.key.old")
    }
    assert modes == {"host.pem": 0o644, "host.key": 0o600, "host.key.old": 0o600}
    assert {path.name for path in inside.iterdir()} == {
        *("ca.pem", "ca.key", "host.pem", "host.key", "host.pem.old", "host.key.old")
    }


def test_renewed_for_the_same_key_where_the_key_is_not(inside: Path) -> None:
    """The authority's own machine has certificates of all hosts, and the key of none."""
    answer("ca", "Example CA")
    answer("issue", "db.example", "--days", "30")
    (inside / "host.key").unlink()
    with pytest.raises(ControlError, match="No such file") as caught:
        run("renew", "host.pem")
    assert "--keep-key" in caught.value.remedy
    old = leaf(inside / "host.pem")
    text = run("renew", "host.pem", "--keep-key").output
    assert leaf(inside / "host.pem").public_key() == old.public_key()
    assert 29 <= answer("show", "host.pem")[0]["days_left"] <= 30, "valid for as long as it was made for"
    assert "ikctl reload" in text
    assert not (inside / "host.key").exists()


def test_renewed_in_time_and_only_then(inside: Path) -> None:
    """A timer that renewed every day would reload every day, one that never did is found out at night."""
    answer("ca", "Example CA")
    answer("issue", "db.example", "--days", "30")
    before = (inside / "host.pem").read_bytes()
    (inside / "ca.key").rename(inside / "elsewhere")
    assert "not renewed" in run("renew", "host.pem", "--before", "14 d").output
    assert not answer("renew", "host.pem", "--before", "14 d")["renewed"]
    assert (inside / "host.pem").read_bytes() == before
    (inside / "elsewhere").rename(inside / "ca.key")
    assert answer("renew", "host.pem", "--before", "40 d", "--days", "90")["about"]["days_left"] >= 89
    assert "is not an amount" in run("renew", "host.pem", "--before", "soon").output


def test_an_expired_certificate_can_be_renewed(inside: Path) -> None:
    """It is when people find out; and they should read that it had ended."""
    answer("ca", "Example CA")
    ca = pki.read_pair((inside / "ca.pem").read_bytes(), (inside / "ca.key").read_bytes())
    written(inside / "host.pem", pki.issue(ca, "db.example", ["db.example"], now=time.time(), days=-3))
    assert "ended       3 d ago" in run("show", "host.pem").output
    text = run("renew", "host.pem", "--days", "30").output
    assert "it had ended 3 d ago" in text
    assert leaf(inside / "host.pem").not_valid_after_utc.timestamp() > time.time() + 29 * DAY


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--days", "0"), "Invalid value for '--days'"),
        (("--days", "-1"), "Invalid value for '--days'"),
        (("--eku", "vpn"), '"vpn" is no key usage: ike, server, client, health'),
    ],
)
def test_certificates_nobody_could_use(inside: Path, options: tuple[str, ...], said: str) -> None:
    """One that has ended before it began would be found out by the peer; an error names what was wrong."""
    answer("ca", "Example CA")
    try:
        text = run("issue", "db.example", *options).output
    except ControlError as error:
        text = error.message
    assert said in text
    assert not (inside / "host.pem").exists()


def test_what_comes_next_is_said(inside: Path) -> None:
    """Who has made an authority or a certificate wants to know where it goes."""
    assert "next: ikctl cert issue NAME --ca ca.pem" in run("ca", "Example CA").output
    assert "next: host.pem, host.key and ca.pem go to pki/" in run("issue", "db.example").output


def test_a_file_of_somebody_else(inside: Path) -> None:
    """That a file may not be read is mended with sudo, not with another name: exit status 5."""
    answer("ca", "Example CA")
    (inside / "ca.pem").chmod(0)
    with without_rights(), pytest.raises(ControlError) as caught:
        run("show", str(inside / "ca.pem"))
    assert (caught.value.code, "sudo" in caught.value.remedy) == ("not-permitted", True)


def test_no_longer_than_the_authority(inside: Path) -> None:
    """What it prints would be a promise that every peer breaks."""
    answer("ca", "Example CA", "--days", "10")
    answer("issue", "db.example", "--days", "5")
    text = run("renew", "host.pem", "--days", "90").output
    assert "the authority itself ends then" in text
    assert leaf(inside / "host.pem").not_valid_after_utc == leaf(inside / "ca.pem").not_valid_after_utc


def test_the_chain_stays_behind_a_renewed_leaf(inside: Path) -> None:
    """Peers that know only the root would not find the way to it any more."""
    answer("ca", "Root")
    root = pki.read_pair((inside / "ca.pem").read_bytes(), (inside / "ca.key").read_bytes())
    middle = pki.make_ca("Middle", time.time(), issuer=root)
    made = pki.issue(middle, "db.example", ["db.example"], now=time.time(), days=5)
    (inside / "middle.pem").write_bytes(pki.certificate_pem(middle.certificate))
    (inside / "middle.key").write_bytes(pki.key_pem(middle.key))
    (inside / "host.pem").write_bytes(pki.certificate_pem(made.certificate, middle.certificate))
    (inside / "host.key").write_bytes(pki.key_pem(made.key))
    (inside / "host.key").chmod(0o600)
    answer("renew", "host.pem", "--ca", "middle.pem")
    settings = IdentitySettings(certificate="host.pem", key="host.key", trust=("ca.pem",))
    material = load_material(inside, settings, time.time())
    assert material.hosts[0].chain[1:] == (middle.certificate,)
    assert material.hosts[0].chain[0] != made.certificate
    Trust(material.anchors).verify(material.hosts[0].sent, time.time())


def test_a_link_goes_on_leading_to_the_certificate(inside: Path) -> None:
    """`host.pem` is often a link; whoever else reads what it leads to would keep the old one."""
    answer("ca", "Example CA")
    answer("issue", "db.example", "--out", "real.pem")
    (inside / "host.pem").symlink_to("real.pem")
    (inside / "host.key").symlink_to("real.key")
    old = leaf(inside / "real.pem")
    answer("renew", "host.pem")
    assert (inside / "host.pem").is_symlink()
    assert leaf(inside / "real.pem") != old
    assert leaf(inside / "real.pem.old") == old


def test_what_may_not_be_renewed(inside: Path) -> None:
    """Another authority's certificate, an authority's own, another one's key: a reason each, and every file
    as it was."""
    answer("ca", "Example CA")
    answer("issue", "db.example")
    answer("ca", "Example CA", "--out", "namesake.pem")
    answer("issue", "other.example", "--out", "other.pem")
    written(inside / "old.pem", pki.make_ca("Old CA", time.time(), days=-1))
    before = {path.name: path.read_bytes() for path in inside.iterdir()}
    for arguments, reason in (
        (("host.pem", "--ca", "namesake.pem"), "was not issued by CN=Example CA with this key"),
        (("host.pem", "--ca", "old.pem"), "the CA expired"),
        (("host.pem", "--ca", "other.pem"), "is not a CA certificate"),
        (("ca.pem",), "is an authority"),
        (("host.pem", "--key", "other.key"), "other.key is not the key of the certificate"),
        (("host.pem", "--key", "none.key"), "No such file"),
        (("none.pem",), "No such file"),
        (("ca.key",), "cannot renew"),
    ):
        with pytest.raises(ControlError) as caught:
            run("renew", *arguments)
        assert reason in str(caught.value)
        assert caught.value.remedy
        assert caught.value.code == "configuration"
    assert {path.name: path.read_bytes() for path in inside.iterdir()} == before


def test_a_disk_that_fails_leaves_what_was_there(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a certificate, or a key without one, is found at the next reload."""
    answer("ca", "Example CA")
    answer("issue", "db.example")
    before = {path.name: path.read_bytes() for path in inside.iterdir()}

    def full(fileno: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ControlError, match="No space left on device"):
        run("renew", "host.pem")
    assert {path.name: path.read_bytes() for path in inside.iterdir()} == before


# ikd.pki -------------------------------------------------------------------------------------------------


def test_expired_certificate_on_purpose() -> None:
    """Tests and demonstrations need one; its times must still be in order."""
    ca = pki.make_ca("CA", NOW, key=key())
    old = pki.issue(ca, "old", now=NOW, days=-1, key=key())
    assert old.certificate.not_valid_before_utc < old.certificate.not_valid_after_utc
    with pytest.raises(Declined, match="expired"):
        Trust([ca.certificate]).verify(der(old), NOW)


def test_expired_authority_issues_nothing() -> None:
    """Certificates that nobody accepts would be handed out."""
    ca = pki.make_ca("CA", NOW, days=1, key=key())
    with pytest.raises(ValueError, match="the CA expired"):
        pki.issue(ca, "host", now=NOW + 2 * DAY, key=key())


def test_serial_numbers_differ() -> None:
    """A revocation list would hit two certificates."""
    ca = pki.make_ca("CA", NOW, key=key())
    made = {pki.issue(ca, "host", now=NOW, key=key()).certificate.serial_number for _ in range(20)}
    assert len(made) == 20


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("10.0.0.9", x509.IPAddress(ip_address("10.0.0.9"))),
        ("a@corp.example", x509.RFC822Name("a@corp.example")),
        ("bücher.example", x509.DNSName("xn--bcher-kva.example")),
    ],
)
def test_alternative_names(text: str, name: x509.GeneralName) -> None:
    """An address as a DNS name is matched by nobody."""
    assert pki.alternative_name(text) == name


def test_no_key_in_any_text() -> None:
    """Private keys would stand in tracebacks."""
    assert "key" not in repr(pki.make_ca("CA", NOW, key=key()))
