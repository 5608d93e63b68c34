"""OpenSSL through cffi: the only module that touches its C pointers.

Strategy: the distribution's own libssl is opened when a Library is made. Every SSL_CTX* has one owner, a Pair or a
Context, and every SSL* one owner, a Connection, each freed by its close(). No C pointer leaves this module.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from ktlsd.openssl import macros
from ktlsd.openssl.algorithms import (
    CIPHER_LIST,
    CIPHERSUITES,
    COMPRESSIONS,
    GROUP_LISTS,
    TICKET_KEY_BYTES,
    TLS_1_2,
    TLS_1_3,
)
from ktlsd.openssl.error_queue import connection_error, file_reason, in_words
from ktlsd.openssl.errors import PEER_IS_GONE, ConnectionLost, ContextError, LibraryError, PairError, TLSError
from ktlsd.openssl.results import READ_SIZE, Handshake, Wait

OLDEST_OPENSSL: Final = (3, 0, 0)
_LONGEST_GROUP_NAME: Final = 80
_LONGEST_SUBJECT: Final = 512
_READ_HEADER: Final = "RH"


class Library:
    """An opened libssl with the libcrypto that it was linked against."""

    def __init__(self, path: str | None = None) -> None:
        """Open `path`, or libssl.so.3 by the dynamic linker's search when None.

        Raises LibraryError when there is none, or it is not OpenSSL 3.0 or later (the first with SSL_sendfile).
        """
        module = importlib.import_module("ktlsd._openssl")
        self.ffi: Any = module.ffi
        wanted = path or "libssl.so.3"
        fix = "install OpenSSL 3.0 or later (Debian, Ubuntu: apt install libssl3) or name one with --libssl PATH"
        # A libssl outside the linker's search path would otherwise be bound to the system's libcrypto of another
        # version.
        sibling = os.path.join(os.path.dirname(wanted), "libcrypto.so.3")
        try:
            self._libcrypto = self.ffi.dlopen(sibling) if path and os.path.exists(sibling) else None
            self.c: Any = self.ffi.dlopen(wanted)
        except OSError as error:
            raise LibraryError(f"cannot open OpenSSL's {wanted} ({error}): {fix}") from error
        try:
            number: int = self.c.OpenSSL_version_num()
            self.version_text: str = self._text(self.c.OpenSSL_version(0))
        except (AttributeError, self.ffi.error) as error:
            raise LibraryError(f"{wanted} is not OpenSSL's libssl ({error}): {fix}") from error
        self.version = (number >> 28, number >> 20 & 0xFF, number >> 4 & 0xFF)
        if self.version < OLDEST_OPENSSL:
            raise LibraryError(f"{wanted} is {self.version_text}, which has no SSL_sendfile: {fix}")
        self.path = _mapped_path("libssl", os.path.basename(wanted)) or wanted
        self.ktls_compiled_in = self._bio_knows_ktls()
        self.compresses_certificates = self._has("SSL_CTX_compress_certs")
        """Whether it is OpenSSL 3.2 or later; Context.compressed_sizes() tells by which algorithms."""
        self.read_buffer = self.ffi.new("char[]", READ_SIZE)
        self.received: Any = self.ffi.buffer(self.read_buffer)
        """What read_buffer has."""
        self._suites: dict[Any, tuple[str, str]] = {}
        functions = self.c.SSL_get_pending_cipher, self.c.SSL_CIPHER_is_aead, self.c.SSL_CIPHER_get_name
        self.cipher_functions: Any = self.ffi.new("void *[]", [self.ffi.cast("void *", one) for one in functions])
        """Their addresses, in C."""

    def _has(self, function: str) -> bool:
        try:
            getattr(self.c, function)
        except (AttributeError, self.ffi.error):
            return False
        return True

    def _text(self, chars: Any) -> str:
        return "" if chars == self.ffi.NULL else self.ffi.string(chars).decode("utf-8", "replace")

    def suite(self, ssl: Any) -> tuple[str, str]:
        """The names of a connection's protocol and cipher. No cipher is one of both TLS 1.2 and 1.3."""
        cipher = self.c.SSL_get_current_cipher(ssl)
        suite = self._suites.get(cipher)
        if suite is None:
            names = self.c.SSL_get_version(ssl), self.c.SSL_CIPHER_get_name(cipher)
            suite = self._suites[cipher] = (self._text(names[0]), self._text(names[1]))
        return suite

    def _bio_knows_ktls(self) -> bool:
        """Whether this build's socket BIO handles kTLS controls.

        With OPENSSL_NO_KTLS the control below is unknown and sets no flag (crypto/bio/bss_sock.c, OpenSSL 3.0 to 3.5),
        so that the build can be distinguished from a kernel without the tls ULP.
        """
        bio = self.c.BIO_new_socket(-1, macros.BIO_NOCLOSE)
        try:
            self.c.BIO_ctrl(bio, macros.BIO_CTRL_SET_KTLS_TX_CTRL_MSG, 0, self.ffi.NULL)
            return bool(self.c.BIO_test_flags(bio, macros.BIO_FLAGS_KTLS_TX_CTRL_MSG))
        finally:
            self.c.BIO_free(bio)

    def reasons(self) -> str:
        """Empty this thread's error queue into one line."""
        return in_words(self.take_errors())

    def take_errors(self) -> list[tuple[int, str]]:
        """Empty this thread's error queue: (packed code, reason) of each entry, oldest first."""
        errors = []
        while code := self.c.ERR_get_error():
            if code & macros.ERR_SYSTEM_FLAG:
                reason = os.strerror(code & ~macros.ERR_SYSTEM_FLAG)
            else:
                reason = self._text(self.c.ERR_reason_error_string(code)) or f"error {code:#x}"
            errors.append((code, reason))
        return errors


class Pair:
    """The one owner of a certificate chain and its key, which are read once and shared by Contexts."""

    def __init__(self, library: Library, certificate: str, key: str) -> None:
        """Load a PEM certificate chain and its unencrypted PEM key from files.

        Raises PairError that names the file, OSError where this process may open no more files or has no memory.
        """
        self._library = library
        self.certificate = certificate
        """The path of the PEM file."""
        c = library.c
        c.ERR_clear_error()
        # A context of its own, from which the others take what they share.
        self._ctx = c.SSL_CTX_new(c.TLS_server_method())
        if self._ctx == library.ffi.NULL:
            raise ContextError(f"SSL_CTX_new failed: {library.reasons()}")
        try:
            self._load(certificate, key)
        except BaseException:
            self.close()
            raise
        self._leaf = c.SSL_CTX_get0_certificate(self._ctx)
        public = c.X509_get0_pubkey(self._leaf)
        self.key_type: str = library._text(c.EVP_PKEY_get0_type_name(public))
        """OpenSSL's name: "EC", "RSA", "RSA-PSS", "ED25519"."""
        self.kind = f"{self.key_type} {self._group(public) or c.EVP_PKEY_get_bits(public)}"
        """The type with the curve or the bits: pairs of one kind are used alike in handshakes."""
        self.begins = self._time(c.X509_get0_notBefore(self._leaf))
        """When the certificate begins to be valid, in seconds since the epoch."""
        self.ends = self._time(c.X509_get0_notAfter(self._leaf))
        """When it ends."""

    def _load(self, certificate: str, key: str) -> None:
        from ktlsd.openssl import pem_files

        c, library = self._library.c, self._library
        if c.SSL_CTX_use_certificate_chain_file(self._ctx, os.fsencode(certificate)) != 1:
            raise pem_files.certificate_error(certificate, file_reason(library.take_errors(), certificate))
        loaded = c.SSL_CTX_get0_certificate(self._ctx)
        # Without this OpenSSL would ask the terminal for the passphrase of an encrypted key.
        no_passphrase = library.ffi.new("char[]", b"")
        c.SSL_CTX_set_default_passwd_cb_userdata(self._ctx, no_passphrase)
        taken = c.SSL_CTX_use_PrivateKey_file(self._ctx, os.fsencode(key), macros.SSL_FILETYPE_PEM)
        c.SSL_CTX_set_default_passwd_cb_userdata(self._ctx, library.ffi.NULL)
        reason = "" if taken == 1 else file_reason(library.take_errors(), key)
        # A key of another type than the certificate's is taken for a certificate that is to come.
        if c.SSL_CTX_get0_certificate(self._ctx) != loaded or reason in pem_files.MISMATCHES:
            raise pem_files.mismatch_error(certificate, key)
        if reason:
            raise pem_files.key_error(certificate, key, reason)

    def _group(self, public: Any) -> str:
        name = self._library.ffi.new("char[]", _LONGEST_GROUP_NAME)
        length = self._library.ffi.new("size_t *")
        found = self._library.c.EVP_PKEY_get_group_name(public, name, _LONGEST_GROUP_NAME, length)
        # RSA keys have none, which OpenSSL puts into the queue of errors.
        self._library.c.ERR_clear_error()
        return self._library._text(name) if found == 1 else ""

    def _time(self, asn1: Any) -> int:
        import calendar

        parts = self._library.ffi.new("struct tm *")
        self._library.c.ASN1_TIME_to_tm(asn1, parts)
        # RFC 5280 section 4.1.2.5: always in UTC.
        return calendar.timegm(
            (parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec)
        )

    def covers(self, name: str) -> bool:
        """Whether clients take the certificate for a host name or an IPv4 address (RFC 6125, without common names)."""
        c = self._library.c
        raw = name.encode()
        flags = macros.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | macros.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
        if c.X509_check_host(self._leaf, raw, len(raw), flags, self._library.ffi.NULL) == 1:
            return True
        return bool(c.X509_check_ip_asc(self._leaf, raw, flags) == 1)

    def shared(self) -> Pair:
        """A second owner of the same certificate and key."""
        import copy

        other = copy.copy(self)
        self._library.c.SSL_CTX_up_ref(self._ctx)
        return other

    def close(self) -> None:
        """Free what no Context and no other owner has."""
        if self._ctx is not None:
            self._library.c.SSL_CTX_free(self._ctx)
            self._ctx = None


class Context:
    """The one owner of an SSL_CTX*, which all connections of one kind share."""

    def __init__(
        self,
        library: Library,
        *,
        server: bool = True,
        ktls: bool = True,
        ciphers: str = CIPHER_LIST,
        ciphersuites: str = CIPHERSUITES,
        oldest: int = TLS_1_2,
        newest: int = TLS_1_3,
        groups: Sequence[str] = GROUP_LISTS,
    ) -> None:
        """`oldest` and `newest` are TLS_1_2 or TLS_1_3; of `groups` the first list that OpenSSL takes is used.

        Raises ContextError for ciphers and groups that OpenSSL refuses.
        """
        self.oldest = oldest
        """The oldest protocol, TLS_1_2 or TLS_1_3."""
        self._library = library
        self._server = server
        self._certificates: dict[str, str] = {}
        self._offers = False
        self.clients = b""
        """A digest of what require_client() demands; empty if no certificate is asked for."""
        self.optional = False
        """Whether clients may leave the certificate out."""
        self._path_names: tuple[str, ...] = ()
        c, null = library.c, library.ffi.NULL
        c.ERR_clear_error()
        self._ctx = c.SSL_CTX_new(c.TLS_server_method() if server else c.TLS_client_method())
        if self._ctx == null:
            raise ContextError(f"SSL_CTX_new failed: {self._library.reasons()}")
        options = macros.SSL_OP_NO_COMPRESSION | macros.SSL_OP_CIPHER_SERVER_PREFERENCE | macros.SSL_OP_NO_RENEGOTIATION
        if library.compresses_certificates:
            # What a client sends before it is known is not decompressed.
            options |= macros.SSL_OP_NO_RX_CERTIFICATE_COMPRESSION if server else 0
        c.SSL_CTX_set_options(self._ctx, options | (macros.SSL_OP_ENABLE_KTLS if ktls else 0))
        # A retried SSL_write may come from another buffer with the same bytes: Python does not promise one address.
        mode = macros.SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | macros.SSL_MODE_RELEASE_BUFFERS
        c.SSL_CTX_ctrl(self._ctx, macros.SSL_CTRL_MODE, mode, null)
        # On by default, it would keep SSL_read in C for as long as a peer sends records without data (KeyUpdates).
        c.SSL_CTX_ctrl(self._ctx, macros.SSL_CTRL_CLEAR_MODE, macros.SSL_MODE_AUTO_RETRY, null)
        c.SSL_CTX_ctrl(self._ctx, macros.SSL_CTRL_SET_MIN_PROTO_VERSION, oldest, null)
        c.SSL_CTX_ctrl(self._ctx, macros.SSL_CTRL_SET_MAX_PROTO_VERSION, newest, null)
        # Sessions travel in tickets, which OpenSSL issues by default; a cache here would only hold memory.
        c.SSL_CTX_ctrl(self._ctx, macros.SSL_CTRL_SET_SESS_CACHE_MODE, macros.SSL_SESS_CACHE_OFF, null)
        if (
            c.SSL_CTX_set_cipher_list(self._ctx, ciphers.encode()) != 1
            or c.SSL_CTX_set_ciphersuites(self._ctx, ciphersuites.encode()) != 1
        ):
            reasons = self._library.reasons()
            self.close()
            raise ContextError(f"OpenSSL has none of the ciphers {ciphers}, {ciphersuites}: {reasons}")
        if not any(map(self._takes_groups, groups)):
            reasons = self._library.reasons()
            self.close()
            raise ContextError(f"OpenSSL has none of the groups {groups[-1]}: {reasons}")

    def _takes_groups(self, groups: str) -> bool:
        c = self._library.c
        c.ERR_clear_error()
        text = self._library.ffi.new("char[]", groups.encode())
        return bool(c.SSL_CTX_ctrl(self._ctx, macros.SSL_CTRL_SET_GROUPS_LIST, 0, text) == 1)

    def ciphers(self) -> list[str]:
        """The names of all ciphers that can be negotiated, best first."""
        c = self._library.c
        names: list[str] = []
        ssl = c.SSL_new(self._ctx)
        if ssl == self._library.ffi.NULL:
            raise ContextError(f"SSL_new failed: {self._library.reasons()}")
        try:
            while (name := c.SSL_get_cipher_list(ssl, len(names))) != self._library.ffi.NULL:
                names.append(self._library._text(name))
        finally:
            c.SSL_free(ssl)
        return names

    def use_certificate(self, certificate: str, key: str) -> None:
        """Load a pair from files and use it. Raises what Pair() and use_pair() raise."""
        with contextlib.closing(Pair(self._library, certificate, key)) as pair:
            self.use_pair(pair)

    def use_pair(self, pair: Pair) -> None:
        """Have this pair for handshakes, beside those of other types. Raises PairError.

        Call it once for each type of key (RSA, EC, Ed25519): OpenSSL takes what the client can verify, EC before RSA.
        """
        # OpenSSL keeps one certificate of each type, and a second one takes the place of the first.
        if other := self._certificates.get(pair.key_type):
            reason = f"both have {pair.key_type} keys: one of each type can be used"
            raise PairError(f"{pair.certificate} and {other} {reason}")
        c, null = self._library.c, self._library.ffi.NULL
        c.ERR_clear_error()
        chain = self._library.ffi.new("X509_CHAIN **")
        c.SSL_CTX_ctrl(pair._ctx, macros.SSL_CTRL_GET_CHAIN_CERTS, 0, chain)
        # OpenSSL counts references, so that the pair may be closed before this.
        key = c.SSL_CTX_get0_privatekey(pair._ctx)
        if c.SSL_CTX_use_cert_and_key(self._ctx, pair._leaf, key, chain[0] or null, 1) != 1:
            raise PairError(f"{pair.certificate} cannot be used: {self._library.reasons()}")
        self._certificates[pair.key_type] = pair.certificate
        if self._library.compresses_certificates:
            # For clients that ask for it (RFC 8879), once and not in each handshake.
            c.SSL_CTX_compress_certs(self._ctx, 0)
            c.ERR_clear_error()

    def compressed_sizes(self) -> dict[str, tuple[int, int]]:
        """Bytes of the message with the certificates, compressed and not, by algorithm (RFC 8879 section 7.3)."""
        if not self._library.compresses_certificates or not self._certificates:
            return {}
        c, ffi = self._library.c, self._library.ffi
        found = {}
        for name, number in COMPRESSIONS.items():
            data, original = ffi.new("unsigned char **"), ffi.new("size_t *")
            size = c.SSL_CTX_get1_compressed_cert(self._ctx, number, data, original)
            if size:
                c.CRYPTO_free(data[0], b"", 0)
                found[name] = size, original[0]
        c.ERR_clear_error()
        return found

    @property
    def key_types(self) -> Collection[str]:
        """OpenSSL's names of the types of the keys in use (Pair.key_type)."""
        return self._certificates.keys()

    def shared(self) -> Context:
        """A second owner of the same SSL_CTX*."""
        import copy

        other = copy.copy(self)
        self._library.c.SSL_CTX_up_ref(self._ctx)
        return other

    def use_sessions(self, kind: bytes, seconds: int, ticket_key: bytes) -> None:
        """Let clients resume sessions of this `kind` (32 bytes at most) for some seconds, only with tickets.

        A ticket of another kind leads to a full handshake, whatever key it was made with
        (SSL_CTX_set_session_id_context(3)).
        """
        c = self._library.c
        c.SSL_CTX_set_session_id_context(self._ctx, kind, len(kind))
        c.SSL_CTX_set_timeout(self._ctx, seconds)
        # OpenSSL sends two in TLS 1.3. Each costs as much as a small request, and every connection brings a client one.
        c.SSL_CTX_set_num_tickets(self._ctx, 1)
        self.use_ticket_key(ticket_key)

    def use_ticket_key(self, key: bytes) -> None:
        """Make tickets, and read those that come, with this key of TICKET_KEY_BYTES from now on."""
        self._library.c.SSL_CTX_ctrl(
            self._ctx, macros.SSL_CTRL_SET_TLSEXT_TICKET_KEYS, TICKET_KEY_BYTES, self._library.ffi.from_buffer(key)
        )
        self._ticket_key = key

    def choose_protocols_by(self, callback: int) -> None:
        """Have a C function at this address choose each connection's protocol (SSL_CTX_set_alpn_select_cb(3)).

        Its argument are the addresses of functions that tell about a connection's cipher.
        """
        ffi, library = self._library.ffi, self._library
        library.c.SSL_CTX_set_alpn_select_cb(self._ctx, ffi.cast("void *", callback), library.cipher_functions)
        self._offers = True

    def use_no_tickets(self) -> None:
        """Let no client resume a session."""
        c = self._library.c
        c.SSL_CTX_set_options(self._ctx, macros.SSL_OP_NO_TICKET)
        # Without tickets TLS 1.3 would send the names of sessions in a cache, and there is none.
        c.SSL_CTX_set_num_tickets(self._ctx, 0)

    @contextlib.contextmanager
    def reading_tickets_with(self, key: bytes) -> Iterator[None]:
        """Read tickets with another key than the one that use_ticket_key() gave, for a few calls that do not wait.

        OpenSSL's own way to read tickets of several keys is a callback. cffi can give it one only on a page that is
        writable and executable, which a hardened service may not have (systemd's MemoryDenyWriteExecute).
        """
        current = self._ticket_key
        self.use_ticket_key(key)
        try:
            yield
        finally:
            self.use_ticket_key(current)

    def require_client(
        self,
        authorities: str,
        names: Sequence[str] = (),
        revoked: str | None = None,
        *,
        optional_by: int | None = None,
        depth: int | None = None,
        path_names: Sequence[str] = (),
    ) -> None:
        """Take only clients with a certificate that one of the authorities in a PEM file signed (mutual TLS).

        With `names`, one of them must be a DNS name of the certificate, or its common name where it has none;
        "*.example.org" is every name below (X509_check_host(3)). `revoked` is a PEM file with the revocation list of
        each authority of a chain; a client whose authority has none, or an old one, is refused. At most `depth`
        intermediate authorities are allowed. `path_names` are reported of each client that has them.

        `optional_by` is the address of a C function by which OpenSSL goes on whatever it finds: then every client is
        taken, and the outcome of the handshake says whether it has such a certificate. Raises ContextError naming the
        file.
        """
        # Not at the top: it loads the system's libcrypto, and none may be there before a Library has opened its own.
        import hashlib

        from ktlsd.openssl import pem_files

        c, null = self._library.c, self._library.ffi.NULL
        c.ERR_clear_error()
        path = os.fsencode(authorities)
        announced = c.SSL_load_client_CA_file(path)
        if announced == null or c.SSL_CTX_load_verify_file(self._ctx, path) != 1:
            raise pem_files.authorities_error(authorities, file_reason(self._library.take_errors(), authorities))
        c.SSL_CTX_set_client_CA_list(self._ctx, announced)
        store = c.SSL_CTX_get_cert_store(self._ctx)
        if revoked is not None:
            lookup = c.X509_STORE_add_lookup(store, c.X509_LOOKUP_file())
            if lookup == null or c.X509_load_crl_file(lookup, os.fsencode(revoked), macros.X509_FILETYPE_PEM) < 1:
                raise pem_files.revoked_error(revoked, file_reason(self._library.take_errors(), revoked))
            c.X509_STORE_set_flags(store, macros.X509_V_FLAG_CRL_CHECK | macros.X509_V_FLAG_CRL_CHECK_ALL)
        parameters = c.SSL_CTX_get0_param(self._ctx)
        for name in names:
            # A name that begins with a dot stands for all below it.
            raw = name.removeprefix("*").encode()
            if c.X509_VERIFY_PARAM_add1_host(parameters, raw, len(raw)) != 1:
                raise ContextError(f"{name!r} cannot be a name in a client certificate: {self._library.reasons()}")
        if depth is not None:
            c.SSL_CTX_set_verify_depth(self._ctx, depth)
        self.optional, self._path_names = optional_by is not None, tuple(path_names)
        if optional_by is None:
            c.SSL_CTX_set_verify(self._ctx, macros.SSL_VERIFY_PEER | macros.SSL_VERIFY_FAIL_IF_NO_PEER_CERT, null)
        else:
            callback = self._library.ffi.cast("void *", optional_by)
            c.SSL_CTX_set_verify(self._ctx, macros.SSL_VERIFY_PEER, callback)
        # A resumed session is not verified again: it must come from a context that demanded the same (use_sessions()).
        digest = hashlib.blake2b(digest_size=32)
        parts = [_content(authorities), b"" if revoked is None else _content(revoked), "\n".join(names).encode()]
        if self.optional or depth is not None or path_names:
            parts.append(repr((self.optional, depth, self._path_names)).encode())
        for part in parts:
            digest.update(b"%d:%b" % (len(part), part))
        self.clients = digest.digest()
        c.SSL_CTX_set_session_id_context(self._ctx, self.clients, len(self.clients))

    def refuse_clients(self) -> None:
        """Refuse all clients, for a site whose requirements cannot be applied by require_client()."""
        self.clients, self.optional = os.urandom(32), False

    def connect(self, descriptor: int) -> Connection:
        """A Connection over the non-blocking socket `descriptor`, which stays the caller's to close."""
        return Connection(
            self._library,
            self._ctx,
            descriptor,
            server=self._server,
            offers=self._offers,
            asks=self.optional,
            path_names=self._path_names,
        )

    def close(self) -> None:
        """Free the SSL_CTX; connections made from it keep what they need of it (OpenSSL counts references)."""
        if self._ctx is not None:
            self._library.c.SSL_CTX_free(self._ctx)
            self._ctx = None


class Connection:
    """The one owner of an SSL*, bound to a socket by a socket BIO, which kTLS needs.

    Every call returns what it did, or a Wait when the socket is not ready, or raises TLSError. The error queue, which
    belongs to the thread and not to the connection, is cleared before each call and emptied after a failing one.
    """

    __slots__ = ("_c", "_library", "_offers", "_path_names", "_ssl", "_tells_fault")

    def __init__(
        self,
        library: Library,
        ctx: Any,
        descriptor: int,
        *,
        server: bool,
        offers: bool = False,
        asks: bool = False,
        path_names: tuple[str, ...] = (),
    ) -> None:
        """`offers` is whether a protocol can be chosen by ALPN, `asks` whether clients may have a certificate that is
        not accepted; `path_names` are those of Context.require_client()."""
        self._tells_fault = asks
        self._library = library
        self._path_names = path_names
        self._offers = offers
        c = self._c = library.c
        c.ERR_clear_error()
        self._ssl = c.SSL_new(ctx)
        if self._ssl == library.ffi.NULL or c.SSL_set_fd(self._ssl, descriptor) != 1:
            reasons = library.reasons()
            self.close()
            raise TLSError(f"no SSL object: {reasons}")
        if server:
            c.SSL_set_accept_state(self._ssl)
        else:
            c.SSL_set_connect_state(self._ssl)

    def allow_at_most(self, version: int) -> None:
        """Negotiate this protocol, TLS_1_2 or TLS_1_3, or an older one; call it before the handshake."""
        self._c.SSL_ctrl(self._ssl, macros.SSL_CTRL_SET_MAX_PROTO_VERSION, version, self._library.ffi.NULL)

    def ask_for_no_certificate(self) -> None:
        """Let a client of our own in without a certificate; call it before the handshake."""
        self._c.SSL_set_verify(self._ssl, macros.SSL_VERIFY_NONE, self._library.ffi.NULL)

    def _stopped(self, result: int) -> Wait:
        """Turn a failed call's result into a Wait or the right TLSError (SSL_get_error(3))."""
        system_error = self._library.ffi.errno
        code = self._c.SSL_get_error(self._ssl, result)
        if code == macros.SSL_ERROR_WANT_READ:
            return Wait.READABLE
        if code == macros.SSL_ERROR_WANT_WRITE:
            return Wait.WRITABLE
        errors = self._library.take_errors()
        if code == macros.SSL_ERROR_ZERO_RETURN:
            raise TLSError("the peer sent close_notify")
        if code == macros.SSL_ERROR_SYSCALL:
            raise ConnectionLost(os.strerror(system_error) if system_error else "the peer closed the TCP connection")
        raise connection_error(errors, self._verification)

    def _verification(self) -> str:
        """The fault of the peer's certificate."""
        return self._library._text(self._c.X509_verify_cert_error_string(self._c.SSL_get_verify_result(self._ssl)))

    def handshake(self) -> Wait | None:
        """Go on with the handshake; None once it is done."""
        self._c.ERR_clear_error()
        result: int = self._c.SSL_do_handshake(self._ssl)
        return None if result == 1 else self._stopped(result)

    @contextlib.contextmanager
    def making_no_tickets(self) -> Iterator[None]:
        """Send no session ticket in TLS 1.3, not even where the handshake is completed (SSL_set_num_tickets(3))."""
        number = self._c.SSL_get_num_tickets(self._ssl)
        self._c.SSL_set_num_tickets(self._ssl, 0)
        try:
            yield
        finally:
            self._c.SSL_set_num_tickets(self._ssl, number)

    def read(self) -> bytes | Wait:
        """Up to READ_SIZE bytes that the peer sent; b"" after its close_notify."""
        self._c.ERR_clear_error()
        library = self._library
        result: int = self._c.SSL_read(self._ssl, library.read_buffer, READ_SIZE)
        if result > 0:
            received: bytes = library.received[:result]
            return received
        if self._c.SSL_get_error(self._ssl, result) == macros.SSL_ERROR_ZERO_RETURN:
            return b""
        return self._stopped(result)

    def has_pending(self) -> bool:
        """Whether bytes that the peer sent wait in OpenSSL, where the socket does not show them."""
        return bool(self._c.SSL_has_pending(self._ssl))

    def between_records(self) -> bool:
        """True if OpenSSL holds no part of a record that the peer sent: read() has seen whole records."""
        return self._library._text(self._c.SSL_rstate_string(self._ssl)) == _READ_HEADER and not self.has_pending()

    def write(self, data: bytes | bytearray | memoryview) -> Wait | None:
        """Encrypt and send all of `data` (not empty); None once all is with the kernel.

        After a Wait, call again with the same bytes: records of them may be under way (SSL_write(3)).
        """
        self._c.ERR_clear_error()
        result: int = self._c.SSL_write(self._ssl, self._library.ffi.from_buffer(data), len(data))
        return None if result > 0 else self._stopped(result)

    def sendfile(self, descriptor: int, offset: int, count: int) -> int | Wait:
        """Have the kernel encrypt and send up to `count` bytes of a file; the number taken, 0 at the end of the file.

        Only where kTLS TX is on (SSL_sendfile(3)). Raises OSError when the file cannot be read.
        """
        self._c.ERR_clear_error()
        result: int = self._c.SSL_sendfile(self._ssl, descriptor, offset, count, 0)
        if result >= 0:
            return result
        system_error = self._library.ffi.errno
        code = self._c.SSL_get_error(self._ssl, result)
        if code == macros.SSL_ERROR_WANT_WRITE:
            return Wait.WRITABLE
        self._library.take_errors()
        # Before OpenSSL 3.4 the queue says SSL_R_UNINITIALIZED for any failing sendfile(2): errno holds the truth.
        if system_error in PEER_IS_GONE:
            raise ConnectionLost(os.strerror(system_error))
        raise OSError(system_error, f"sendfile: {os.strerror(system_error)}")

    def shutdown(self) -> Wait | None:
        """Send close_notify (SSL_shutdown(3)); None once the kernel has it. A peer that is gone is no error."""
        self._c.ERR_clear_error()
        result: int = self._c.SSL_shutdown(self._ssl)
        if result < 0:
            if self._c.SSL_get_error(self._ssl, result) == macros.SSL_ERROR_WANT_WRITE:
                return Wait.WRITABLE
            self._library.take_errors()
        return None

    def key_update_owed(self) -> bool:
        """Whether the peer asked for a TLS 1.3 KeyUpdate of ours (RFC 8446 section 4.6.3) that has not been sent."""
        return bool(self._c.SSL_get_key_update_type(self._ssl) != macros.SSL_KEY_UPDATE_NONE)

    def facts(self) -> Handshake:
        """The outcome of the handshake; call it once the handshake is done."""
        c, ssl, library = self._c, self._ssl, self._library
        null = library.ffi.NULL
        session = c.SSL_get_session(ssl)
        # Of both directions (SSL_set_fd(3)).
        bio = c.SSL_get_rbio(ssl)
        # By position: names would take longer than most of the calls.
        return Handshake(
            *library.suite(ssl),
            c.SSL_session_reused(ssl) == 1,
            session != null and c.SSL_SESSION_get_max_fragment_length(session) != 0,
            c.BIO_ctrl(bio, macros.BIO_CTRL_GET_KTLS_SEND, 0, null) > 0,
            c.BIO_ctrl(bio, macros.BIO_CTRL_GET_KTLS_RECV, 0, null) > 0,
            library._text(c.SSL_get_servername(ssl, macros.TLSEXT_NAMETYPE_host_name)) or None,
            self._client(),
            self._alpn() if self._offers else None,
            self._client_names() if self._path_names else frozenset(),
            self._client_fault() if self._tells_fault else "",
        )

    def _alpn(self) -> str | None:
        ffi = self._library.ffi
        name, length = ffi.new("unsigned char **"), ffi.new("unsigned int *")
        self._c.SSL_get0_alpn_selected(self._ssl, name, length)
        return ffi.buffer(name[0], length[0])[:].decode("ascii") if length[0] else None

    def _client(self) -> str | None:
        certificate = self._c.SSL_get0_peer_certificate(self._ssl)
        if certificate == self._library.ffi.NULL or self._c.SSL_get_verify_result(self._ssl) != macros.X509_V_OK:
            return None
        buffer = self._library.ffi.new("char[]", _LONGEST_SUBJECT)
        # Anything but printable ASCII comes out as \xHH.
        self._c.X509_NAME_oneline(self._c.X509_get_subject_name(certificate), buffer, _LONGEST_SUBJECT)
        return self._library._text(buffer)

    def _client_names(self) -> frozenset[str]:
        """The names of paths' rules that the client's certificate has."""
        c, null = self._c, self._library.ffi.NULL
        certificate = c.SSL_get0_peer_certificate(self._ssl)
        if certificate == null or c.SSL_get_verify_result(self._ssl) != macros.X509_V_OK:
            return frozenset()

        def has(name: str) -> bool:
            # A name that begins with a dot stands for all below it.
            raw = name.removeprefix("*").encode()
            return bool(c.X509_check_host(certificate, raw, len(raw), 0, null) == 1)

        return frozenset(filter(has, self._path_names))

    def _client_fault(self) -> str:
        """Why the client's certificate is not accepted; "" if it is, or if there is none."""
        c = self._c
        if c.SSL_get0_peer_certificate(self._ssl) == self._library.ffi.NULL:
            return ""
        return "" if c.SSL_get_verify_result(self._ssl) == macros.X509_V_OK else self._verification()

    def close(self) -> None:
        """Free the SSL object; the socket stays open."""
        if self._ssl is not None:
            self._c.SSL_free(self._ssl)
            self._ssl = None


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _mapped_path(*names: str) -> str | None:
    """The path of a library in this process: the first mapped file with one of these names (proc(5), maps)."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = [line.split(maxsplit=5)[5].rstrip() for line in maps if line.count(" ") > 5 and "/" in line]
    for path in paths:
        if os.path.basename(path).startswith(names):
            return path
    return None
