"""Shell. Reads what `Credentials` are made of: certificates, keys, revocation lists, the keytab,
`secrets.toml` and `groups.toml`.

Every complaint is collected and names the file and what to do; with any complaint nothing is loaded. Things
that work and should be mended are warnings in `Material`, which also knows when each certificate ends.
"""

from __future__ import annotations

import datetime as dt
import os
import stat
import tomllib
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

from ikd.auth import Declined, groups, keytab, secret_tables
from ikd.auth.certificate import HostCertificate
from ikd.auth.credentials import Material
from ikd.auth.facts import is_authority, title
from ikd.auth.groups import NO_GROUPS, GroupError, Groups
from ikd.auth.gss import library
from ikd.auth.identity import Identity
from ikd.auth.kerberos import Ticket, check_keytab
from ikd.auth.keytab import Keytab
from ikd.auth.revocation import CrlCheck
from ikd.auth.secret_tables import Secrets
from ikd.auth.signature import PrivateKey, key_type
from ikd.auth.validity import Watched
from ikd.settings import IdentitySettings

SECRETS = "secrets.toml"
_MAX_OCTETS = 64 * 1024 * 1024  # of one file; revocation lists can be large
_REPLAYS = "kerberos.replays"
_CACHES = ("FILE", "DIR", "KCM", "KEYRING")
_SUFFIXES = (".pem", ".crt", ".cer", ".der", ".crl")
T = TypeVar("T")


class MaterialError(Exception):
    """Credentials cannot be loaded; `complaints` has one line for each thing that is wrong."""

    def __init__(self, complaints: tuple[str, ...]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


def load_material(
    directory: Path, settings: IdentitySettings, now: float, state: Path | None = None
) -> Material:
    """All credentials of a configuration directory at POSIX time `now`; raises `MaterialError`. What must be
    remembered across starts goes to `state`, if it is there."""
    loader = _Loader(directory, dt.datetime.fromtimestamp(now, dt.UTC))
    host = loader.host("", settings.certificate, settings.key)
    health = loader.health(settings.health_certificate, settings.health_key)
    user = loader.host("user_", settings.user_certificate, settings.user_key)
    anchors = loader.all_of("trust", settings.trust, _certificates)
    crls = loader.all_of("crls", settings.crls, _crls)
    for anchor in anchors:
        loader.watch(anchor, "trust", "trusted certificate")
    for crl in crls:
        if crl.next_update_utc is not None and crl.next_update_utc < loader.now:
            issuer = crl.issuer.rfc4514_string()
            loader.warnings.append(
                f"revocation list of {issuer} is out of date since {crl.next_update_utc:%Y-%m-%d}"
            )
    identity = loader.identity(settings.id, host)
    machine = loader.keytab(settings.keytab, state)
    tickets = loader.tickets(settings.user_tickets)
    path = directory / SECRETS
    secrets = (loader.table(path, load_secrets) if os.path.lexists(path) else None) or Secrets()
    named = loader.table(directory / settings.groups, load_groups, "groups") if settings.groups else None
    if loader.complaints:
        raise MaterialError(tuple(loader.complaints))
    return Material(
        identity=identity,
        keys=secrets.keys,
        accounts=secrets.accounts,
        hosts=tuple(one for one in (host, health) if one),
        user=user,
        anchors=tuple(anchors),
        crls=tuple(crls),
        crl_check=CrlCheck(settings.crl_check),
        keytab=machine,
        tickets=tickets,
        groups=named or NO_GROUPS,
        watched=tuple(loader.watched),
        warnings=tuple(loader.warnings),
    )


class _Loader:
    """One loading: where files are, what was wrong."""

    def __init__(self, directory: Path, now: dt.datetime) -> None:
        self.directory = directory
        self.now = now
        self.complaints: list[str] = []
        self.warnings: list[str] = []
        self.watched: list[Watched] = []

    def host(
        self, prefix: str, certificate: str | None, key: str | None, *, brief: bool = False
    ) -> HostCertificate | None:
        """A certificate of ours with chain and key; `prefix` is that of the keys of [identity] that name the
        files. One that is good for hours only is `brief`: that it ends soon is nothing to warn about."""
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            have, lack = ("certificate", "key") if certificate else ("key", "certificate")
            self.complaints.append(
                f"ikd.toml: identity.{prefix}{have} is set but identity.{prefix}{lack} is not: "
                "set both or none"
            )
            return None
        chain = self.attempt(f"{prefix}certificate", certificate, _certificates)
        private = self.attempt(f"{prefix}key", key, lambda p: [_private_key(p)])
        if not chain or not private:
            return None
        leaf = chain[0]
        if leaf.public_key() != private[0].public_key():
            self.complaints.append(
                f"{self.directory / key}: this is not the key of certificate {title(leaf)} in {certificate}: "
                f"identity.{prefix}certificate must begin with our own certificate, then its issuers"
            )
            return None
        if is_authority(leaf):
            self.complaints.append(
                f"{self.directory / certificate}: {title(leaf)} is a CA certificate; "
                "issue a host certificate: ikctl cert issue"
            )
            return None
        use = prefix.removesuffix("_")
        self.watch(leaf, use or "host", f"our {use} certificate" if use else "our certificate", brief=brief)
        return HostCertificate(tuple(chain), private[0])

    def health(self, certificate: str | None, key: str | None) -> HostCertificate | None:
        """Our health certificate, which must be one."""
        found = self.host("health_", certificate, key, brief=True)
        if found and found.facts.ailment:
            self.complaints.append(
                f"{self.directory / str(certificate)}: certificate {found.facts.title} {found.facts.ailment} "
                "(identity.health_certificate of ikd.toml); issue one: ikctl cert issue --health"
            )
            return None
        return found

    def keytab(self, name: str | None, state: Path | None) -> Keytab | None:
        """The keytab, if one is named: whom it has keys for, and whether the Kerberos library takes it."""
        data = [] if name is None else self.attempt("keytab", name, lambda p: [_read(p, private=True)])
        if name is None or not data:
            return None
        path = self.directory / name
        try:
            entries = keytab.parse(data[0])
        except ValueError as error:
            self.complaints.append(f"{path}: {error} (identity.keytab of ikd.toml)")
            return None
        replays = str(state / _REPLAYS) if state is not None and state.is_dir() else ""
        # another file, another ticket cache; Python's hash of octets tells nothing about them
        found = Keytab(str(path), entries, f"MEMORY:ikd-{hash(data[0]) & 0xFFFFFFFFFFFFFFFF:016x}", replays)
        if found.service is None:
            known = ", ".join(map(str, found.principals[:4])) or "nobody"
            self.warnings.append(
                f"keytab {path} has keys of {known}, but of no machine: write one for host/NAME "
                f"(kadmin -q 'ktadd -k {path} host/NAME')"
            )
        self.check_library(found)
        return found

    def check_library(self, found: Keytab) -> None:
        """Without the library the daemon runs and cannot use the keytab; one the library refuses is of no
        use."""
        try:
            library()
        except Declined as error:
            self.warnings.append(f"identity.keytab is set, but {error}; {error.remedy}")
            return
        try:
            check_keytab(found)
        except Declined as error:
            if found.entries:
                self.complaints.append(f"{error} (identity.keytab of ikd.toml); {error.remedy}")

    def tickets(self, name: str | None) -> Ticket | None:
        """The ticket cache of a user, which need not be there yet."""
        if name is None:
            return None
        kind, _, rest = name.partition(":")
        if kind not in _CACHES or not rest:
            self.complaints.append(
                f'ikd.toml: identity.user_tickets: "{name}" is no ticket cache; '
                "write one as klist shows it, such as FILE:/run/user/1000/krb5cc"
            )
            return None
        return Ticket(name)

    def table(self, path: Path, load: Callable[[Path], T], key: str = "") -> T | None:
        """A file of tables, perhaps one that a setting names."""
        named = f" (identity.{key} of ikd.toml)" if key else ""
        try:
            return load(path)
        except MaterialError as error:
            self.complaints += [one + named for one in error.complaints]
        return None

    def identity(self, text: str | None, host: HostCertificate | None) -> Identity | None:
        """The configured identity."""
        if text is None:
            return None
        try:
            identity = Identity.parse(text)
        except ValueError as error:
            self.complaints.append(f"ikd.toml: identity.id: {error}")
            return None
        if host and not host.facts.prove(identity):
            known = ", ".join(host.facts.names) or "nobody"
            self.warnings.append(
                f"identity.id is {identity}, but our certificate names {known}: peers will refuse it"
            )
        return identity

    def watch(self, certificate: x509.Certificate, use: str, what: str, *, brief: bool = False) -> None:
        """Remember when a certificate ends."""
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        self.watched.append(
            Watched(use, what, title(certificate), begins.timestamp(), ends.timestamp(), brief)
        )

    def all_of(self, key: str, paths: tuple[str, ...], read: Callable[[Path], list[T]]) -> list[T]:
        """What the files (and the files of the directories) of one setting hold."""
        return [item for path in paths for item in self.attempt(key, path, read)]

    def attempt(self, key: str, name: str, read: Callable[[Path], list[T]]) -> list[T]:
        """Read one setting's file or directory; a failure becomes a complaint."""
        path = self.directory / name
        out: list[T] = []
        try:
            for file in _files(path):
                out += read(file)
        except FileNotFoundError:
            near = get_close_matches(path.name, _names_beside(path), 1, 0.5)
            hint = f", did you mean {near[0]}?" if near else ""
            self.complaints.append(f"{path}: no such file (identity.{key} of ikd.toml){hint}")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.complaints.append(f"{path}: {reason} (identity.{key} of ikd.toml)")
        return out


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
    else:
        yield path


def _names_beside(path: Path) -> list[str]:
    try:
        return [p.name for p in path.parent.iterdir()]
    except OSError:
        return []


def _certificates(path: Path) -> list[x509.Certificate]:
    data = _read(path)
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]
    except ValueError as error:
        raise ValueError("no certificate in PEM or DER form") from error


def _crls(path: Path) -> list[x509.CertificateRevocationList]:
    data = _read(path)
    try:
        if b"-----BEGIN" not in data:
            return [x509.load_der_x509_crl(data)]
        mark = b"-----BEGIN X509 CRL-----"
        return [x509.load_pem_x509_crl(mark + part) for part in data.split(mark)[1:]]
    except ValueError as error:
        raise ValueError("no revocation list in PEM or DER form") from error


def _private_key(path: Path) -> PrivateKey:
    data = _read(path, private=True)
    try:
        load = load_pem_private_key if b"-----BEGIN" in data else load_der_private_key
        key = load(data, None)
    except TypeError as error:
        raise ValueError(
            f"the private key is encrypted, but the daemon starts unattended; write it without password: "
            f"openssl pkey -in {path.name} -out plain.key, and mode 0600"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("no private key in PEM or DER form") from error
    if not isinstance(key, PrivateKey) or key_type(key) is None:
        raise ValueError("a private key must be RSA, ECDSA on P-256, P-384 or P-521, Ed25519 or Ed448")
    return key


def _read(path: Path, *, private: bool = False) -> bytes:
    """A file's octets; a private one must be ours and closed to others (checked on the open file). Root, who
    checks for a daemon with a user of its own, may find it to be that of whom the directory belongs to."""
    try:
        file = path.open("rb")
    except PermissionError:
        we = os.geteuid()
        remedy = f"if that is the daemon's user, run: chown {we} {path}"
        raise ValueError(f"user {we} may not read it; {remedy}") from None
    with file:
        status = os.fstat(file.fileno())
        if private and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            mode = stat.S_IMODE(status.st_mode)
            raise ValueError(f"others may read it (mode {mode:04o}); run: chmod 600 {path}")
        owners = {0, os.geteuid(), path.parent.stat().st_uid if os.geteuid() == 0 else 0}
        if private and status.st_uid not in owners:
            raise ValueError(f"it belongs to user {status.st_uid}; run: chown {os.geteuid()} {path}")
        data = file.read(_MAX_OCTETS + 1)
    if len(data) > _MAX_OCTETS:
        raise ValueError(f"longer than {_MAX_OCTETS} octets")
    return data


# secrets.toml and groups.toml ----------------------------------------------------------------------------


def load_secrets(path: Path) -> Secrets:
    """What a `secrets.toml` has; raises `MaterialError`. No message shows a secret."""
    found, complaints = secret_tables.parse(_table(path, private=True))
    if complaints:
        raise MaterialError(tuple(f"{path}: {one}" for one in complaints))
    return found


def load_groups(path: Path) -> Groups:
    """What a `groups.toml` has; raises `MaterialError`."""
    try:
        return groups.parse(_table(path))
    except GroupError as error:
        raise MaterialError(tuple(f"{path}: {one}" for one in error.complaints)) from None


def _table(path: Path, *, private: bool = False) -> dict[str, Any]:
    """A TOML file; raises `MaterialError`."""
    try:
        return tomllib.loads(_read(path, private=private).decode())
    except tomllib.TOMLDecodeError as error:
        # the parser quotes no values, only what it expected and where
        raise MaterialError((f"{path}: {error}",)) from None
    except UnicodeDecodeError:
        raise MaterialError((f"{path}: not UTF-8 text",)) from None
    except OSError as error:
        raise MaterialError((f"{path}: {error.strerror}",)) from error
    except ValueError as error:
        raise MaterialError((f"{path}: {error}",)) from None
