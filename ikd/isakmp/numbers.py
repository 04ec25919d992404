"""Numbers of IKEv1 and their names: RFC 2407, 2408, 2409, 3706, 3947, 4754 and MS-IKEE.

`ALGORITHMS` says which number each row of `sadb.algorithms` has here, by the name of the row: what has none
cannot be spoken of in IKEv1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

DOI_ISAKMP = 0
DOI_IPSEC = 1
SITUATION = 1  # SIT_IDENTITY_ONLY, RFC 2407 section 4.2.1


class Exchange(IntEnum):
    """Exchange types, RFC 2408 section 3.1 and RFC 2409 appendix A. TRANSACTION (mode configuration, XAUTH)
    is refused, and so is NEW_GROUP."""

    MAIN = 2
    AGGRESSIVE = 4
    INFORMATIONAL = 5
    TRANSACTION = 6
    QUICK = 32
    NEW_GROUP = 33


class ProtocolId(IntEnum):
    """Security protocol identifiers, RFC 2407 section 4.4.1."""

    ISAKMP = 1
    AH = 2
    ESP = 3
    IPCOMP = 4


class Method(IntEnum):
    """Authentication methods, RFC 2409 appendix A, RFC 4754. The private numbers are taken twice: 65001 is
    GSS-API here and XAUTH with a pre-shared key elsewhere (the peer's vendor IDs tell), 65005 is Microsoft's
    CGA."""

    PSK = 1
    DSS = 2
    RSA = 3
    RSA_ENCRYPTION = 4
    RSA_REVISED = 5
    ECDSA_256 = 9
    ECDSA_384 = 10
    ECDSA_521 = 11
    GSS = 65001
    CGA = 65005


UNDECIDED = 0  # no method has been agreed on yet
SIGNATURES = frozenset({Method.DSS, Method.RSA, Method.ECDSA_256, Method.ECDSA_384, Method.ECDSA_521})


class MainAttribute(IntEnum):
    """Attribute classes of phase 1, RFC 2409 appendix A."""

    ENCRYPTION = 1
    HASH = 2
    METHOD = 3
    GROUP = 4
    GROUP_TYPE = 5
    LIFE_TYPE = 11
    LIFE_DURATION = 12
    PRF = 13
    KEY_LENGTH = 14
    GSS_NAME = 16384  # the sender's name, draft-ietf-ipsec-isakmp-gss-auth-07
    GSS_NAME_OLD = 32001  # the same, seen from Windows 2000


class QuickAttribute(IntEnum):
    """Attribute classes of phase 2, RFC 2407 section 4.5 and RFC 4304 section 2."""

    LIFE_TYPE = 1
    LIFE_DURATION = 2
    GROUP = 3
    ENCAPSULATION = 4
    AUTHENTICATION = 5
    KEY_LENGTH = 6
    KEY_ROUNDS = 7
    ECN = 10
    ESN = 11


class LifeType(IntEnum):
    """What a life duration counts; the numbers are the same in both phases."""

    SECONDS = 1
    KILOBYTES = 2


class Encapsulation(IntEnum):
    """Encapsulation modes, RFC 2407 section 4.5, RFC 3947 section 5.1 and its draft 02."""

    TUNNEL = 1
    TRANSPORT = 2
    UDP_TUNNEL = 3
    UDP_TRANSPORT = 4
    UDP_TUNNEL_DRAFT = 61443
    UDP_TRANSPORT_DRAFT = 61444


class Traversal(Enum):
    """Which text on NAT traversal the peers have in common."""

    NONE = "none"
    DRAFT_02 = "draft-02"
    RFC_3947 = "RFC 3947"


# (over UDP by which text, tunnel?) -> encapsulation mode; Traversal.NONE is an SA that is not put into UDP
ENCAPSULATIONS: dict[tuple[Traversal, bool], Encapsulation] = {
    (Traversal.NONE, True): Encapsulation.TUNNEL,
    (Traversal.NONE, False): Encapsulation.TRANSPORT,
    (Traversal.RFC_3947, True): Encapsulation.UDP_TUNNEL,
    (Traversal.RFC_3947, False): Encapsulation.UDP_TRANSPORT,
    (Traversal.DRAFT_02, True): Encapsulation.UDP_TUNNEL_DRAFT,
    (Traversal.DRAFT_02, False): Encapsulation.UDP_TRANSPORT_DRAFT,
}


class IdType(IntEnum):
    """Identification types, RFC 2407 section 4.6.2.1 and MS-IKEE section 2.2.5."""

    IPV4_ADDR = 1
    FQDN = 2
    USER_FQDN = 3
    IPV4_ADDR_SUBNET = 4
    IPV6_ADDR = 5
    IPV6_ADDR_SUBNET = 6
    IPV4_ADDR_RANGE = 7
    IPV6_ADDR_RANGE = 8
    DER_ASN1_DN = 9
    DER_ASN1_GN = 10
    KEY_ID = 11
    IPV6_CGA = 250


class CertificateEncoding(IntEnum):
    """Certificate encodings, RFC 2408 section 3.9."""

    PKCS7 = 1
    X509_SIGNATURE = 4
    CRL = 7


class N(IntEnum):
    """Notify message types, RFC 2408 section 3.14.1, RFC 2407 section 4.6.3, RFC 3706 section 5 and MS-IKEE
    section 2.2.6. Below 16384 they are errors."""

    INVALID_PAYLOAD_TYPE = 1
    DOI_NOT_SUPPORTED = 2
    SITUATION_NOT_SUPPORTED = 3
    INVALID_COOKIE = 4
    INVALID_MAJOR_VERSION = 5
    INVALID_MINOR_VERSION = 6
    INVALID_EXCHANGE_TYPE = 7
    INVALID_FLAGS = 8
    INVALID_MESSAGE_ID = 9
    INVALID_PROTOCOL_ID = 10
    INVALID_SPI = 11
    INVALID_TRANSFORM_ID = 12
    ATTRIBUTES_NOT_SUPPORTED = 13
    NO_PROPOSAL_CHOSEN = 14
    BAD_PROPOSAL_SYNTAX = 15
    PAYLOAD_MALFORMED = 16
    INVALID_KEY_INFORMATION = 17
    INVALID_ID_INFORMATION = 18
    INVALID_CERT_ENCODING = 19
    INVALID_CERTIFICATE = 20
    CERT_TYPE_UNSUPPORTED = 21
    INVALID_CERT_AUTHORITY = 22
    INVALID_HASH_INFORMATION = 23
    AUTHENTICATION_FAILED = 24
    INVALID_SIGNATURE = 25
    ADDRESS_NOTIFICATION = 26
    NOTIFY_SA_LIFETIME = 27
    CERTIFICATE_UNAVAILABLE = 28
    UNSUPPORTED_EXCHANGE_TYPE = 29
    UNEQUAL_PAYLOAD_LENGTHS = 30
    CONNECTED = 16384
    RESPONDER_LIFETIME = 24576
    REPLAY_STATUS = 24577
    INITIAL_CONTACT = 24578
    R_U_THERE = 36136
    R_U_THERE_ACK = 36137
    NOTIFY_STATUS = 40003
    NOTIFY_DOS_COOKIE = 40004
    EXCHANGE_INFO = 40005


FIRST_STATUS = 16384

PAYLOAD_NAMES = {
    1: "SA", 2: "P", 3: "T", 4: "KE", 5: "ID", 6: "CERT", 7: "CR", 8: "HASH", 9: "SIG", 10: "NONCE", 11: "N",
    12: "D", 13: "VID", 20: "NAT-D", 21: "NAT-OA", 129: "GSS", 130: "NAT-D", 131: "NAT-OA", 132: "FRAG",
    133: "CRYPTO", 134: "GSS_ID", 135: "AUTH", 136: "KEYS", 137: "WEIGHT",
}  # fmt: skip


# Algorithms ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a row of `sadb.algorithms` is called: in phase 1 (cipher, hash or group; a group keeps its number
    in phase 2), as ESP or AH transform, as authentication algorithm of phase 2. 0 is nothing at all."""

    main: int = 0
    esp: int = 0
    ah: int = 0
    authentication: int = 0


ALGORITHMS: dict[str, Numbers] = {
    "3des": Numbers(main=5, esp=3),
    "aes128": Numbers(main=7, esp=12),
    "aes192": Numbers(main=7, esp=12),
    "aes256": Numbers(main=7, esp=12),
    "null": Numbers(esp=11),
    "aes128gcm": Numbers(esp=20),
    "aes192gcm": Numbers(esp=20),
    "aes256gcm": Numbers(esp=20),
    "aes128gmac": Numbers(esp=23, ah=11, authentication=11),
    "aes192gmac": Numbers(esp=23, ah=12, authentication=12),
    "aes256gmac": Numbers(esp=23, ah=13, authentication=13),
    "chacha20poly1305": Numbers(esp=28),
    "sha1": Numbers(main=2, ah=3, authentication=2),
    "sha256": Numbers(main=4, ah=5, authentication=5),
    "sha384": Numbers(main=5, ah=6, authentication=6),
    "sha512": Numbers(main=6, ah=7, authentication=7),
    "modp1024": Numbers(main=2),
    "modp2048": Numbers(main=14),
    "modp3072": Numbers(main=15),
    "modp4096": Numbers(main=16),
    "modp6144": Numbers(main=17),
    "modp8192": Numbers(main=18),
    "p256": Numbers(main=19),
    "p384": Numbers(main=20),
    "p521": Numbers(main=21),
}
NOTHING = Numbers()

# What we do not have, so that `ikctl why` can name what a peer offers (IANA registries, excerpt)
FOREIGN_CIPHERS = {
    1: "des",
    2: "idea",
    3: "blowfish",
    4: "rc5",
    5: "3des",
    6: "cast",
    7: "aes",
    8: "camellia",
}
FOREIGN_HASHES = {1: "md5", 3: "tiger"}
FOREIGN_GROUPS = {
    1: "modp768", 2: "modp1024", 5: "modp1536", 22: "modp1024s160", 23: "modp2048s224", 24: "modp2048s256",
    25: "p192", 26: "p224", 27: "brainpool224", 28: "brainpool256", 29: "brainpool384", 30: "brainpool512",
    31: "x25519", 32: "x448",
}  # fmt: skip
FOREIGN_ESP = {
    1: "des-iv64", 2: "des", 3: "3des", 4: "rc5", 5: "idea", 6: "cast", 7: "blowfish", 12: "aes",
    13: "aesctr", 14: "aesccm8", 15: "aesccm12", 16: "aesccm", 18: "aesgcm8", 19: "aesgcm12", 20: "aesgcm",
    22: "camellia", 23: "aesgmac",
}  # fmt: skip
FOREIGN_AUTHENTICATION = {1: "md5", 3: "des-mac", 4: "kpdk", 8: "ripemd", 9: "aesxcbc"}

METHOD_NAMES: dict[int, str] = {
    Method.PSK: "pre-shared key",
    Method.DSS: "DSS signature",
    Method.RSA: "RSA signature",
    Method.RSA_ENCRYPTION: "RSA encryption",
    Method.RSA_REVISED: "revised RSA encryption",
    Method.ECDSA_256: "ECDSA on P-256",
    Method.ECDSA_384: "ECDSA on P-384",
    Method.ECDSA_521: "ECDSA on P-521",
    Method.GSS: "Kerberos or XAUTH (65001)",
    Method.CGA: "CGA or XAUTH (65005)",
}
ENCAPSULATION_NAMES: dict[int, str] = {
    Encapsulation.TUNNEL: "tunnel",
    Encapsulation.TRANSPORT: "transport",
    Encapsulation.UDP_TUNNEL: "tunnel in UDP",
    Encapsulation.UDP_TRANSPORT: "transport in UDP",
    Encapsulation.UDP_TUNNEL_DRAFT: "tunnel in UDP (draft)",
    Encapsulation.UDP_TRANSPORT_DRAFT: "transport in UDP (draft)",
    62000: "authenticated firewall",  # MS-AIPS section 3.10
    62001: "authenticated firewall in UDP",
}


# every message is told of by these names, and asking an enumeration for one is slow
_EXCHANGES = {int(one): one.name for one in Exchange}
_NOTIFIES = {int(one): one.name for one in N}


def exchange_name(number: int) -> str:
    """The name of an exchange type, with its number when there is none."""
    return _EXCHANGES.get(number) or f"exchange {number}"


def notify_name(number: int) -> str:
    """The name of a notify type, with its number when there is none."""
    return _NOTIFIES.get(number) or f"notify {number}"


def method_name(number: int) -> str:
    """An authentication method for people."""
    return METHOD_NAMES.get(number) or f"method {number}"


def encapsulation_name(number: int) -> str:
    """An encapsulation mode for people."""
    return ENCAPSULATION_NAMES.get(number) or f"mode {number}"
