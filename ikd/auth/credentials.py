"""What this host proves itself with and whom it believes: keys, certificates, anchors, all already loaded.

`Credentials` chooses a method for a rule and hands out the two sides of an authentication. It reads no files
(see `ikd.auth.files`) and is replaced whole on reload.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from cryptography import x509

from ikd.auth import (
    Authenticated,
    Authenticator,
    Declined,
    Identity,
    Step,
    Token,
    Transcript,
    hashed,
    psk,
    signature,
)
from ikd.auth.certificate import (
    CertificateProver,
    CertificateVerifier,
    HostCertificate,
    unfit_for_all,
)
from ikd.auth.chain import Trust
from ikd.auth.facts import Facts, key_hash
from ikd.auth.groups import NO_GROUPS, Groups
from ikd.auth.identity import IdKind, canonical
from ikd.auth.kerberos import KerberosAcceptor, KerberosInitiator, Ticket, host_principal
from ikd.auth.keytab import Keytab
from ikd.auth.ntlm import MACHINE, USER, Challenges, NtlmAcceptor, NtlmAccount, NtlmInitiator
from ikd.auth.psk import PskEntry, PskProver, PskVerifier
from ikd.auth.revocation import CrlCheck
from ikd.auth.tls import SecretKind, TlsAcceptor, TlsCredentials, TlsInitiator
from ikd.auth.validity import Watched
from policy.peers import Form, classify, matches, matches_any
from policy.rules import AuthMethod, Rule
from sadb.address import Address
from sadb.algorithms import Prf
from sadb.secret import Secret

_FAMILIES = {psk.METHOD: "psk"} | dict.fromkeys(signature.METHODS, "certificate")
_WORDS = {"psk": "a pre-shared key", "certificate": "a certificate"}
_ANY_MACHINE = (AuthMethod("certificate"),)
_USER = "user_"  # prefix of the keys of [identity] that name a user's certificate


@dataclass(frozen=True, slots=True)
class Material:
    """Everything loaded. `identity` is what we claim when set; `rsa_pss` signs RSA with RSASSA-PSS; `user` is
    the certificate of a user of this host, who is no machine and so not among `hosts`."""

    identity: Identity | None = None
    keys: tuple[PskEntry, ...] = ()
    hosts: tuple[HostCertificate, ...] = ()
    anchors: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    crl_check: CrlCheck = CrlCheck.ATTEMPT
    rsa_pss: bool = False
    keytab: Keytab | None = None
    tickets: Ticket | None = None  # of a user
    accounts: tuple[NtlmAccount, ...] = ()
    groups: Groups = NO_GROUPS
    user: HostCertificate | None = None
    watched: tuple[Watched, ...] = field(default=(), compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def warned(self, now: float) -> tuple[str, ...]:
        """What works and should be mended all the same, certificates that have ended or soon will among
        it."""
        return (*self.warnings, *(text for one in self.watched if (text := one.warning(now))))


class Credentials:
    """The host's credentials; `clock` gives POSIX seconds, because certificates live in calendar time.
    `challenges` outlive a reload: they are those that this host has issued."""

    __slots__ = ("_certreq", "_clock", "_hosts", "_material", "_tls", "_trust", "challenges")

    def __init__(
        self, material: Material, clock: Callable[[], float], challenges: Challenges | None = None
    ) -> None:
        self.challenges = Challenges() if challenges is None else challenges
        self._material = material
        self._clock = clock
        self._trust = Trust(material.anchors, material.crls, material.crl_check)
        # ours, the longest-lived first, each with the keys of the authorities it comes from
        self._hosts = tuple(
            (host, host.authorities(material.anchors))
            for host in sorted(material.hosts, key=lambda h: (h.facts.ends, h.facts.begins), reverse=True)
        )
        self._tls: dict[tuple[x509.Certificate | None, bool], TlsCredentials] = {}
        self._certreq = tuple(dict.fromkeys(map(key_hash, material.anchors)))

    def __repr__(self) -> str:
        m = self._material
        return f"<Credentials {len(m.keys)} keys, {len(m.hosts)} certificates, {len(m.anchors)} anchors>"

    @property
    def material(self) -> Material:
        """What they are made of."""
        return self._material

    def remaining(self, peer: Authenticated) -> float | None:
        """Seconds until the peer's credential ends, None when it does not."""
        return None if peer.expires is None else max(0.0, peer.expires - self._clock())

    def certreq(self) -> tuple[bytes, ...]:
        """SHA-1 of the public key of every trusted authority, for CERTREQ (RFC 7296 section 3.7)."""
        return self._certreq

    def local_identity(self, rule: Rule, address: Address | None = None) -> Identity:
        """What to claim: the configured identity, else what our certificate says, else the pre-shared key's
        `local`, else `address` (ours, if the caller knows it) or the tunnel's; raises `Declined`."""
        if self._material.identity is not None:
            return self._of_certificate(rule, self._material.identity)
        for method in _first(rule):
            if method.method == "certificate" and (fitting := self._fitting(method)[0]):
                return fitting[0][0].facts.identity
            if method.method == "psk":
                bound = self._find_key(rule, None, address=None, local=None)
                if bound is not None and bound.local and "*" not in bound.local:
                    return Identity.parse(bound.local)
        own = address or (rule.tunnel.local if rule.tunnel else None)
        if own is None:
            raise Declined("this host has no identity to claim", "set identity.id in ikd.toml")
        return Identity(IdKind.IPV4_ADDR if own.version == 4 else IdKind.IPV6_ADDR, own.packed)

    def _of_certificate(self, rule: Rule, identity: Identity) -> Identity:
        """A configured distinguished name in the very octets of our certificate (RFC 4945 section 3.1.5)."""
        if identity.kind == IdKind.DER_ASN1_DN:
            for host in self._material.hosts:
                if host.facts.prove(identity):
                    return Identity(identity.kind, host.leaf.subject.public_bytes())
        return identity

    # Proving ---------------------------------------------------------------------------------------------

    def prover(
        self,
        rule: Rule,
        identity: Identity,
        peer: Identity | None,
        transcript: Transcript,
        hashes: frozenset[int] = frozenset(),
        authorities: tuple[bytes, ...] = (),
        address: Address | None = None,
    ) -> Authenticator:
        """Our side, with the first usable method of the rule. `identity` is what we claim, `peer` what the
        peer claims if it has spoken (else its `address` and the rule tell which pre-shared key is meant);
        `hashes` and `authorities` are the peer's SIGNATURE_HASH_ALGORITHMS and CERTREQ. Raises `Declined`."""
        declined: list[Declined] = []
        for method in _first(rule):
            try:
                if method.method == "psk":
                    return PskProver(self._key(rule, identity, peer, address).secret, transcript)
                if method.method == "certificate":
                    return self._certificate(method, identity, transcript, hashes, authorities)
                declined.append(Declined(f"IKEv2 cannot authenticate with {method.method}"))
            except Declined as error:
                declined.append(error)
        raise _together(rule, declined)

    def _key(self, rule: Rule, local: Identity, peer: Identity | None, address: Address | None) -> PskEntry:
        entry = self._find_key(rule, peer, address, str(local))
        if entry is None:
            whom = str(peer or next(iter(_presumed_names(rule, address)), "this peer"))
            raise Declined(
                f"no pre-shared key for {whom}",
                f'add a [[psk]] with peers = ["{whom}"] to secrets.toml, '
                "or correct the identity the peer claims",
                cause="no-key",
            )
        return entry

    def _find_key(
        self, rule: Rule, peer: Identity | None, address: Address | None, local: str | None
    ) -> PskEntry | None:
        """By what the peer claims and nothing else; before it has spoken, by what the rule says of it."""
        keys = self._material.keys
        if peer is not None:
            return psk.find(keys, (str(peer),), local)
        entry = psk.find(keys, _presumed_names(rule, address), local)
        usable = [k for k in keys if psk.is_for(k, local)]
        return entry or (usable[0] if len(usable) == 1 else None)

    def _certificate(
        self,
        method: AuthMethod,
        identity: Identity,
        transcript: Transcript,
        hashes: frozenset[int],
        authorities: tuple[bytes, ...],
    ) -> CertificateProver:
        hosts, reason = self._fitting(method)
        if not hosts:
            raise Declined(
                reason or "this host has no certificate",
                "name certificate and key under [identity] in ikd.toml",
            )
        named = [(host, above) for host, above in hosts if host.facts.prove(identity)]
        if not named:
            known = ", ".join(chain.from_iterable(host.facts.names for host, _ in hosts))
            raise Declined(
                f"our identity is {identity}, but our certificate names {known or 'nobody'}",
                "set identity.id to one of these names, or issue a certificate for it",
            )
        # a peer's CERTREQ is a preference, not a condition (RFC 7296 section 3.7)
        if len(named) > 1:
            named.sort(key=lambda pair: pair[1].isdisjoint(authorities))
        refusal: Declined | None = None
        for host, _ in named:
            try:
                scheme = signature.choose(host.key, hashes, pss=self._material.rsa_pss)
                return CertificateProver(host, scheme, transcript)
            except Declined as error:
                refusal = refusal or error
        raise refusal or Declined("this host has no certificate")

    def _fitting(
        self, method: AuthMethod
    ) -> tuple[list[tuple[HostCertificate, frozenset[bytes]]], str | None]:
        """Our certificates that a method allows, the longest-lived first, and why the others are not."""
        fitting, reason = [], None
        for host, above in self._hosts:
            why = self._unusable((method,), host)
            if why is None:
                fitting.append((host, above))
            reason = why or reason
        return fitting, reason

    def _unusable(self, methods: tuple[AuthMethod, ...], host: HostCertificate) -> str | None:
        """Why a certificate of ours is now of no use for any of some methods."""
        if not host.facts.is_current(self._clock()):
            return f"our certificate {host.facts.title} is not valid now (valid {_period(host.facts)})"
        why = unfit_for_all(methods, host.facts)
        return why and f"our {why}"

    # IKEv1 -----------------------------------------------------------------------------------------------

    def authority_names(self) -> tuple[bytes, ...]:
        """Names of the trusted authorities in DER, for Certificate Request payloads (RFC 2408 section
        3.10)."""
        return tuple(dict.fromkeys(one.subject.public_bytes() for one in self._material.anchors))

    def hash_methods(self, rule: Rule) -> tuple[int, ...]:
        """Authentication methods of phase 1 that a rule wants and we can prove ourselves with, in its
        order."""
        found: list[int] = []
        for method in _first(rule):
            if method.method == "psk" and any(psk.is_for(key, None) for key in self._material.keys):
                found.append(hashed.PSK)
            elif method.method == "certificate":
                types = (host.facts.key_type for host, _ in self._fitting(method)[0])
                found += (hashed.METHODS[one] for one in types if one in hashed.METHODS)
            elif method.method == "kerberos" and self._material.keytab and self._material.keytab.service:
                found.append(hashed.GSS)
        return tuple(dict.fromkeys(found))

    def shared_key(self, rule: Rule, peer: Identity | None, address: Address) -> Secret:
        """The pre-shared key for a peer by its address and what the rule says of it: main mode needs the key
        before the peer has said its name; aggressive mode has it (`peer`). Raises `Declined`."""
        return self._key(rule, self.local_identity(rule), peer, address).secret

    def shared_key_names(self, rule: Rule, peer: Identity, address: Address, key: Secret) -> bool:
        """Whether the key that was used is one for the peer by the name it has said since. Behind a NAT it
        calls itself by an address nobody knows: then it may be one for the address it is seen with."""
        local = str(self.local_identity(rule))
        names = [str(peer)]
        if peer.kind in (IdKind.IPV4_ADDR, IdKind.IPV6_ADDR):
            names.append(str(address))
        found = (psk.find(self._material.keys, (name,), local) for name in names)
        return any(entry is not None and entry.secret == key for entry in found)

    def hash_signer(self, rule: Rule, method: int, identity: Identity, digest: bytes) -> Authenticator:
        """Our signature over HASH_I or HASH_R; raises `Declined`."""
        for wanted in _first(rule):
            if wanted.method != "certificate":
                continue
            for host, _ in self._fitting(wanted)[0]:
                fits = hashed.METHODS.get(host.facts.key_type or "") == method
                if fits and host.facts.prove(identity):
                    return hashed.HashSigner(host, method, digest)
        raise Declined(
            f"no certificate of ours fits authentication method {method} and names {identity}",
            "set identity.id to a name of the certificate, or issue one for it",
        )

    def hash_verifier(self, rule: Rule, identity: Identity, digest: bytes, row: Prf) -> Authenticator:
        """The side that checks the peer's signature over HASH_I or HASH_R."""
        wanted = tuple(one for one in _first(rule) if one.method == "certificate")
        transcript = Transcript(digest, row)
        groups = self._material.groups
        return hashed.HashVerifier(wanted, identity, transcript, self._trust, self._clock, groups=groups)

    # Kerberos, in IKEv1 and AuthIP -----------------------------------------------------------------------

    def kerberos_name(self, rule: Rule) -> str:
        """Our principal, which a peer asks a ticket for; raises `Declined`."""
        keytab = self._keytab(rule)
        if keytab.service is None:
            raise Declined(
                f"keytab {keytab.path} has no key of a machine",
                f"write one for host/NAME: kadmin -q 'ktadd -k {keytab.path} host/NAME'",
            )
        return str(keytab.service)

    def kerberos_initiator(
        self, rule: Rule, claimed: str | None = None, *, user: bool = False
    ) -> KerberosInitiator:
        """The side that begins, as this machine or with the tickets of its `user`. `claimed` is the principal
        that the peer calls itself, if it has spoken; the rule's `peer` decides whether that will do. Raises
        `Declined`."""
        source = self._tickets(rule) if user else self._keytab(rule)
        return KerberosInitiator(_target(rule, claimed), source, self._clock, self._material.groups)

    def kerberos_acceptor(self, rule: Rule, *, users: bool = False) -> KerberosAcceptor:
        """The side that waits; with `users` it takes a user's ticket, too. Raises `Declined`."""
        return KerberosAcceptor(self._keytab(rule), self._clock, self._material.groups, users=users)

    def _tickets(self, rule: Rule) -> Ticket:
        _wanted(rule, "kerberos")
        if self._material.tickets is None:
            raise Declined(
                "this host has no Kerberos tickets of a user",
                "name the user's ticket cache as identity.user_tickets in ikd.toml",
            )
        return self._material.tickets

    def _keytab(self, rule: Rule) -> Keytab:
        _wanted(rule, "kerberos")
        if self._material.keytab is None:
            raise Declined(
                "this host has no Kerberos credential", "name its keytab as identity.keytab in ikd.toml"
            )
        return self._material.keytab

    # TLS, in AuthIP --------------------------------------------------------------------------------------

    def tls_hosts(
        self, methods: tuple[AuthMethod, ...], *, user: bool = False
    ) -> tuple[HostCertificate, ...]:
        """Our certificates that fit one of the methods now, in the order in which to try them: that of the
        methods, then the longest-lived first. With `user` it is the user's."""
        if user:
            one = self._material.user
            return (one,) if one is not None and self._unusable(methods, one) is None else ()
        found = [host for method in methods for host, _ in self._fitting(method)[0]]
        return tuple({host.leaf: host for host in found}.values())

    def tls_initiator(
        self,
        rule: Rule,
        methods: tuple[AuthMethod, ...],
        *,
        user: bool = False,
        mutual: bool = True,
        secret: SecretKind = "exporter",
        host: HostCertificate | None = None,
        old: bool = False,
    ) -> TlsInitiator:
        """The TLS client, with the certificate `host` or else the first that fits `methods`, which also say
        what the peer's must be. With `user` it proves the user of this host, to whatever machine we trust.
        Unless `mutual` it proves nothing. `old` takes cipher suites of old peers. Raises `Declined`."""
        _check_tls(rule, methods)
        if mutual and host is None:
            host = self._tls_host(methods, user=user)
        credentials = self._tls_credentials(host if mutual else None, old)
        wanted = _ANY_MACHINE if user else methods
        groups = self._material.groups
        return TlsInitiator(credentials, wanted, self._clock, groups, mutual=mutual, secret=secret)

    def tls_acceptor(
        self,
        rule: Rule,
        methods: tuple[AuthMethod, ...],
        *,
        user: bool = False,
        mutual: bool = True,
        secret: SecretKind = "exporter",
        host: HostCertificate | None = None,
        old: bool = False,
    ) -> TlsAcceptor:
        """The TLS server, which always proves this machine, and checks the peer's certificate against
        `methods` if `mutual`. With `user` that is a user's, and any certificate of this machine will do.
        Raises `Declined`."""
        _check_tls(rule, methods)
        credentials = self._tls_credentials(host or self._tls_host(_ANY_MACHINE if user else methods), old)
        return TlsAcceptor(
            credentials,
            methods,
            self._clock,
            self._material.groups,
            mutual=mutual,
            secret=secret,
            whose="user" if user else "host",
        )

    def _tls_host(self, methods: tuple[AuthMethod, ...], *, user: bool = False) -> HostCertificate:
        """The first certificate that fits; raises `Declined`, which says why none does."""
        if fitting := self.tls_hosts(methods, user=user):
            return fitting[0]
        ours = ((self._material.user,) if self._material.user else ()) if user else self._material.hosts
        reasons = [reason for host in ours if (reason := self._unusable(methods, host))]
        prefix = _USER if user else ""
        raise Declined(
            "; ".join(reasons) or f"{'the user of ' if user else ''}this host has no certificate",
            f"name a fitting certificate as identity.{prefix}certificate and its key as "
            f"identity.{prefix}key in ikd.toml",
        )

    def _tls_credentials(self, host: HostCertificate | None, old: bool) -> TlsCredentials:
        key = host.leaf if host else None, old
        if key not in self._tls:
            self._tls[key] = TlsCredentials(host, self._trust, old=old)
        return self._tls[key]

    # NTLM, in AuthIP -------------------------------------------------------------------------------------

    def ntlm_accounts(self, *, user: bool) -> tuple[NtlmAccount, ...]:
        """The accounts to prove ourselves with: as this machine, or as its user."""
        return tuple(one for one in self._material.accounts if (USER if user else MACHINE) in one.use)

    def ntlm_initiator(self, rule: Rule, *, user: bool) -> NtlmInitiator:
        """The side that begins, with the first of these accounts; raises `Declined`."""
        _wanted(rule, "ntlm")
        accounts = self.ntlm_accounts(user=user)
        if not accounts:
            use = USER if user else MACHINE
            raise Declined(
                f"this host has no NTLM account of its {use}",
                f'add [[ntlm]] with account, password and use = ["{use}"] to secrets.toml',
            )
        return NtlmInitiator(accounts[0], _host(rule), self.challenges)

    def ntlm_acceptor(self, rule: Rule, *, users: bool) -> NtlmAcceptor:
        """The side that waits; with `users` it takes a user's account, too. Raises `Declined`."""
        _wanted(rule, "ntlm")
        m = self._material
        return NtlmAcceptor(m.accounts, self._clock, self.challenges, m.groups, users=users)

    # Verifying -------------------------------------------------------------------------------------------

    def verifier(
        self,
        rule: Rule,
        identity: Identity,
        transcript: Transcript,
        hashes: frozenset[int] = signature.ANNOUNCED,
        local: Identity | None = None,
    ) -> Authenticator:
        """The side that checks the peer's token: any method of the rule, whichever the peer used. `identity`
        is what the peer claims, `hashes` what it announced (empty: it does not know RFC 7427), `local` what
        we claim (for pre-shared keys bound to it)."""
        return Verifier(self, rule, identity, transcript, hashes, local)

    def _verifier(self, method: int, verifier: Verifier) -> Authenticator:
        """Who checks this IKEv2 authentication method; raises `Declined` when the rule does not want it."""
        rule, identity = verifier.rule, verifier.identity
        family = _FAMILIES.get(method)
        wanted = tuple(m for m in _first(rule) if m.method == family)
        if not wanted:
            used = _WORDS.get(family or "", f"authentication method {method}")
            asked = " or ".join(dict.fromkeys(_WORDS.get(m.method, m.method) for m in _first(rule)))
            raise Declined(
                f'the peer authenticated with {used}, rule "{rule.name}" wants {asked or "nothing"}',
                "make the authentication of both hosts' rules agree",
            )
        if family == "psk":
            local = verifier.local or self.local_identity(rule)
            entry = self._key(rule, local, identity, None)
            return PskVerifier(entry.secret, identity, verifier.transcript, self._material.groups)
        return CertificateVerifier(
            wanted,
            identity,
            verifier.transcript,
            self._trust,
            self._clock,
            verifier.hashes,
            self._material.groups,
        )


@dataclass(frozen=True, slots=True)
class Verifier:
    """Waits for the peer's token, whose method decides who checks it."""

    credentials: Credentials = field(repr=False)
    rule: Rule
    identity: Identity
    transcript: Transcript
    hashes: frozenset[int]
    local: Identity | None = None

    def step(self, token: Token | None) -> Step:
        """The proven peer; raises `Declined`."""
        if token is None:
            raise Declined("the peer sent no proof")
        if self.identity.kind == IdKind.NULL:
            raise Declined(
                "the peer wants to stay anonymous (ID_NULL, RFC 7619)", "give the peer an identity"
            )
        return self.credentials._verifier(token.method, self).step(token)


def _first(rule: Rule) -> tuple[AuthMethod, ...]:
    return rule.auth.first if rule.auth else ()


def _methods(rule: Rule) -> tuple[AuthMethod, ...]:
    return rule.auth.first + rule.auth.second if rule.auth else ()


def _check_tls(rule: Rule, methods: tuple[AuthMethod, ...]) -> None:
    """Whether there are methods, and all are certificates: anything else would narrow nothing."""
    if not methods or not all(method.method.endswith("certificate") for method in methods):
        raise Declined(
            f'the peer wants certificates, rule "{rule.name}" does not',
            "make the authentication of both hosts' rules agree",
        )


def _wanted(rule: Rule, mechanism: str) -> None:
    """Whether the rule wants Kerberos or NTLM, of a machine or a user; raises `Declined` when not."""
    if not any(method.method.removeprefix("user-") == mechanism for method in _methods(rule)):
        name = {"kerberos": "Kerberos", "ntlm": "NTLM"}[mechanism]
        raise Declined(
            f'the peer wants {name}, rule "{rule.name}" does not',
            "make the authentication of both hosts' rules agree",
        )


def _host(rule: Rule) -> str:
    """The peer's host name, if the rule says one."""
    form, name = classify(rule.peer or "")
    return name if form is Form.HOST and not set("*?") & set(name) else ""


def _target(rule: Rule, claimed: str | None) -> str:
    """The principal to ask a ticket for: what the rule says, and what the peer says only where the rule
    leaves it open; raises `Declined`."""
    peer = rule.peer
    if peer is not None and "*" not in peer and "?" not in peer:
        wanted = (
            peer if peer.lower().startswith("host/") or "$@" in peer else f"host/{peer.removeprefix('@')}"
        )
        if matches(peer, wanted):
            return wanted
    if claimed is None:
        raise Declined(
            f'rule "{rule.name}" names no single host to ask a Kerberos ticket for',
            "set `peer` of the rule to the peer's host name",
        )
    found = host_principal(claimed)
    if peer is not None and not matches_any((peer,), found.names(found.realm)):
        raise Declined(
            f'rule "{rule.name}" expects peer "{peer}", the other end calls itself {found}',
            f'if this is the right host, correct `peer` of rule "{rule.name}"',
        )
    return str(found)


def _presumed_names(rule: Rule, address: Address | None) -> tuple[str, ...]:
    """What a peer that has not spoken may be called, best known first."""
    known: list[str | Address | None] = []
    with suppress(ValueError):  # a name of Kerberos or NTLM, which no key is for
        known.append(rule.peer and canonical(rule.peer))
    if rule.tunnel:
        known += [rule.tunnel.remote_host, rule.tunnel.remote]
    known.append(address)
    known += [s.low for s in rule.selector.remote if s.single]
    return tuple(dict.fromkeys(str(name) for name in known if name is not None))


def _together(rule: Rule, declined: Sequence[Declined]) -> Declined:
    """One refusal out of the refusals of each method."""
    if not declined:
        return Declined(
            f'rule "{rule.name}" has no authentication method', "give the rule an authentication set"
        )
    return Declined("; ".join(map(str, declined)), next((d.remedy for d in declined if d.remedy), ""))


def _period(facts: Facts) -> str:
    begin, end = (dt.datetime.fromtimestamp(when, dt.UTC) for when in (facts.begins, facts.ends))
    return f"{begin:%Y-%m-%d} to {end:%Y-%m-%d}"
