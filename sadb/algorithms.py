"""The one table of algorithms, for every number space.

A row names an algorithm as administrators write it, gives its sizes in octets and its transform ID in the
IKEv2 registry (RFC 7296 section 3.3.2 and the IANA registry "IKEv2 Parameters"). What is not in the table
cannot be negotiated; what is in `REFUSED` is answered with the reason. `sadb.crypto` turns rows into code.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """How an encryption transform protects."""

    AEAD = "aead"
    CBC = "cbc"
    GMAC = "gmac"  # RFC 4543: authenticates, encrypts nothing
    NULL = "null"  # RFC 2410


@dataclass(frozen=True, slots=True)
class Encryption:
    """An encryption algorithm; sizes in octets. `salt`: what of the keying material goes into the nonce."""

    name: str
    ikev2: int
    kind: Kind
    key: int
    iv: int
    salt: int = 0
    icv: int = 0
    block: int = 1
    fixed_length: bool = False  # no Key Length attribute is sent for it
    esp_only: bool = False
    deprecated: bool = False  # for old peers: only where a policy names it

    @property
    def aead(self) -> bool:
        """Whether it brings its own integrity check value."""
        return self.kind in (Kind.AEAD, Kind.GMAC)

    @property
    def encrypts(self) -> bool:
        """Whether the payload is confidential at all."""
        return self.kind in (Kind.AEAD, Kind.CBC)


@dataclass(frozen=True, slots=True)
class Integrity:
    """An HMAC with truncated output (RFC 4868, RFC 2404); sizes in octets."""

    name: str
    ikev2: int
    hash: str
    key: int
    icv: int
    deprecated: bool = False


@dataclass(frozen=True, slots=True)
class Prf:
    """A pseudo-random function; `size` is its output and preferred key length in octets."""

    name: str
    ikev2: int
    hash: str
    size: int
    deprecated: bool = False


class Curve(Enum):
    """What a Diffie-Hellman group computes on."""

    MODP = "modp"
    ECP = "ecp"
    MONTGOMERY = "montgomery"


@dataclass(frozen=True, slots=True)
class Group:
    """A Diffie-Hellman group; `public` is the length of the KE payload's data in octets."""

    name: str
    ikev2: int
    curve: Curve
    public: int
    deprecated: bool = False


ENCRYPTION: tuple[Encryption, ...] = (
    Encryption("aes128gcm", 20, Kind.AEAD, key=16, iv=8, salt=4, icv=16),
    Encryption("aes192gcm", 20, Kind.AEAD, key=24, iv=8, salt=4, icv=16),
    Encryption("aes256gcm", 20, Kind.AEAD, key=32, iv=8, salt=4, icv=16),
    Encryption("chacha20poly1305", 28, Kind.AEAD, key=32, iv=8, salt=4, icv=16, fixed_length=True),
    Encryption("aes128", 12, Kind.CBC, key=16, iv=16, block=16),
    Encryption("aes192", 12, Kind.CBC, key=24, iv=16, block=16),
    Encryption("aes256", 12, Kind.CBC, key=32, iv=16, block=16),
    Encryption("3des", 3, Kind.CBC, key=24, iv=8, block=8, fixed_length=True, deprecated=True),
    Encryption("aes128gmac", 21, Kind.GMAC, key=16, iv=8, salt=4, icv=16, esp_only=True),
    Encryption("aes192gmac", 21, Kind.GMAC, key=24, iv=8, salt=4, icv=16, esp_only=True),
    Encryption("aes256gmac", 21, Kind.GMAC, key=32, iv=8, salt=4, icv=16, esp_only=True),
    Encryption("null", 11, Kind.NULL, key=0, iv=0, fixed_length=True, esp_only=True),
)

INTEGRITY: tuple[Integrity, ...] = (
    Integrity("sha256", 12, "sha256", key=32, icv=16),
    Integrity("sha384", 13, "sha384", key=48, icv=24),
    Integrity("sha512", 14, "sha512", key=64, icv=32),
    Integrity("sha1", 2, "sha1", key=20, icv=12, deprecated=True),
)

PRF: tuple[Prf, ...] = (
    Prf("sha256", 5, "sha256", 32),
    Prf("sha384", 6, "sha384", 48),
    Prf("sha512", 7, "sha512", 64),
    Prf("sha1", 2, "sha1", 20, deprecated=True),
)

GROUPS: tuple[Group, ...] = (
    Group("modp2048", 14, Curve.MODP, 256),
    Group("modp3072", 15, Curve.MODP, 384),
    Group("modp4096", 16, Curve.MODP, 512),
    Group("modp6144", 17, Curve.MODP, 768),
    Group("modp8192", 18, Curve.MODP, 1024),
    Group("modp1024", 2, Curve.MODP, 128, deprecated=True),
    Group("p256", 19, Curve.ECP, 64),
    Group("p384", 20, Curve.ECP, 96),
    Group("p521", 21, Curve.ECP, 132),
    Group("x25519", 31, Curve.MONTGOMERY, 32),
    Group("x448", 32, Curve.MONTGOMERY, 56),
)

ALIASES = {
    "ecp256": "p256",
    "ecp384": "p384",
    "ecp521": "p521",
    "curve25519": "x25519",
    "curve448": "x448",
    "aes128gcm16": "aes128gcm",
    "aes192gcm16": "aes192gcm",
    "aes256gcm16": "aes256gcm",
    "aes128cbc": "aes128",
    "aes192cbc": "aes192",
    "aes256cbc": "aes256",
    "3descbc": "3des",
    "des3": "3des",
    "chacha20": "chacha20poly1305",
    "sha2_256": "sha256",
    "sha2_384": "sha384",
    "sha2_512": "sha512",
    "group2": "modp1024",
    "dh2": "modp1024",
    "group14": "modp2048",
    "dh14": "modp2048",
}

REFUSED = {
    "des": "DES keys can be searched; use aes128gcm",
    "md5": "MD5 is broken (RFC 8247); use sha256",
    "modp768": "group 1 can be broken (RFC 8247); use x25519, p256 or modp2048",
    "modp1536": "group 5 is too small (RFC 8247); use x25519, p256 or modp2048",
}
REFUSED |= {f"group{n}": REFUSED[name] for n, name in ((1, "modp768"), (5, "modp1536"))}
REFUSED |= {f"dh{n}": REFUSED[f"group{n}"] for n in (1, 5)}

ENCRYPTION_BY_NAME = {row.name: row for row in ENCRYPTION}
INTEGRITY_BY_NAME = {row.name: row for row in INTEGRITY}
PRF_BY_NAME = {row.name: row for row in PRF}
GROUP_BY_NAME = {row.name: row for row in GROUPS}
GROUP_BY_ID = {row.ikev2: row for row in GROUPS}


@dataclass(frozen=True, slots=True)
class MainSuite:
    """One main-mode (IKE SA) proposal, resolved; `integrity` is None with an AEAD."""

    group: Group
    encryption: Encryption
    prf: Prf
    integrity: Integrity | None = None

    @property
    def ikev1(self) -> bool:
        """Whether IKEv1 can propose it: one hash is both PRF and integrity there (RFC 2409 section 4), and
        combined modes and Montgomery curves have no numbers."""
        hashed = self.integrity.hash if self.integrity else None
        return hashed == self.prf.hash and self.group.curve is not Curve.MONTGOMERY

    def __str__(self) -> str:
        """As an administrator would write it."""
        return f"{self.group.name} {self.encryption.name} {(self.integrity or self.prf).name}"


class SecurityProtocol(Enum):
    """What carries the packets."""

    AH = "ah"
    ESP = "esp"


@dataclass(frozen=True, slots=True)
class QuickSuite:
    """One quick-mode (Child SA) proposal, resolved; `encryption` is None with AH, `group` is for PFS."""

    protocol: SecurityProtocol
    encryption: Encryption | None
    integrity: Integrity | None = None
    group: Group | None = None
    esn: bool = True

    def __str__(self) -> str:
        parts = [self.encryption.name] if self.encryption else [self.protocol.value]
        if self.integrity:
            parts.append(self.integrity.name)
        if self.group:
            parts.append(self.group.name)
        return " ".join(parts)

    @property
    def ikev1(self) -> bool:
        """Whether IKEv1 can propose it (RFC 2407, 4106, 4543, 4868): ChaCha20 and the Montgomery curves came
        after its registries closed."""
        late = self.encryption is not None and self.encryption.name == "chacha20poly1305"
        return not late and (self.group is None or self.group.curve is not Curve.MONTGOMERY)

    @property
    def icv(self) -> int:
        """Octets of the integrity check value."""
        if self.integrity:
            return self.integrity.icv
        return self.encryption.icv if self.encryption else 0

    @property
    def keys(self) -> tuple[int, int]:
        """Octets of encryption key (with salt) and integrity key, as RFC 7296 section 2.17 takes them."""
        encryption = self.encryption.key + self.encryption.salt if self.encryption else 0
        return encryption, self.integrity.key if self.integrity else 0
