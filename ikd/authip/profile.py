"""The interop profile: what MS-AIPS leaves open or contradicts itself in, one field each, chosen by `profile`
in ikd.toml. Nothing of this stands anywhere else, so that a capture of a Windows host settles it here.

OQ numbers are those of docs/interop-windows.md, which has the questions in words. Not here, because only one
reading can be built: TLS tokens are whole records, NULL and GCM are no main-mode ciphers, keys of quick mode
are derived after extended mode where there is one, the secret of an ECP group is its x coordinate, an
unauthenticated message in a wrong state tears nothing down, dictated keys are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Profile:
    """One set of answers; the defaults are what seemed the likeliest."""

    natd_hash: Literal["sha1", "sha256"] = "sha1"  # OQ-1: sent; any is understood
    first_sync_id: Literal["fresh", "same"] = "fresh"  # OQ-2: message ID of the first quick mode's #7
    extended_reply_id: int = 1  # OQ-3: message ID of the responder's first answer; 0 and 1 are understood
    clear_iv: bool = True  # OQ-6: the responder's clear messages carry an IV once its GSS side is complete
    spn: str = "host"  # OQ-8: service class of the name in GSS_ID
    ecdsa_methods: bool = True  # OQ-9: methods 9 and 10 beside 4 for certificates with ECDSA keys
    vendor_version: int | None = None  # OQ-11: Microsoft's vendor ID with this version
    announces_modules: bool = True  # vendor ID of supported keying modules (Windows 7)
    announces_group: bool = True  # vendor ID with the group of the initiator's KE (Windows 8)
    method_attribute: int | None = None  # OQ-13: authentication method in main-mode transforms
    extended_exchange: Literal[243, 245] = 245  # OQ-14: exchange type of extended mode's GSS messages
    anonymous_tokens: bool = True  # OQ-15: empty tokens go back and forth before quick mode
    length_prefixes: bool = False  # OQ-16: in front of the parts of OtherInfo
    kerberos_key: int | None = None  # OQ-17: so many octets of the context's session key; None: all
    # OQ-18: the first is PRF(master, "client EAP encryption", randoms), 32 octets
    tls_key: Literal["exporter", "eap-key-block", "master-secret", "hash-of-key-block"] = "exporter"
    transcript: Literal["message", "payloads"] = "message"  # OQ-19: with or without the ISAKMP header
    authentication_key_first: bool = True  # OQ-20: order of the two keys of quick mode
    salt: bool = True  # OQ-21: four more octets for GCM and GMAC; without, there are no such suites
    fast_quick: bool = False  # OQ-22: as initiator, no synchronisation behind #6
    later_nonce: bool = True  # OQ-23: the responder's nonce in the second message of later quick modes
    later_hash: bool = True  # OQ-23: Auth1 and Auth2 again in later quick modes
    cookie_exchange: int = 246  # OQ-26: exchange type of NOTIFY_DOS_COOKIE; 243, 246 and 5 are understood
    drops_every_ikev1: bool = False  # OQ-25: also those without MS-MamieExists, where a rule has AuthIP
    failed_attempts_count: bool = True  # OQ-28: messages of failed GSS attempts are in the transcript
    auth1_hashed: bool = True  # OQ-29: as Auth2 has it; False: as the formula of Auth1 is printed
    auth_inside: bool = True  # OQ-30: Auth1 and Auth2 stand inside the prf of Auth3 and Auth4
    sync_in_extended: bool = False  # OQ-31: #7 and #8 belong to the transcript of extended mode
    short_icv: Literal["either", "received"] = "either"  # OQ-33: whose vendor ID makes it 12 octets
    crypto_id: Literal["big", "little"] = "big"  # OQ-34: byte order of the cipher's number, 16 bits
    first_new: bool = True  # OQ-35: NEW in the very first GSS message
    names: str = "utf-16-le"  # OQ-36: encoding of GSS_ID
    ack_echoes: bool = True  # OQ-37: an acknowledgement has message ID and sequence number of the notify
    icv_key: Literal["a", "e"] = "a"  # OQ-39: SKEYID_a, or SKEYID_e


PROFILES: dict[str, Profile] = {
    # Vista, Server 2008: no ECDSA methods, none of the later vendor IDs
    "windows-2008": Profile(ecdsa_methods=False, announces_modules=False, announces_group=False),
    "windows-2012": Profile(),
}
