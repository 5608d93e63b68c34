"""The certificates of a service, each pair separately: a bad one keeps the former version of the same files.

Strategy: a pair is loaded once however many sites have it, and a handshake on loopback shows whether clients can use a
key of its kind at all. An error becomes a Fault of the site; refused_for(), which is pure, decides which faults
refuse a configuration.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct

from ktlsd.config.findings import Place
from ktlsd.openssl.algorithms import CLIENT_GROUPS, GROUP_LISTS, TLS_1_2, TLS_1_3
from ktlsd.openssl.errors import PairError, TLSError
from ktlsd.ssl_ffi import Context, Library, Pair
from ktlsd.tls.ktls_probe import loopback_handshake
from ktlsd.tls.policy import Policy

_DAY: Final = 86400
_CURVES: Final = {
    name: curve
    for curve, names in (
        ("secp256r1", ("p-256", "prime256v1")),
        ("secp384r1", ("p-384",)),
        ("secp521r1", ("p-521",)),
    )
    for name in (curve, *names)
}
"""Those of ECDSA certificates, by all their names."""
USABLE_KEYS: Final = "use ECDSA (P-256, P-384 or P-521), RSA (2048 bits or more), Ed25519 or Ed448"
PROTOCOLS: Final = (("TLS 1.3", TLS_1_3), ("TLS 1.2", TLS_1_2))


FaultKey = tuple[str, str]
"""The site and the file of a fault."""


class Fault(NamedTuple):
    """A certificate or another file that a site cannot use."""

    site: str
    place: Place
    """The key of the configuration that names it."""
    file: str
    """The file that is at fault."""
    files: tuple[str, ...]
    """That and those that are useless without it."""
    text: str
    former: bool
    """True if the former version of the same files stays in force."""
    served: bool
    """True if the site is served all the same, with the former version or with its other certificates."""

    @property
    def key(self) -> FaultKey:
        """The same for the same fault of another service."""
        return self.site, self.file

    def line(self, where: str) -> str:
        """One line for the log; `where` is the place as a message begins with it."""
        if self.former:
            return f"certificate of {self.site} not reloaded, the old one stays in force: {where}{self.text}"
        how = "served without one of its certificates" if self.served else "not served"
        return f"site {self.site} is {how}: {where}{self.text}"


class Validity(NamedTuple):
    """A certificate that is served, and its time."""

    site: str
    """The first name of its site; "default" for the one at the top level."""
    file: str
    begins: int
    """Seconds since the epoch."""
    ends: int


class Found(Struct, frozen=True):
    """A pair, and the error of its files; a pair with an error is the former version."""

    pair: Pair | None
    error: PairError | None


class Pairs:
    """The pairs that one service has loaded. The creator closes it."""

    def __init__(self, library: Library, policy: Policy, former: Pairs | None = None) -> None:
        """`former` are those of the service that this one is to replace."""
        self._library = library
        self._policy = policy
        self._former = former
        self._found: dict[tuple[Path, Path], Found] = {}
        self._probed: dict[str, bool] = {}
        """Whether clients can use a kind of key."""
        if former is not None and former._policy == policy:
            self._probed.update(former._probed)

    def find(self, certificate: Path, key: Path) -> Found:
        """A pair by its files. Raises OSError where the machine, and not a file, is at fault."""
        if (found := self._found.get((certificate, key))) is None:
            found = self._found[certificate, key] = self._load(certificate, key)
        return found

    def _load(self, certificate: Path, key: Path) -> Found:
        try:
            pair = Pair(self._library, str(certificate), str(key))
            try:
                self._try(pair)
            except BaseException:
                pair.close()
                raise
        except PairError as error:
            return Found(self.kept(certificate, key), error)
        return Found(pair, None)

    def kept(self, certificate: Path, key: Path) -> Pair | None:
        """The former service's version of these files."""
        former = None if self._former is None else self._former._found.get((certificate, key))
        return None if former is None or former.pair is None else former.pair.shared()

    def keep(self, certificate: Path, key: Path, *, until: float) -> bool:
        """Keep the former service's version, without reading the files, if it is valid for longer than `until`."""
        pair = self.kept(certificate, key)
        if pair is not None and pair.ends > until:
            self._found[certificate, key] = Found(pair, None)
            return True
        if pair is not None:
            pair.close()
        return False

    def _try(self, pair: Pair) -> None:
        """Raises PairError for a key that no client can use, OSError where loopback is at fault."""
        if pair.kind not in self._probed:
            self._probed[pair.kind] = self._handshakes(pair)
        if not self._probed[pair.kind]:
            reason = f"no client can make a handshake with a key of the type {pair.kind}: {USABLE_KEYS}"
            raise PairError(f"{pair.certificate} cannot be served: {reason}")

    def _handshakes(self, pair: Pair) -> bool:
        server = offering(self._library, self._policy)
        try:
            server.use_pair(pair)
            for _, version in PROTOCOLS:
                if version < self._policy.oldest:
                    continue
                client = probing_client(self._library, version, self._policy)
                try:
                    loopback_handshake(server, client)
                except TLSError:
                    continue
                finally:
                    client.close()
                return True
            return False
        finally:
            server.close()

    def close(self) -> None:
        """Free the pairs; Contexts keep what they need of them."""
        # Else each would keep all that came before it.
        self._former = None
        for found in self._found.values():
            if found.pair is not None:
                found.pair.close()

    def settled(self) -> None:
        """Forget the former service's, once all that is needed is found."""
        self._former = None


def offering(library: Library, policy: Policy, *, ktls: bool = True) -> Context:
    """A server's context with this offer. Raises ContextError."""
    oldest, ciphers, ciphersuites, groups = policy
    return Context(library, ktls=ktls, oldest=oldest, ciphers=ciphers, ciphersuites=ciphersuites, groups=groups)


def probing_client(library: Library, version: int, policy: Policy) -> Context:
    """A client of one protocol with the abilities of common clients, and those that the offer asks for."""
    groups = CLIENT_GROUPS if policy.groups is GROUP_LISTS else (*_together(policy.groups[0]), *policy.groups)
    return Context(
        library,
        server=False,
        ktls=False,
        ciphers=policy.ciphers,
        ciphersuites=policy.ciphersuites,
        oldest=version,
        newest=version,
        groups=groups,
    )


def _together(groups: str) -> tuple[str, ...]:
    """A chosen list of groups with the curves of certificates: none may be in a list twice, by any of its names."""
    names = [name.strip("?*") for name in re.split("[:/]", groups) if name]
    known = {_CURVES.get(name.lower(), name.lower()) for name in names}
    curves = [curve for curve in dict.fromkeys(_CURVES.values()) if curve not in known]
    return (":".join((*names, *curves)),)


def refused_for(
    faults: Sequence[Fault], *, served: bool, strict: bool, before: Iterable[FaultKey] | None = None
) -> Fault | None:
    """The fault for which a start, or a reload of the configuration, is refused as a whole.

    `served` is True if any site is served, `before` are the faults of the service in force, at a
    reload or an upgrade: it may leave as it is what was so, and take nothing new that cannot be used.
    """
    if not faults:
        return None
    if strict or not served:
        return next((fault for fault in faults if not fault.served), faults[0])
    if before is None:
        return None
    known = set(before)
    return next((fault for fault in faults if not fault.former and fault.key not in known), None)


def out_of_time(begins: int, ends: int, now: float) -> str:
    """The fault of a certificate that is valid between two times, in seconds since the epoch; "" if none."""
    if now >= ends:
        days = int(now - ends) // _DAY
        ago = "less than a day ago" if not days else f"{days} day{'' if days == 1 else 's'} ago"
        return f"expired {ago}, on {_date(ends)} UTC: renew it"
    if now < begins:
        return f"is not valid before {_date(begins)} UTC: look at the clock, or have another one made"
    return ""


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
