"""Health certificates: short-lived ones that vouch for a host's condition (Network Access Protection).

An extended key usage says that the host was found healthy. Nothing revokes such a certificate: it is good for
hours, so how fresh it is is a matter of its validity alone, and the SA that stands on it ends with it.
"""

from __future__ import annotations

from contextlib import suppress

from cryptography import x509

SYSTEM_HEALTH = "1.3.6.1.4.1.311.47.1.1"  # extended key usage: healthy
UNHEALTHY = "1.3.6.1.4.1.311.47.1.3"
NOT_COMPLIANT = x509.ObjectIdentifier("1.3.6.1.4.1.311.47.1.11")  # certificate policy
# Microsoft's second list of usages. It has the form of certificatePolicies; the OIDs in it are looked for by
# their DER.
APPLICATION_POLICIES = x509.ObjectIdentifier("1.3.6.1.4.1.311.21.10")
_HEALTHY_DER = bytes.fromhex("060a2b0601040182372f0101")
_UNHEALTHY_DER = bytes.fromhex("060a2b0601040182372f0103")


def ailment(certificate: x509.Certificate, usages: frozenset[str] | None) -> str | None:
    """Why a certificate with these extended key usages vouches for nobody's health; None when it does.
    anyExtendedKeyUsage does not."""
    usages = usages or frozenset()
    if SYSTEM_HEALTH not in usages:
        return f"lacks the extended key usage {SYSTEM_HEALTH} (system health)"
    policies = _application_policies(certificate)
    if UNHEALTHY in usages or (policies is not None and _UNHEALTHY_DER in policies):
        return f"says that its host is not healthy ({UNHEALTHY})"
    if policies is not None and _HEALTHY_DER not in policies:
        return f"has application policies without {SYSTEM_HEALTH} (system health)"
    if NOT_COMPLIANT in _policies(certificate):
        return f"says that its host is not compliant ({NOT_COMPLIANT.dotted_string})"
    return None


def _application_policies(certificate: x509.Certificate) -> bytes | None:
    """The extension's octets, None when it has none."""
    with suppress(x509.ExtensionNotFound):
        return certificate.extensions.get_extension_for_oid(APPLICATION_POLICIES).value.public_bytes()
    return None


def _policies(certificate: x509.Certificate) -> frozenset[x509.ObjectIdentifier]:
    with suppress(x509.ExtensionNotFound):
        found = certificate.extensions.get_extension_for_class(x509.CertificatePolicies).value
        return frozenset(policy.policy_identifier for policy in found)
    return frozenset()
