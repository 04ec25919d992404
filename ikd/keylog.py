"""Shell. Writes keys of new SAs to a file for Wireshark, when an administrator asks for it.

Lines are those of Wireshark's tables `ikev2_decryption_table` and `esp_sa` in one file, to be sorted by their
beginning: those of ESP begin with "IPv4" or "IPv6" in quotes. Whoever reads the file reads the traffic, so it
is made for its owner only and never through a link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

from ikd.control.protocol import ControlError, Json
from ikd.outputs import Keys
from sadb.address import Address
from sadb.algorithms import Encryption, Integrity, Kind, MainSuite, QuickSuite, SecurityProtocol
from sadb.sa import SaPair, SecurityAssociation
from sadb.secret import Secret

WARNING: Final = "whoever can read this file can read the traffic; stop with: ikctl log --no-keys"
HEADER: Final = (
    "# Keys of SAs, for Wireshark. Whoever reads this file reads the traffic.\n"
    '# Lines that begin with "IPv4" or "IPv6" belong into esp_sa, the others into ikev2_decryption_table.\n'
)

_IKE_INTEGRITY: Final = {
    "sha1": "HMAC_SHA1_96 [RFC2404]",
    "sha256": "HMAC_SHA2_256_128 [RFC4868]",
    "sha384": "HMAC_SHA2_384_192 [RFC4868]",
    "sha512": "HMAC_SHA2_512_256 [RFC4868]",
}
_ESP_INTEGRITY: Final = {
    "sha1": "HMAC-SHA-1-96 [RFC2404]",
    "sha256": "HMAC-SHA-256-128 [RFC4868]",
    "sha384": "HMAC-SHA-384-192 [RFC4868]",
    "sha512": "HMAC-SHA-512-256 [RFC4868]",
}
_ESP_CIPHER: Final = {
    Kind.CBC: "AES-CBC [RFC3602]",
    Kind.AEAD: "AES-GCM with 16 octet ICV [RFC4106]",
    Kind.NULL: "NULL",
}


class KeyLog:
    """The file, when there is one. `trouble` hears that writing failed; then it is closed. With `only`, keys
    of that peer."""

    def __init__(self, trouble: Callable[[str], None], only: Address | None = None) -> None:
        self._trouble = trouble
        self._only = only
        self._file: TextIO | None = None
        self.path: Path | None = None

    @property
    def on(self) -> bool:
        """Whether keys are written."""
        return self._file is not None

    def export(self, file: str) -> Json:
        """Write to this file from now on, or stop with an empty name; raises `ControlError`."""
        self.close()
        if not file:
            return {"file": None, "text": "keys are not written any more", "warning": ""}
        path = Path(file)
        if not path.is_absolute():
            raise ControlError("usage", f"{file} is not an absolute path", "name the file from / on")
        try:
            self._file = _open(path)
        except OSError as error:
            raise ControlError(
                "configuration",
                f"cannot write keys to {file}: {error.strerror or error}",
                "name another file",
            ) from None
        self.path = path
        return {"file": file, "text": f"keys of new SAs are appended to {file}", "warning": WARNING}

    def ike(self, keys: Keys) -> None:
        """A new IKE SA."""
        if not self.on or self._only not in (None, keys.peer):
            return
        self._write(ike_line(keys) or f"# {keys.spi_i.hex()}: Wireshark cannot read {keys.suite}")

    def child(self, pair: SaPair) -> None:
        """A new Child SA, a line for each direction."""
        if not self.on or self._only not in (None, pair.outbound.destination):
            return
        for sa in (pair.inbound, pair.outbound):
            self._write(esp_line(sa) or f"# {sa.spi:08x}: Wireshark cannot read {sa.suite}")

    def close(self) -> None:
        """Stop."""
        if self._file is not None:
            self._file.close()
        self._file = self.path = None

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            self._trouble(
                f"cannot write keys to {self.path}: {error.strerror}; they are not written any more"
            )
            with suppress(OSError):  # it tries once more
                self.close()
            self._file = self.path = None


def _open(path: Path) -> TextIO:
    """A file of ours that nobody else may read; anything else in its place is refused, a pipe without waiting
    for its reader."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise OSError(f"it exists and is no regular file of user {os.geteuid()}")
    os.fchmod(descriptor, 0o600)
    file = os.fdopen(descriptor, "a", encoding="ascii")
    if status.st_size == 0:
        file.write(HEADER)
        file.flush()
    return file


def ike_line(keys: Keys) -> str:
    """A row of `ikev2_decryption_table`; empty when Wireshark does not know the algorithms."""
    cipher = _ike_cipher(keys.suite)
    integrity = "NONE [RFC4306]" if keys.suite.encryption.aead else _ike_integrity(keys.suite.integrity)
    if not cipher or not integrity:
        return ""
    encryption = [bytes(key).hex() for key in keys.encryption]
    authentication = [bytes(key).hex() for key in keys.integrity]
    return ",".join(
        (keys.spi_i.hex(), keys.spi_r.hex(), *encryption, f'"{cipher}"', *authentication, f'"{integrity}"')
    )


def _ike_cipher(suite: MainSuite) -> str:
    encryption = suite.encryption
    if encryption.kind is Kind.CBC:
        return f"AES-CBC-{encryption.key * 8} [RFC3602]"
    if encryption.name.endswith("gcm"):
        return f"AES-GCM-{encryption.key * 8} with {encryption.icv} octet ICV [RFC5282]"
    return ""


def _ike_integrity(integrity: Integrity | None) -> str:
    return _IKE_INTEGRITY[integrity.name] if integrity else ""


def esp_line(sa: SecurityAssociation) -> str:
    """A row of `esp_sa`, with the columns that every version reads; empty when it does not know the
    algorithms."""
    cipher = _esp_cipher(sa.suite)
    if not cipher:
        return ""
    family = f"IPv{sa.source.version}"
    integrity = _ESP_INTEGRITY[sa.suite.integrity.name] if sa.suite.integrity else "NULL"
    keys = [_hexadecimal(sa.encryption_key), _hexadecimal(sa.integrity_key)]
    values = (family, sa.source, sa.destination, f"0x{sa.spi:08x}", cipher, keys[0], integrity, keys[1])
    return ",".join(f'"{value}"' for value in values)


def _esp_cipher(suite: QuickSuite) -> str:
    encryption: Encryption | None = suite.encryption
    if suite.protocol is not SecurityProtocol.ESP or encryption is None:
        return ""
    if encryption.kind is Kind.AEAD and not encryption.name.endswith("gcm"):
        return ""
    return _ESP_CIPHER.get(encryption.kind, "")


def _hexadecimal(key: Secret) -> str:
    return f"0x{bytes(key).hex()}" if len(key) else ""
