"""Certificates as token exchange: a TLS 1.2 handshake (RFC 5246) in memory, one flight a token ([MS-AIPS]
2.2.3.1). The initiator is the TLS client; no octet is ever sent through the TLS connection that results.

The full handshake has four tokens. The initiator is done after the last one and has nothing to send; the
acceptor's last step has both a token and the peer. The library checks a peer's chain at our clock's time, but
what it thinks of extended key usages is about web servers; that, revocation and a rule's demands are judged
as in IKE, before anything is sent that would tell the peer it has succeeded.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

from OpenSSL import SSL, crypto

from ikd.auth import ANONYMOUS, Authenticated, Declined, Step, Token
from ikd.auth.certificate import HostCertificate, check_wanted, proven
from ikd.auth.chain import MAX_DEPTH, Trust
from ikd.auth.facts import Facts
from ikd.auth.groups import NO_GROUPS, Groups
from ikd.auth.tls_errors import Objection, explain, reason_of
from policy.rules import AuthMethod
from sadb.secret import Secret

SecretKind = Literal["exporter", "eap-key-block", "master-secret", "hash-of-key-block"]

MOST_ROUNDS = 10
MOST_OCTETS = 32768  # of a token: a dozen large certificates
_LABEL = b"client EAP encryption"  # of EAP-TLS (RFC 5216 section 2.3)
_KEY_BLOCK = 128

_MODERN = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_OLD = b":ECDHE+AES:kRSA+AES:!aNULL:!PSK"  # what Windows 7 has, for all kinds of keys
_NO_AUTO_CHAIN = 0x8  # SSL_MODE_NO_AUTO_CHAIN: send our chain as it is, without what we trust
_PURPOSE = SSL.X509VerificationCodes.ERR_INVALID_PURPOSE

_HEADER = 5  # of a record: type, version, length (RFC 5246 section 6.2.1)
_TYPES = frozenset((20, 21, 22))  # change_cipher_spec, alert, handshake
_CERTIFICATE_UNKNOWN = bytes.fromhex("1503030002022e")  # the alert of RFC 5246 section 7.2.2


class TlsCredentials:
    """A certificate of ours, or none, and whom we trust, with the library's contexts made of both: making one
    costs more than a handshake. `old` adds cipher suites for old peers, without forward secrecy; with
    `announce` an acceptor names the authorities it trusts to whoever asks."""

    __slots__ = ("_announce", "_contexts", "_host", "_old", "_trust")

    def __init__(
        self, host: HostCertificate | None, trust: Trust, *, old: bool = False, announce: bool = False
    ) -> None:
        self._host = host
        self._trust = trust
        self._old = old
        self._announce = announce
        self._contexts: dict[tuple[bool, bool], SSL.Context] = {}

    def __repr__(self) -> str:
        return f"<TlsCredentials {self._host.facts.title if self._host else 'without certificate'}>"

    @property
    def trust(self) -> Trust:
        """Whom we believe."""
        return self._trust

    def connection(self, *, proving: bool, checking: bool, now: float) -> SSL.Connection:
        """A new connection without a socket, that shows our certificate if `proving` and demands the peer's
        if `checking`, at POSIX time `now`. Raises `Declined` when we have nothing to prove ourselves with."""
        key = proving, checking
        if key not in self._contexts:
            try:
                self._contexts[key] = self._context(proving=proving, checking=checking)
            except (SSL.Error, crypto.Error) as error:
                raise Declined(
                    f"our certificates cannot be used in TLS: {reason_of(error)}",
                    "issue a host certificate with an ECDSA or RSA key: ikctl cert issue",
                ) from None
        context = self._contexts[key]
        _store(context).set_time(dt.datetime.fromtimestamp(now, dt.UTC))
        return SSL.Connection(context)

    def _context(self, *, proving: bool, checking: bool) -> SSL.Context:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        # a session that is resumed would skip the certificates
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_mode(_NO_AUTO_CHAIN)
        context.set_cipher_list(_MODERN + _OLD + b":@SECLEVEL=1" if self._old else _MODERN + b":@SECLEVEL=2")
        if proving:
            self._prove(context)
        if checking:
            self._check(context)
        return context

    def _prove(self, context: SSL.Context) -> None:
        if self._host is None:
            raise Declined(
                "this host has no certificate to prove itself with",
                "name certificate and key under [identity] in ikd.toml",
            )
        context.use_certificate(self._host.leaf)
        context.use_privatekey(self._host.key)
        for issuer in self._host.chain[1:]:
            if issuer.subject != issuer.issuer:
                context.add_extra_chain_cert(issuer)

    def _check(self, context: SSL.Context) -> None:
        store = _store(context)
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)  # an anchor need not be self-signed
        for anchor in self._trust.anchors:
            store.add_cert(crypto.X509.from_cryptography(anchor))
            if self._announce:
                context.add_client_ca(anchor)
        context.set_verify_depth(MAX_DEPTH + 1)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _accepts)


class _Side(ABC):
    """What both roles have in common. `methods` are what the peer's certificate may be; unless `mutual`, only
    the acceptor proves itself."""

    __slots__ = (
        "_clock",
        "_connection",
        "_credentials",
        "_facts",
        "_groups",
        "_methods",
        "_mutual",
        "_over",
        "_rounds",
        "_secret",
        "_whose",
    )

    def __init__(
        self,
        credentials: TlsCredentials,
        methods: tuple[AuthMethod, ...],
        clock: Callable[[], float],
        groups: Groups = NO_GROUPS,
        *,
        mutual: bool = True,
        secret: SecretKind = "exporter",
        whose: str = "host",
    ) -> None:
        """`secret` is what becomes the key, `whose` certificate is expected of the peer, for texts."""
        self._credentials = credentials
        self._methods = methods
        self._clock = clock
        self._groups = groups
        self._mutual = mutual
        self._secret = secret
        self._whose = whose
        self._connection: SSL.Connection | None = None
        self._facts: Facts | None = None  # of the peer's chain, once it is found good
        self._rounds = 0
        self._over = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._credentials!r}>"

    _begins: ClassVar[bool]

    @property
    @abstractmethod
    def _proving(self) -> bool:
        """Whether we show a certificate."""

    @property
    @abstractmethod
    def _checking(self) -> bool:
        """Whether the peer must show one."""

    def step(self, token: Token | None) -> Step:
        """Take the peer's flight (None to begin as initiator); raises `Declined`, whose token is an alert,
        and is of no use then."""
        if self._over or self._rounds >= MOST_ROUNDS:
            raise Declined("the peer sent another TLS token after the last one")
        self._rounds += 1
        self._over = True  # unless this step turns out well and is not the last
        connection = self._fed(token)
        done = self._advance(connection)
        if self._checking and self._facts is None:
            self._facts = self._judged(connection)
        answer = _drained(connection)
        if done:
            peer = self._authenticated(connection) if self._checking else ANONYMOUS
            return Step(Token(answer) if answer else None, peer, _key(connection, self._secret))
        if not answer:
            raise Declined("the peer's TLS token is incomplete, and the handshake came to no end")
        self._over = False
        return Step(Token(answer))

    def _fed(self, token: Token | None) -> SSL.Connection:
        """The connection with the peer's octets in it."""
        if self._connection is not None:
            self._connection.bio_write(_octets(token))
            return self._connection
        if self._begins and token is not None:
            raise Declined("the peer sent a TLS token before ours")
        data = b"" if self._begins else _octets(token)
        connection = self._credentials.connection(
            proving=self._proving, checking=self._checking, now=self._clock()
        )
        connection.set_app_data(Objection())
        if self._begins:
            connection.set_connect_state()
        else:
            connection.set_accept_state()
            connection.bio_write(data)
        self._connection = connection
        return connection

    def _advance(self, connection: SSL.Connection) -> bool:
        """Let the library go on; whether the handshake is complete."""
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            objection: Objection = connection.get_app_data()
            trust, alert = self._credentials.trust, _drained(connection)
            raise explain(error, objection, trust, self._clock(), alert) from None
        try:
            connection.recv(1)
        except SSL.WantReadError:
            return True
        except SSL.Error:
            pass
        raise Declined("the peer sent more after the end of the TLS handshake")

    def _judged(self, connection: SSL.Connection) -> Facts | None:
        """The facts of the peer's chain, None when it has not sent it yet; raises `Declined`. The peer has
        the octets of the library's next flight only after this."""
        leaf = connection.get_peer_certificate()
        if leaf is None:
            return None
        presented = [_der(one) for one in (leaf, *(connection.get_peer_cert_chain() or ()))]
        try:
            facts = self._credentials.trust.verify(presented, self._clock()).facts
            check_wanted(self._methods, facts)
        except Declined as declined:
            declined.token = _CERTIFICATE_UNKNOWN
            raise
        return facts

    def _authenticated(self, connection: SSL.Connection) -> Authenticated:
        facts = self._facts
        if facts is None:  # the library has been told to complete nothing without a certificate
            raise Declined("the peer has sent no certificate, and one is wanted")
        how = f"tls {connection.get_cipher_name()}"
        return proven(facts.identity, facts, how, self._groups, self._whose)


class TlsInitiator(_Side):
    """The TLS client. It shows its certificate only if `mutual`, and only to an acceptor it has found
    good."""

    __slots__ = ()

    _begins = True

    @property
    def _proving(self) -> bool:
        return self._mutual

    @property
    def _checking(self) -> bool:
        return True


class TlsAcceptor(_Side):
    """The TLS server. Unless `mutual`, its peer is `ANONYMOUS`."""

    __slots__ = ()

    _begins = False

    @property
    def _proving(self) -> bool:
        return True

    @property
    def _checking(self) -> bool:
        return self._mutual


def _accepts(
    connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, accepted: int
) -> bool:
    """The library asks about each certificate, about a leaf of another purpose twice."""
    if code in (0, _PURPOSE):
        return True
    objection: Objection = connection.get_app_data()
    objection.code, objection.certificate = code, _der(certificate)
    return False


def _key(connection: SSL.Connection, kind: SecretKind) -> Secret:
    """What both sides know and nobody else. No document says what Windows takes."""
    match kind:
        case "exporter":
            return Secret(connection.export_keying_material(_LABEL, 32))
        case "eap-key-block":
            return Secret(connection.export_keying_material(_LABEL, _KEY_BLOCK))
        case "hash-of-key-block":
            return Secret(hashlib.sha256(connection.export_keying_material(_LABEL, _KEY_BLOCK)).digest())
        case "master-secret":
            master = connection.master_key()
            assert master is not None
            return Secret(master)


def _octets(token: Token | None) -> bytes:
    """A token's octets, whole records that a handshake may have; raises `Declined`."""
    if token is None:
        raise Declined("the peer sent no TLS token")
    data = token.data
    if not 0 < len(data) <= MOST_OCTETS:
        raise Declined(f"the peer sent a TLS token of {len(data)} octets; the limit is {MOST_OCTETS}")
    if data[:1] == b"\x60":
        raise Declined("the peer sent a token of Kerberos or SPNEGO where TLS was agreed on")
    start = 0
    while start < len(data):
        header = data[start : start + _HEADER]
        start += _HEADER + int.from_bytes(header[3:], "big")
        if header[0] not in _TYPES or header[1:2] != b"\x03" or start > len(data):
            raise Declined("the peer sent octets that are no TLS handshake")
    return data


def _drained(connection: SSL.Connection) -> bytes:
    """What the library has for the peer."""
    found = b""
    while True:
        try:
            found += connection.bio_read(MOST_OCTETS)
        except SSL.WantReadError:
            return found


def _der(certificate: crypto.X509) -> bytes:
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def _store(context: SSL.Context) -> crypto.X509Store:
    store = context.get_cert_store()
    assert store is not None
    return store
