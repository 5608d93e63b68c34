"""The authority as certbot's library `acme` shows it: its answers, its errors in words, and the gaps of the library.

Strategy: requests repeat what the authority wants repeated, and note when it wants no more; tls-alpn-01 is added to the
challenges that the library knows.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from acme import challenges, client, errors, messages
from josepy.jwk import JWK

from ktlsd.config.printable import one_line
from ktlsd.config.refusal import cause

ORDER_SECONDS: Final = 600.0
"""For the authority to look at all names, and again for it to issue."""
_NONCE_TRIES: Final = 8
_NUMBERS: Final = re.compile(r"\[Errno -?\d+\] | ?\(_ssl\.c:\d+")
"""Python's additions to the texts of errors."""
_QUOTES: Final = "()'\" "


@challenges.ChallengeResponse.register
class _TlsAlpnResponse(challenges.KeyAuthorizationChallengeResponse):
    typ = "tls-alpn-01"


@challenges.Challenge.register
class _TlsAlpn(challenges.KeyAuthorizationChallenge):
    """RFC 8737, which the library has not known since its version 5."""

    response_cls = _TlsAlpnResponse
    typ = response_cls.typ

    def validation(self, account_key: JWK, **_: Any) -> str:
        return self.key_authorization(account_key)


class Network(client.ClientNetwork):
    """Repeats requests with a rejected nonce (RFC 8555 section 6.5), and heeds the pause that an authority asks for."""

    retry_after = 0.0
    """The last that came with an error, in seconds since the epoch; 0 if none did."""

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        for _ in range(_NONCE_TRIES):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)

    def heed(self, response: requests.Response, *_: Any, **__: Any) -> None:
        if response.status_code >= HTTPStatus.BAD_REQUEST and "Retry-After" in response.headers:
            self.retry_after = client.ClientV2.retry_after(response, 0).timestamp()


def problem_text(error: messages.Error) -> str:
    """The authority's own text, with the details of each name."""
    parts = [f"{error.detail or error.title or error.typ} ({error.code or error.typ})"]
    parts += (f"{part.identifier.value}: {part.detail}" for part in error.subproblems or () if part.identifier)
    return "; ".join(parts)


def in_words(error: Exception, url: str) -> str:
    """One line for the operator."""
    if isinstance(error, errors.IssuanceError):
        error = error.error
    if isinstance(error, messages.Error):
        text = f"the authority says: {problem_text(error)}"
    elif isinstance(error, errors.TimeoutError):
        text = f"the authority did not issue within {ORDER_SECONDS:g} s"
    elif isinstance(error, requests.RequestException):
        # The text of the innermost error follows the last colon, after the names of all that wrapped it.
        inner = _NUMBERS.sub("", str(error)).rpartition(": ")[2].strip(_QUOTES).replace(" (", ": ")
        text = f"{urlsplit(url).netloc} cannot be reached: {inner}"
    elif isinstance(error, errors.ClientError) and error.args and isinstance(error.args[0], requests.Response):
        text = f"{urlsplit(url).netloc} is no ACME server: it answers {error.args[0].status_code}"
    else:
        text = cause(error) if isinstance(error, OSError) else str(error) or type(error).__name__
    return one_line(text)
