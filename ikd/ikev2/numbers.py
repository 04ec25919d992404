"""Numbers of IKEv2 and their names: RFC 7296 section 3 and the IANA registry "IKEv2 Parameters"."""

from __future__ import annotations

from enum import IntEnum


class Exchange(IntEnum):
    """Exchange types, section 3.1."""

    IKE_SA_INIT = 34
    IKE_AUTH = 35
    CREATE_CHILD_SA = 36
    INFORMATIONAL = 37


class ProtocolId(IntEnum):
    """Security protocol identifiers, section 3.3.1."""

    NONE = 0
    IKE = 1
    AH = 2
    ESP = 3


class TransformType(IntEnum):
    """Transform types, section 3.3.2."""

    ENCR = 1
    PRF = 2
    INTEG = 3
    DH = 4
    ESN = 5


class N(IntEnum):
    """Notify message types, section 3.10.1. Below 16384 they are errors."""

    UNSUPPORTED_CRITICAL_PAYLOAD = 1
    INVALID_IKE_SPI = 4
    INVALID_MAJOR_VERSION = 5
    INVALID_SYNTAX = 7
    INVALID_MESSAGE_ID = 9
    INVALID_SPI = 11
    NO_PROPOSAL_CHOSEN = 14
    INVALID_KE_PAYLOAD = 17
    AUTHENTICATION_FAILED = 24
    SINGLE_PAIR_REQUIRED = 34
    NO_ADDITIONAL_SAS = 35
    INTERNAL_ADDRESS_FAILURE = 36
    FAILED_CP_REQUIRED = 37
    TS_UNACCEPTABLE = 38
    INVALID_SELECTORS = 39
    UNACCEPTABLE_ADDRESSES = 40
    UNEXPECTED_NAT_DETECTED = 41
    TEMPORARY_FAILURE = 43
    CHILD_SA_NOT_FOUND = 44
    NOTIFY_STATUS = 12345  # MS-IKEE section 2.2.7
    INITIAL_CONTACT = 16384
    SET_WINDOW_SIZE = 16385
    ADDITIONAL_TS_POSSIBLE = 16386
    NAT_DETECTION_SOURCE_IP = 16388
    NAT_DETECTION_DESTINATION_IP = 16389
    COOKIE = 16390
    USE_TRANSPORT_MODE = 16391
    REKEY_SA = 16393
    ESP_TFC_PADDING_NOT_SUPPORTED = 16394
    MOBIKE_SUPPORTED = 16396
    ADDITIONAL_IP4_ADDRESS = 16397
    ADDITIONAL_IP6_ADDRESS = 16398
    NO_ADDITIONAL_ADDRESSES = 16399
    UPDATE_SA_ADDRESSES = 16400
    COOKIE2 = 16401
    NO_NATS_ALLOWED = 16402
    CHILDLESS_IKEV2_SUPPORTED = 16418
    IKEV2_FRAGMENTATION_SUPPORTED = 16430
    SIGNATURE_HASH_ALGORITHMS = 16431


FIRST_STATUS = 16384

PAYLOAD_NAMES = {
    33: "SA", 34: "KE", 35: "IDi", 36: "IDr", 37: "CERT", 38: "CERTREQ", 39: "AUTH", 40: "No", 41: "N",
    42: "D", 43: "V", 44: "TSi", 45: "TSr", 46: "SK", 47: "CP", 48: "EAP", 53: "SKF", 200: "CORRELATION",
}  # fmt: skip

# Transforms we do not have, so that `ikctl why` can name what a peer offers (IANA registries, excerpt)
FOREIGN: dict[tuple[int, int], str] = {
    (TransformType.ENCR, 2): "des",
    (TransformType.ENCR, 3): "3des",
    (TransformType.ENCR, 13): "aesctr",
    (TransformType.ENCR, 14): "aesccm8",
    (TransformType.ENCR, 15): "aesccm12",
    (TransformType.ENCR, 16): "aesccm",
    (TransformType.ENCR, 18): "aesgcm8",
    (TransformType.ENCR, 19): "aesgcm12",
    (TransformType.ENCR, 23): "camellia",
    (TransformType.PRF, 1): "md5",
    (TransformType.PRF, 4): "aesxcbc",
    (TransformType.PRF, 8): "aescmac",
    (TransformType.INTEG, 1): "md5",
    (TransformType.INTEG, 5): "aesxcbc",
    (TransformType.INTEG, 8): "aescmac",
    (TransformType.DH, 1): "modp768",
    (TransformType.DH, 2): "modp1024",
    (TransformType.DH, 5): "modp1536",
    (TransformType.DH, 22): "modp1024s160",
    (TransformType.DH, 23): "modp2048s224",
    (TransformType.DH, 24): "modp2048s256",
    (TransformType.DH, 27): "brainpool224",
    (TransformType.DH, 28): "brainpool256",
    (TransformType.DH, 29): "brainpool384",
    (TransformType.DH, 30): "brainpool512",
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
