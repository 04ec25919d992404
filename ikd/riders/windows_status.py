"""Error codes of Windows in the private notifies NOTIFY_STATUS (IKEv1: 40003, IKEv2: 12345) and EXCHANGE_INFO
(IKEv1: 40005), MS-IKEE sections 2.2.6 and 2.2.7: the number that comes, its name, and what it means here.

Names are those of winerror.h (System Error Codes 12000 to 15999); the words are ours. They are hints for
people: nothing is decided by them but that a negotiation has failed.
"""

from __future__ import annotations

from dataclasses import dataclass

NO_ERROR = 0

# code -> (name without ERROR_IPSEC_, what it means)
CODES: dict[int, tuple[str, str]] = {
    13801: ("IKE_AUTH_FAIL", "it does not accept our credentials"),
    13802: ("IKE_ATTRIB_FAIL", "it does not accept an attribute of our proposal"),
    13803: ("IKE_NEGOTIATION_PENDING", "it is still negotiating"),
    13804: ("IKE_GENERAL_PROCESSING_ERROR", "it could not process our message"),
    13805: ("IKE_TIMED_OUT", "it gave up waiting"),
    13806: ("IKE_NO_CERT", "it has no valid machine certificate"),
    13807: ("IKE_SA_DELETED", "it deleted the SA before it was up"),
    13808: ("IKE_SA_REAPED", "it dropped the SA before it was up"),
    13813: ("IKE_DROP_NO_RESPONSE", "it got no answer from us"),
    13816: ("IKE_ERROR", "it could not process our message"),
    13817: ("IKE_CRL_FAILED", "it could not check our certificate against a revocation list"),
    13818: ("IKE_INVALID_KEY_USAGE", "our certificate is not for this use"),
    13819: ("IKE_INVALID_CERT_TYPE", "our certificate is not of a type it accepts"),
    13820: ("IKE_NO_PRIVATE_KEY", "it has no private key for its certificate"),
    13822: ("IKE_DH_FAIL", "its key exchange failed"),
    13823: ("IKE_CRITICAL_PAYLOAD_NOT_RECOGNIZED", "it does not know a critical payload of ours"),
    13824: ("IKE_INVALID_HEADER", "it does not accept the header of our message"),
    13825: ("IKE_NO_POLICY", "it has no policy for this traffic"),
    13826: ("IKE_INVALID_SIGNATURE", "our signature does not verify there"),
    13827: ("IKE_KERBEROS_ERROR", "Kerberos failed there"),
    13828: ("IKE_NO_PUBLIC_KEY", "our certificate has no public key it can use"),
    13829: ("IKE_PROCESS_ERR", "it could not process our message"),
    13830: ("IKE_PROCESS_ERR_SA", "it could not process our SA payload"),
    13831: ("IKE_PROCESS_ERR_PROP", "it could not process our proposal"),
    13832: ("IKE_PROCESS_ERR_TRANS", "it could not process a transform of ours"),
    13833: ("IKE_PROCESS_ERR_KE", "it could not process our key exchange"),
    13834: ("IKE_PROCESS_ERR_ID", "it could not process our identity"),
    13835: ("IKE_PROCESS_ERR_CERT", "it could not process our certificate"),
    13836: ("IKE_PROCESS_ERR_CERT_REQ", "it could not process our certificate request"),
    13837: ("IKE_PROCESS_ERR_HASH", "it could not process our hash"),
    13838: ("IKE_PROCESS_ERR_SIG", "it could not process our signature"),
    13839: ("IKE_PROCESS_ERR_NONCE", "it could not process our nonce"),
    13840: ("IKE_PROCESS_ERR_NOTIFY", "it could not process our notify"),
    13841: ("IKE_PROCESS_ERR_DELETE", "it could not process our deletion"),
    13842: ("IKE_PROCESS_ERR_VENDOR", "it could not process our vendor ID"),
    13843: ("IKE_INVALID_PAYLOAD", "it does not accept a payload of ours"),
    13846: ("IKE_INVALID_COOKIE", "it does not know our cookies"),
    13847: ("IKE_NO_PEER_CERT", "it got no certificate of ours"),
    13848: ("IKE_PEER_CRL_FAILED", "our certificate is revoked, or it could not be checked"),
    13849: ("IKE_POLICY_CHANGE", "its policy has changed"),
    13850: ("IKE_NO_MM_POLICY", "it has no main-mode policy for us"),
    13860: ("IKE_ADD_UPDATE_KEY_FAILED", "it could not install the keys"),
    13861: ("IKE_INVALID_POLICY", "its policy is wrong"),
    13864: ("IKE_DH_FAILURE", "its key exchange failed"),
    13865: ("IKE_INVALID_GROUP", "it does not accept the group"),
    13868: ("IKE_POLICY_MATCH", "its policy accepts nothing that we offered"),
    13869: ("IKE_UNSUPPORTED_ID", "it does not accept an identity of this type"),
    13870: ("IKE_INVALID_HASH", "our hash does not verify there; most likely the keys differ"),
    13871: ("IKE_INVALID_HASH_ALG", "it does not accept the hash algorithm"),
    13873: ("IKE_INVALID_ENCRYPT_ALG", "it does not accept the encryption algorithm"),
    13874: ("IKE_INVALID_AUTH_ALG", "it does not accept the authentication algorithm"),
    13875: ("IKE_INVALID_SIG", "the signature of a certificate is not valid there"),
    13880: ("IKE_INVALID_MAJOR_VERSION", "it does not speak this version"),
    13881: ("IKE_INVALID_CERT_KEYLEN", "the key of our certificate is too short for it"),
    13882: ("IKE_MM_LIMIT", "it has as many main-mode SAs with us as it allows"),
    13883: ("IKE_NEGOTIATION_DISABLED", "its policy allows no negotiation"),
    13884: ("IKE_QM_LIMIT", "it wants no further quick-mode SA under this main-mode SA"),
    13885: ("IKE_MM_EXPIRED", "its main-mode SA has run out, or we deleted it"),
    13887: ("IKE_CERT_CHAIN_POLICY_MISMATCH", "the chain of our certificate does not fit its policy"),
    13888: ("IKE_UNEXPECTED_MESSAGE_ID", "it did not expect this message ID"),
    13889: ("IKE_INVALID_AUTH_PAYLOAD", "our AUTH payload is not valid there"),
    13890: ("IKE_DOS_COOKIE_SENT", "it asked for a cookie"),
    13891: ("IKE_SHUTTING_DOWN", "it is shutting down"),
    13892: ("IKE_CGA_AUTH_FAILED", "CGA authentication failed there"),
}


@dataclass(frozen=True, slots=True)
class Told:
    """What a private notify says: a number and, in IKEv1, the quick mode it is about (0: none)."""

    value: int
    message_id: int = 0


def read(spi: bytes, data: bytes) -> Told | None:
    """The contents of NOTIFY_STATUS or EXCHANGE_INFO, None when they are none. A quick mode's message ID may
    stand in front; the SPI size then says 8 whether an SPI is there or these are the 8 octets (I1 of
    docs/interop-windows.md), so that what is left decides."""
    octets = data or (spi if len(spi) == 8 else b"")
    if len(octets) == 4:
        return Told(int.from_bytes(octets, "big"))
    if len(octets) == 8:
        return Told(int.from_bytes(octets[4:], "big"), int.from_bytes(octets[:4], "big"))
    return None


def shown(code: int) -> str:
    """A code for people: `Windows error 13868, ERROR_IPSEC_IKE_POLICY_MATCH: ...`."""
    name, meaning = CODES.get(code, ("", ""))
    return f"Windows error {code}" + (f", ERROR_IPSEC_{name}: {meaning}" if name else "")


def flags(value: int) -> str:
    """The flags of EXCHANGE_INFO: what negotiation discovery says of a quick mode."""
    names = [name for bit, name in ((1, "BOUNDARY"), (2, "GUARANTEE_ENCRYPTION")) if value & bit]
    return " ".join(names) or f"{value:#x}"


def label(code: int) -> str:
    """A code as a line of the log has it: `13868 IKE_POLICY_MATCH`."""
    return " ".join((str(code), CODES.get(code, ("",))[0])).rstrip()
