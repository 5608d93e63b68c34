"""The process that orders certificates: it reads a Job, does all that is due, and ends. `python -m ktlsd.acme.client`

Strategy: certbot's library `acme` speaks the protocol, synchronously; the server pays nothing for it between orders.
Each step leaves files by which another run goes on after a SIGKILL, and a failure ends in one Record with the
authority's own text. The process ends with its parent, which holds its standard input open.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from acme import client as library_client
from acme import crypto_util, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWKEC
from msgspec import Struct

from ktlsd import __version__
from ktlsd.acme import answers, lease, plan
from ktlsd.acme.answers import HookError
from ktlsd.acme.authority import ORDER_SECONDS, Network, in_words, problem_text
from ktlsd.acme.folder import AcmeFolder, file_name, replace, terms
from ktlsd.acme.job import BUSY, DONE, FAILED, Job, decode
from ktlsd.acme.names import Wanted, challenges, directory_url, is_address, suitable
from ktlsd.acme.plan import Record, Terms
from ktlsd.config.refusal import cause
from ktlsd.config.values import ChallengeKind
from ktlsd.tls.certificate import key_pem

_FIRST_POLL_SECONDS: Final = 0.25
_LONGEST_POLL_SECONDS: Final = 60.0
_REQUEST_SECONDS: Final = 45
_RSA_EXPONENT: Final = 65537

_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Problem(Exception):
    """The reason why there is no certificate; the text is for the operator."""


class _Refused(Problem):
    """The authority did not accept the proof of a name."""


class _Account(Struct, frozen=True):
    """The account at an authority."""

    directory: str
    uri: str
    email: str | None = None
    eab_key_id: str | None = None
    terms_of_service: str | None = None
    """The document that the use of the account agrees to."""


class Orders:
    """All certificates of a Job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._options = job.options
        self._folder = AcmeFolder(job.folder)
        self._directory_url = directory_url(job.options)
        self._network: Network | None = None
        self._client: library_client.ClientV2 | None = None

    def run(self) -> None:
        """Do what is due. Raises OSError where the state folder cannot be used."""
        # No other process works here: lease.py.
        answers.clear(self._folder.tls_answers)
        answers.clear(self._folder.http_answers)
        for names in self._job.certificates:
            self._look_after(Wanted(names, ()))

    def _look_after(self, wanted: Wanted) -> None:
        record, asked = self._present(wanted), terms(wanted, self._options)
        now = time.time()
        if self._network is not None:
            self._network.retry_after = 0.0
        try:
            if why := plan.reason(record, asked, now):
                if plan.may_try(record, self._directory_url, now, forced=self._job.forced):
                    print(
                        f"certificate for {wanted.label}: ordered from {self._directory_url}: {why}",
                        flush=True,
                    )
                    record = self._renewed(wanted, record)
            elif record.ask_at is not None and (now >= record.ask_at or self._job.forced):
                record = self._asked(wanted, record)
        except (Problem, HookError, OSError, ValueError, errors.Error, messages.Error, JoseError) as error:
            # requests' errors are OSErrors.
            # Notes of this try, such as an order to go on with, stay.
            record = self._folder.read(wanted.name) or record
            after = self._network.retry_after if self._network is not None else 0.0
            url = self._directory_url
            record = plan.failed(record, url, in_words(error, url), time.time(), random.random, after)
        self._folder.write(wanted.name, record)

    def _present(self, wanted: Wanted) -> Record:
        """The record of the certificate on disk, which another client or machine may have put there."""
        record = self._folder.read(wanted.name) or Record()
        try:
            leaf = x509.load_pem_x509_certificate(self._folder.pem(wanted.name).read_bytes())
        except (FileNotFoundError, ValueError):
            leaf = None
        if leaf is None or leaf.issuer == leaf.subject:
            return msgspec.structs.replace(record, ends=0.0)
        if record.ends != leaf.not_valid_after_utc.timestamp():
            there = Terms(names=tuple(_names_of(leaf)))
            return plan.issued(there, *_times(leaf), 0.0, random.random)
        return record

    # --- the authority -----------------------------------------------------------------------------------------------

    def _connected(self) -> library_client.ClientV2:
        """The client, without an account. Raises what its requests raise."""
        if self._client is None:
            key = JWKEC(key=self._account_key())
            verify: Any = True if self._options.ca is None else os.fspath(self._options.ca)
            agent = f"ktlsd/{__version__} acme-python"
            self._network = Network(key, alg=ES256, verify_ssl=verify, user_agent=agent, timeout=_REQUEST_SECONDS)
            self._network.session.hooks["response"].append(self._network.heed)
            directory = library_client.ClientV2.get_directory(self._directory_url, self._network)
            self._client = library_client.ClientV2(directory, self._network)
        return self._client

    def _account_key(self) -> ec.EllipticCurvePrivateKey:
        path = self._account_file().with_suffix(".pem")
        with contextlib.suppress(FileNotFoundError, ValueError):
            kept = serialization.load_pem_private_key(path.read_bytes(), None)
            if isinstance(kept, ec.EllipticCurvePrivateKey):
                return kept
        key = ec.generate_private_key(ec.SECP256R1())
        replace(path, key_pem(key))
        return key

    def _account_file(self) -> Path:
        url = urlsplit(self._directory_url)
        return self._folder.accounts / f"{file_name(f'{url.netloc}{url.path}'.strip('/'))}.json"

    def _registered(self) -> library_client.ClientV2:
        """The client, with an account at this authority, made if there is none."""
        client = self._connected()
        if client.net.account is not None:
            return client
        kept = None
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            kept = msgspec.json.decode(self._account_file().read_bytes(), type=_Account)
        options = self._options
        if kept is None or (kept.directory, kept.eab_key_id) != (self._directory_url, options.eab_key_id):
            self._register(client)
            return client
        client.net.account = messages.RegistrationResource(body=messages.Registration(), uri=kept.uri)
        if kept.email != options.email:
            contact = (f"mailto:{options.email}",) if options.email else ()
            client.net.account = client.update_registration(client.net.account, messages.Registration(contact=contact))
            self._keep(msgspec.structs.replace(kept, email=options.email))
        return client

    def _register(self, client: library_client.ClientV2) -> None:
        options, meta = self._options, client.directory.meta
        binding = None
        if options.eab_key_id is not None and options.eab_key is not None:
            hmac_key = options.eab_key.read_text("ascii").strip()
            public = client.net.key.public_key() if client.net.key is not None else None
            binding = messages.ExternalAccountBinding.from_data(public, options.eab_key_id, hmac_key, client.directory)
        elif client.external_account_required():
            raise Problem("the authority wants an external account binding: set eab_key_id and eab_key")
        registration = messages.NewRegistration.from_data(
            email=options.email, terms_of_service_agreed=True, external_account_binding=binding
        )
        try:
            uri = client.new_account(registration).uri
        except errors.ConflictError as known:
            uri = known.location
        client.net.account = messages.RegistrationResource(body=messages.Registration(), uri=uri)
        self._keep(_Account(self._directory_url, uri, options.email, options.eab_key_id, meta.terms_of_service))
        agreed = f", which agrees to {meta.terms_of_service}" if meta.terms_of_service else ""
        print(f"an account at {self._directory_url} was made{agreed}", flush=True)

    def _keep(self, account: _Account) -> None:
        replace(self._account_file(), msgspec.json.format(msgspec.json.encode(account), indent=2) + b"\n")

    # --- renewal information -----------------------------------------------------------------------------------------

    def _asked(self, wanted: Wanted, record: Record) -> Record:
        """The record after a look at renewal information (RFC 9773); without an answer the old times stay."""
        now = time.time()
        try:
            client = self._connected()
            if "renewalInfo" not in client.directory.to_partial_json():
                return plan.suggested(record, None, None)
            when, again = client.renewal_time(self._folder.pem(wanted.name).read_bytes())
        except (errors.Error, messages.Error, JoseError, OSError, ValueError, x509.ExtensionNotFound):
            return plan.suggested(record, None, now + plan.ARI_SECONDS)
        ask_at = min(max(again.timestamp(), now + plan.MINUTE), now + plan.DAY)
        return plan.suggested(record, None if when is None else when.timestamp(), ask_at)

    # --- an order ----------------------------------------------------------------------------------------------------

    def _renewed(self, wanted: Wanted, record: Record) -> Record:
        """The record of a new certificate, which is on disk."""
        try:
            pem = self._ordered(wanted, record)
        except messages.Error as error:
            if error.code != "accountDoesNotExist":
                raise
            # It was deactivated, or the authority has lost it.
            self._account_file().unlink(missing_ok=True)
            self._connected().net.account = None
            pem = self._ordered(wanted, record)
        replace(self._folder.pem(wanted.name), pem)
        self._folder.pending_key(wanted.name).unlink(missing_ok=True)
        leaf = x509.load_pem_x509_certificate(pem)
        record = plan.issued(terms(wanted, self._options), *_times(leaf), time.time(), random.random)
        # On disk before anything else can fail.
        self._folder.write(wanted.name, record)
        return self._asked(wanted, record)

    def _ordered(self, wanted: Wanted, record: Record) -> bytes:
        """Key and chain of a new certificate. Raises Problem and the library's errors."""
        client = self._registered()
        for name, text in record.dns:
            self._remove_dns(name, text)
        if (key := self._key_of(wanted, record)) is not None and (order := self._left_behind(record)) is not None:
            order = order.update(csr_pem=self._csr(wanted, key))
            try:
                return self._issued(wanted, client, order, key)
            except errors.TimeoutError:
                raise
            except (Problem, errors.Error, messages.Error):
                print(f"certificate for {wanted.label}: an earlier order is of no use; ordered anew", flush=True)
        self._check_profile(client)
        key = _new_key(self._options.key_type)
        # Before there is an order: if the disk is full, none is made.
        replace(self._folder.pending_key(wanted.name), key_pem(key))
        csr = self._csr(wanted, key)
        kinds = self._kinds()
        for number in range(len(kinds)):
            order = client.new_order(csr, self._options.profile)
            begun = msgspec.structs.replace(record, tried=self._directory_url, order=order.uri, dns=())
            self._folder.write(wanted.name, begun)
            try:
                self._prove(wanted, record, order, kinds[number:] + kinds[:number])
            except _Refused as refused:
                # The other challenge may get through where this one did not.
                if number + 1 == len(kinds) or not all(suitable(name, kinds[number + 1 :]) for name in wanted.names):
                    raise
                print(f"certificate for {wanted.label}: {refused}; trying {kinds[number + 1]}", flush=True)
                continue
            return self._issued(wanted, client, order, key)
        raise Problem("tls-alpn-01 is not possible here, and http-01 needs http_listen")

    def _kinds(self) -> tuple[ChallengeKind, ...]:
        return tuple(
            kind for kind in challenges(self._options) if kind != "http-01" or self._job.http_answers is not None
        )

    def _check_profile(self, client: library_client.ClientV2) -> None:
        profile, offered = self._options.profile, client.directory.meta.profiles or {}
        if profile and profile not in offered:
            known = ", ".join(sorted(offered)) or "none"
            raise Problem(f"the authority has no certificate profile {profile!r}; it has {known}")

    def _key_of(self, wanted: Wanted, record: Record) -> _Key | None:
        """The key of an order that another run left behind."""
        if not record.order:
            return None
        with contextlib.suppress(FileNotFoundError, ValueError):
            key = serialization.load_pem_private_key(self._folder.pending_key(wanted.name).read_bytes(), None)
            if isinstance(key, _Key):
                return key
        return None

    def _left_behind(self, record: Record) -> messages.OrderResource | None:
        """An order that only has to be finalized or fetched; None if it is of no use, and another is to be made."""
        client = self._registered()
        if plan.is_of_another(record, self._directory_url):
            return None
        try:
            response = client.net.post(record.order, None, new_nonce_url=client.directory["newNonce"])
            body = messages.Order.from_json(response.json())
        except (messages.Error, errors.Error, JoseError, ValueError):
            return None
        useful = body.status in (messages.STATUS_READY, messages.STATUS_PROCESSING, messages.STATUS_VALID)
        return messages.OrderResource(body=body, uri=record.order, authorizations=()) if useful else None

    def _csr(self, wanted: Wanted, key: _Key) -> bytes:
        hosts = [name for name in wanted.names if not is_address(name)]
        addresses = [ipaddress.ip_address(name) for name in wanted.names if is_address(name)]
        return crypto_util.make_csr(key_pem(key), hosts, ipaddrs=addresses)

    # --- proofs ------------------------------------------------------------------------------------------------------

    def _prove(
        self, wanted: Wanted, record: Record, order: messages.OrderResource, kinds: tuple[ChallengeKind, ...]
    ) -> None:
        """Prove each name of an order. Raises _Refused, HookError."""
        client, key = self._registered(), JWKEC(key=self._account_key())
        pending = [one for one in order.authorizations if one.body.status == messages.STATUS_PENDING]
        chosen = [(_name(one), *self._choose(one, kinds)) for one in pending]
        with contextlib.ExitStack() as published:
            records = [
                (answers.record_name(name), challenge.chall.validation(key))
                for name, kind, challenge in chosen
                if kind == "dns-01"
            ]
            if records:
                self._publish_dns(wanted, msgspec.structs.replace(record, order=order.uri), published, tuple(records))
            for name, kind, challenge in chosen:
                text, path = challenge.chall.key_authorization(key), None
                if kind == "http-01" and self._job.http_answers is not None:
                    path = answers.publish_http(self._job.http_answers, challenge.chall.encode("token"), text)
                elif kind == "tls-alpn-01":
                    path = answers.publish_tls(self._folder.tls_answers, name, text)
                if path is not None:
                    published.callback(path.unlink, missing_ok=True)
            for _, _, challenge in chosen:
                client.answer_challenge(challenge, challenge.chall.response(key))
            for one, (name, kind, _) in zip(pending, chosen, strict=True):
                self._await_proof(client, one, name, kind)

    def _publish_dns(
        self,
        wanted: Wanted,
        record: Record,
        published: contextlib.ExitStack,
        records: tuple[tuple[str, str], ...],
    ) -> None:
        """Have dns_hook add TXT records, and wait for all of them. Raises HookError."""
        hook = self._options.dns_hook
        if hook is None:
            raise Problem("dns-01 needs a dns_hook")
        # Before they are there: a killed process must not leave them behind.
        self._folder.write(wanted.name, msgspec.structs.replace(record, dns=records))
        published.callback(self._folder.write, wanted.name, record)
        for name, text in records:
            published.callback(self._remove_dns, name, text)
            answers.call_hook(hook, "add", name, text)
        for name, text in records:
            answers.call_hook(hook, "wait", name, text)

    def _remove_dns(self, name: str, text: str) -> None:
        if (hook := self._options.dns_hook) is None:
            return
        try:
            answers.call_hook(hook, "remove", name, text)
        except HookError as error:
            # The certificate does not depend on it.
            print(error, flush=True)

    def _choose(
        self, authorization: messages.AuthorizationResource, kinds: tuple[ChallengeKind, ...]
    ) -> tuple[ChallengeKind, messages.ChallengeBody]:
        """The challenge to answer. Raises Problem."""
        name = _name(authorization)
        offered = {challenge.chall.typ: challenge for challenge in authorization.body.challenges}
        for kind in suitable(name, kinds):
            if kind in offered:
                return kind, offered[kind]
        raise Problem(
            f"{name}: the authority offers {', '.join(sorted(offered))}, and challenges here are {', '.join(kinds)}"
        )

    def _await_proof(
        self, client: library_client.ClientV2, one: messages.AuthorizationResource, name: str, kind: ChallengeKind
    ) -> None:
        deadline = time.monotonic() + ORDER_SECONDS
        time.sleep(_FIRST_POLL_SECONDS)
        while True:
            one, response = client.poll(one)
            if one.body.status == messages.STATUS_VALID:
                return
            if one.body.status != messages.STATUS_PENDING:
                said = [challenge.error for challenge in one.body.challenges if challenge.error is not None]
                raise _Refused(f"{name} by {kind}: {problem_text(said[0]) if said else one.body.status}")
            pause = (client.retry_after(response, 1) - datetime.datetime.now()).total_seconds()
            if time.monotonic() > deadline:
                raise Problem(f"{name} by {kind}: the authority did not decide within {ORDER_SECONDS:g} s")
            time.sleep(min(max(pause, 1.0), _LONGEST_POLL_SECONDS))

    # --- issuance ----------------------------------------------------------------------------------------------------

    def _issued(
        self, wanted: Wanted, client: library_client.ClientV2, order: messages.OrderResource, key: _Key
    ) -> bytes:
        """Key and chain, complete and matching. Raises Problem and the library's errors."""
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=ORDER_SECONDS)
        alternatives = self._options.chain is not None
        if order.body.status in (messages.STATUS_PROCESSING, messages.STATUS_VALID):
            order = client.poll_finalization(order, deadline, alternatives)
        else:
            order = client.finalize_order(order, deadline, alternatives)
        chain = self._preferred([order.fullchain_pem, *(order.alternative_fullchains_pem or ())])
        leaf = x509.load_pem_x509_certificate(chain.encode())
        if leaf.public_key() != key.public_key():
            raise Problem("the authority sent a certificate for another key")
        if lacking := {name.lower() for name in wanted.names} - set(_names_of(leaf)):
            raise Problem(f"the authority sent a certificate without {', '.join(sorted(lacking))}")
        return key_pem(key) + chain.encode()

    def _preferred(self, chains: Sequence[str]) -> str:
        """The chain whose last certificate has the wanted issuer; the authority's own choice if there is none."""
        if (wanted := self._options.chain) is None:
            return chains[0]
        found = [x509.load_pem_x509_certificates(chain.encode())[-1].issuer for chain in chains]
        issuers = [_common_name(issuer) for issuer in found]
        if wanted not in issuers:
            print(f"chain: the authority offers none from {wanted!r}, but from {', '.join(issuers)}", flush=True)
            return chains[0]
        return chains[issuers.index(wanted)]


def _new_key(kind: str) -> _Key:
    if kind.startswith("rsa"):
        return rsa.generate_private_key(_RSA_EXPONENT, int(kind.removeprefix("rsa")))
    return ec.generate_private_key(ec.SECP384R1() if kind == "p384" else ec.SECP256R1())


def _times(leaf: x509.Certificate) -> tuple[float, float]:
    return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()


def _names_of(leaf: x509.Certificate) -> Iterator[str]:
    with contextlib.suppress(x509.ExtensionNotFound):
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        yield from (name.lower() for name in names.get_values_for_type(x509.DNSName))
        yield from map(str, names.get_values_for_type(x509.IPAddress))


def _common_name(name: x509.Name) -> str:
    return "".join(str(attribute.value) for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME))


def _name(authorization: messages.AuthorizationResource) -> str:
    wildcard = "*." if authorization.body.wildcard else ""
    return f"{wildcard}{authorization.body.identifier.value}"


def _end_with_parent() -> None:
    # Not sys.stdin: the interpreter's end would wait for its lock.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(FAILED)


def main() -> int:
    """Do the job that standard input has; the exit status."""
    # They are blocked in the process that started this one.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(sys.stdin.fileno(), 65536) or b"\n"
    job = decode(line)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with lease.held(AcmeFolder(job.folder).lock):
            Orders(job).run()
    except lease.Busy:
        return BUSY
    except OSError as error:
        print(cause(error), file=sys.stderr)
        return FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
