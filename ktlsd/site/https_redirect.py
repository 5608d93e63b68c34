"""The answers on plain HTTP: the same address under https, and ACME challenges (RFC 8555 section 8.3).

Strategy: only the folder of challenges is ever read; a redirect is a 301, since only GET and HEAD are redirected.
"""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from pathlib import Path
from typing import Final

from ktlsd.file_threads import DEFAULT_SECONDS, Patience
from ktlsd.http.decide import Miss, Moved, Representation, Request, Response, decide, options, short
from ktlsd.http.request_target import Target
from ktlsd.http.validators import entity_tag
from ktlsd.site.content_types import DEFAULT_TYPE
from ktlsd.site.followed_root import FollowedRoot
from ktlsd.site.lookup import Folder, OpenFile, Root, miss_of
from ktlsd.site.site import Answer, read_first

_CHALLENGE: Final = (b".well-known", b"acme-challenge")
_TOKEN: Final = re.compile(rb"[A-Za-z0-9_-]+")
_HTTPS_PORT: Final = 443


class HttpsRedirect:
    """The answers of a plain-HTTP listener."""

    def __init__(
        self,
        challenges: Path | None,
        file_seconds: float = DEFAULT_SECONDS,
        *,
        own: bool = False,
        may_be_missing: bool = False,
        patience: Patience | None = None,
    ) -> None:
        """`challenges` is the folder that an ACME client writes its answers to, `own` whether that is ktlsd's client,
        `file_seconds` the time that one call on a file there may take; if it `may_be_missing`, or stalls beyond the
        `patience`, it may come later. Raises OSError."""
        self.port = _HTTPS_PORT
        """The port of HTTPS for clients."""
        self._own = own
        self.followed = None
        if challenges is not None:
            self.followed = FollowedRoot(
                challenges, seconds=file_seconds, may_be_missing=may_be_missing, patience=patience
            )

    def close(self) -> None:
        if self.followed is not None:
            self.followed.close()

    async def answer(self, request: Request, target: Target, host: str | None) -> Answer:
        """The response to a request for `target` on `host`."""
        if request.method == "OPTIONS":
            return Answer(options())
        if self.followed is not None and target.names[:-1] == _CHALLENGE and not target.directory:
            try:
                answer = await self._challenge(self.followed.root, request, target.names[-1])
                # Another machine's challenge may be forwarded there, by a [[redirect]].
                if answer.response.status is not HTTPStatus.NOT_FOUND or not self._own:
                    return answer
            except OSError as error:
                return Answer(decide(request, miss_of(error), 0, ""))
        return Answer(self._redirect(request, target, host))

    def _redirect(self, request: Request, target: Target, host: str | None) -> Response:
        head = request.method == "HEAD"
        if host is None:
            return short(HTTPStatus.BAD_REQUEST, "no Host to redirect to", head=head)
        port = "" if self.port == _HTTPS_PORT else f":{self.port}"
        return decide(request, Moved(f"https://{host}{port}{target.location()}"), 0, "")

    async def _challenge(self, challenges: Root, request: Request, token: bytes) -> Answer:
        found: OpenFile | Folder | Moved | Miss = Miss.ABSENT
        if _TOKEN.fullmatch(token):
            found = await challenges.find(Target((token,), directory=False))
        if not isinstance(found, OpenFile):
            return Answer(decide(request, found if isinstance(found, Miss) else Miss.ABSENT, 0, ""))
        tag = entity_tag(found.mtime_ns, found.size, found.identity[1], found.ctime_ns)
        representation = Representation(found.size, found.mtime_ns, DEFAULT_TYPE, tag)
        response = decide(request, representation, time.time(), "")
        await read_first(found, response)
        return Answer(response, found)
