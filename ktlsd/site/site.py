"""One site: from a request and its target to the response and the open file that it takes its body from.

Strategy: one method for each step, in the order of a request: forced redirects, look-up (try_files, clean URLs, index
files), other redirects, fallback, negotiation of a content coding, decision, error page, rules for header fields. All
that can be decided without files is decided in the pure modules that these steps call.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from msgspec import Struct
from msgspec.structs import replace

from ktlsd.config.options import LimitOptions, SiteOptions, index_elsewhere
from ktlsd.file_threads import DEFAULT_SECONDS, JobLimiter, Patience
from ktlsd.http.accept import wants_json
from ktlsd.http.accept_encoding import SUFFIXES, preferred
from ktlsd.http.access import Access, Check, Excess, Visitor
from ktlsd.http.byte_range import ByteRange
from ktlsd.http.cache_fields import never_stored
from ktlsd.http.client_networks import ClientNetworks
from ktlsd.http.cors import Cors
from ktlsd.http.decide import Miss, Moved, Refused, Representation, Request, Response, decide, options, short, whole
from ktlsd.http.error_pages import ErrorPages
from ktlsd.http.fields import Fields, add_vary, merge, without
from ktlsd.http.header_rules import Origin, attachment
from ktlsd.http.hidden_paths import HiddenPaths
from ktlsd.http.navigation import VARY, is_navigation
from ktlsd.http.rate_check import refused_by_now
from ktlsd.http.redirects import Redirected, Rewritten
from ktlsd.http.request_target import Target, target_of_path
from ktlsd.http.validators import coded_tag, content_tag
from ktlsd.metrics.site_names import NO_SITE
from ktlsd.site import packing
from ktlsd.site.beneath import paths_below
from ktlsd.site.checks import checks_of
from ktlsd.site.content_hash import ContentHashes
from ktlsd.site.content_types import ContentTypes, Encoded, read_attribute
from ktlsd.site.error_page import RequestId, for_client
from ktlsd.site.folder import Entry, read_folder, without_siblings
from ktlsd.site.folder_archive import TAR, ZIP, FolderArchives, TooLarge
from ktlsd.site.followed_root import FollowedRoot
from ktlsd.site.lack import Lack
from ktlsd.site.lookup import Folder, OpenFile, Root, miss_of
from ktlsd.site.packing import CODINGS, PackedFiles, packed, packed_fields
from ktlsd.site.passwords import Passwords
from ktlsd.site.plain_files import PlainFiles
from ktlsd.site.rules import SiteRules
from ktlsd.site.siblings import Siblings
from ktlsd.site.thumbnails import MEDIA_TYPE as THUMBNAIL_TYPE
from ktlsd.site.thumbnails import QUERY as _THUMBNAIL
from ktlsd.site.thumbnails import TYPES as THUMBNAIL_TYPES
from ktlsd.site.thumbnails import Thumbnails

if TYPE_CHECKING:
    # It needs markdown-it-py.
    from ktlsd.site.readme import Readmes

log = logging.getLogger("ktlsd")

SERVER_FIELD: Final = (("Server", "ktlsd"),)
_NO_SUCH_FILE: Final = Miss.ABSENT.reason
_ABSENT: Final = (Miss.ABSENT, Miss.DANGLING, Miss.HIDDEN, Miss.CONCEALED, Miss.NO_INDEX)
"""What another file may answer for."""


class Answer(Struct, frozen=True, gc=False):
    """A decided response; the holder closes the file."""

    response: Response
    opened: OpenFile | None = None
    file: str | None = None
    """The decoded path of the file that answers."""
    rules: frozenset[bytes] | None = None
    """Paths below the root of the files that had an influence, beside the file's own and its folders; None where even
    more had."""
    any_query: bool = False
    """True if the query of the target had no influence."""
    lack: Lack | None = None
    """Set if the response is the same for all names that the root lacks at its top."""
    checks: tuple[Check, ...] = ()
    """The checks of access that the request has passed."""
    excess: Excess | None = None
    """The limit of a rate that the client is at, if that is why the request is refused."""


_Found = OpenFile | Folder | Moved | Miss | Refused


class _Outcome(Struct, frozen=True, gc=False):
    """The result for a target."""

    found: _Found
    origin: Origin = Origin.OWN
    status: HTTPStatus = HTTPStatus.OK
    """Under which a file is sent."""
    varies: bool = False
    """Whether another kind of request (navigation.py) gets another response."""


class _Draft(Struct, frozen=True, gc=False):
    """A response before a site's rules for header fields; the holder closes the file."""

    response: Response
    opened: OpenFile | None = None
    file: str | None = None
    """The decoded path of the file that answers."""
    origin: Origin = Origin.OWN
    rejected: frozenset[bytes] = frozenset()
    """Paths below the root of siblings that were not sent."""


class Site:
    """The site of one set of names."""

    def __init__(
        self,
        site: SiteOptions,
        file_seconds: float = DEFAULT_SECONDS,
        *,
        may_be_missing: bool = False,
        patience: Patience | None = None,
        networks: ClientNetworks | None = None,
        passwords: Passwords | None = None,
    ) -> None:
        """`file_seconds` is the time that one call on a file may take; a root that `may_be_missing` may come later,
        as may one that stalls beyond the `patience`. Rates count by `networks`.

        Raises OSError for a root that cannot be served, ValueError for rules that contradict themselves, PlacedError
        for a file of users, keys or maintenance that cannot be used."""
        self.options = site
        self.number = NO_SITE
        """Its number in metrics by site."""
        if site.listing:
            # Its import is slow, and must not delay a request.
            import ktlsd.site.listing  # noqa: F401
        if site.listing or site.compress:
            packing.prepare()
        # Settings without a root are refused when they are read.
        path = cast(Path, site.root)
        networks = networks or ClientNetworks(LimitOptions())
        passwords = passwords or Passwords(LimitOptions(), networks)
        self._rules = SiteRules(site, passwords)
        checks = checks_of(site, networks, passwords)
        self.access = Access(checks, lambda: self._rules.checks) if checks or site.headers_file else None
        """None for a site without checks: all clients may see its files."""
        hide = HiddenPaths(site.hide, clean_urls=site.clean_urls) if site.hide else None
        self.followed = FollowedRoot(
            path,
            dotfiles=site.dotfiles,
            hidden=self._rules.files,
            hide=hide,
            notes_links=self.access is not None,
            seconds=file_seconds,
            may_be_missing=may_be_missing,
            patience=patience,
        )
        self.followed.on_change = self._rules.renew
        self._types = ContentTypes(site.types, site.charset, site.encoded)
        self._index = tuple(os.fsencode(name) for name in site.index)
        self._index_elsewhere = index_elsewhere(site)
        """True if an index file may be in another folder than the one that it is for."""
        self._hashes = ContentHashes()
        self._siblings = Siblings()
        self._packed = PackedFiles() if site.compress else None
        self._readmes: Readmes | None = None
        if site.readme:
            from ktlsd.site.readme import Readmes

            self._readmes = Readmes()
        offered = ((ZIP, site.zip_bytes), (TAR, site.tar_bytes)) if site.listing else ()
        self._archives = {form.query: FolderArchives(form, most) for form, most in offered if most}
        """By the query that asks for one."""
        self._thumbnails = Thumbnails() if site.listing and site.thumbnails else None
        self._sibling_suffixes = tuple(SUFFIXES[coding] for coding in site.precompressed)
        # Each holds the interpreter up for a while.
        self._listings = JobLimiter(2)
        self._cors = Cors(site.cors) if site.cors is not None else None
        self._error_pages = ErrorPages(site)
        self._server: Fields = SERVER_FIELD if site.server_header else ()
        self.plain_files: PlainFiles | None = None
        if PlainFiles.serve(site):
            self.plain_files = PlainFiles(site, self.followed, self._rules, self._types, self.access, self._server)

    @property
    def root(self) -> Root:
        """The folder that is served at this moment."""
        return self.followed.root

    def close(self) -> None:
        self.followed.close()
        if self._packed is not None:
            self._packed.close()

    async def answer(
        self,
        request: Request,
        target: Target,
        *,
        secure: bool,
        request_id: RequestId | None = None,
        visitor: Visitor | None = None,
    ) -> Answer:
        """The response to GET, HEAD or OPTIONS; `secure` says whether it goes out over TLS, `request_id` gives the id
        for an error page. A site with `access` needs a visitor."""
        root = None
        try:
            # Rules and files are of the same root, even where another takes its place meanwhile.
            while root is not self.root:
                root = self.root
                await self._rules.refresh(root)
                answer = await self._respond(request, target, visitor)
                if root is not self.root and answer.opened is not None:
                    answer.opened.close()
            if visitor is not None and (refusal := refused_by_now(visitor)) is not None:
                if answer.opened is not None:
                    answer.opened.close()
                answer = _Draft(refusal)
        except OSError as error:
            # Without a root, too, it is told only to those who may see the path.
            refusal = await self._refusal(visitor, (target.path(),))
            answer = _Draft(refusal or decide(request, miss_of(error), time.time(), ""))
        try:
            # Without a reason it is no refusal, but a redirect's own page with a 404.
            lack = None
            response = answer.response
            if response.status >= HTTPStatus.BAD_REQUEST and response.reason and not response.has_page:
                unguarded = visitor is None or not visitor.passed
                if answer.response.reason == _NO_SUCH_FILE and unguarded and self._are_alike_if_absent():
                    lack = Lack(cast(Root, root), self.access)
                answer = await self._with_error_page(request, target.path(), answer, request_id)
            response = answer.response
            path = target.path()
            fields = self._server + response.fields
            fields = self._rules.headers.apply(path, response.status, fields, secure, answer.file, answer.origin)
            if self._cors is not None:
                fields = merge(fields, self._cors_fields(self._cors, request, path))
            own = self._rules.at_hand and self._is_its_own_folders(target, answer.opened)
            rules = self._rules.present | answer.rejected if own else None
            ends = visitor is not None and visitor.ends is not None
            any_query = not (ends or self._rules.redirects.concern(path) or self._has_thumbnail(target))
            checks = () if visitor is None else tuple(visitor.passed)
            if response.denied is not None:
                fields = never_stored(fields)
            elif visitor is not None:
                for check in checks:
                    fields = check.marked(visitor, fields)
            response = replace(response, fields=fields, signed=True)
            excess = None if visitor is None or response.limit is None else visitor.excess
            return Answer(response, answer.opened, answer.file, rules, any_query, lack, checks, excess)
        except BaseException:
            if answer.opened is not None:
                answer.opened.close()
            raise

    def _is_its_own_folders(self, target: Target, opened: OpenFile | None) -> bool:
        """Whether only the folder that the target names, and those above it, can have another file answer."""
        if opened is None or self.options.try_files or self._index_elsewhere:
            return False
        names = target.names if target.directory else target.names[:-1]
        return opened.path.rpartition(b"/")[0] == b"/".join(names)

    def _are_alike_if_absent(self) -> bool:
        """Whether the response to a request for a file that is absent does not depend on its path, checks of access
        aside."""
        options, rules = self.options, self._rules
        others = options.try_files or options.clean_urls or options.fallback is not None or self._index_elsewhere
        by_path = rules.redirects or rules.protecting or rules.headers.by_path or self._cors is not None
        return not (others or by_path or self._error_pages)

    def _cors_fields(self, cors: Cors, request: Request, path: str) -> Fields:
        if request.method == "OPTIONS":
            preflight = cors.preflight(path, request.fields)
            if preflight is not None:
                return preflight
        return cors.fields(path, request.fields.get("origin"))

    async def _respond(self, request: Request, target: Target, visitor: Visitor | None) -> _Draft:
        if self.access is not None and (refusal := await self._refusal(visitor, (target.path(),))) is not None:
            return _Draft(refusal)
        if request.method == "OPTIONS":
            return _Draft(options())
        outcome = await self._find(request, target)
        if outcome.found is Miss.ABSENT and target.directory and target.names and not self.options.try_files:
            outcome = replace(outcome, found=await self._without_slash(target))
        draft = await self._draft(request, target, outcome, visitor)
        if outcome.varies:
            response = draft.response
            draft = replace(draft, response=replace(response, fields=add_vary(response.fields, VARY)))
        return draft

    async def _draft(self, request: Request, target: Target, outcome: _Outcome, visitor: Visitor | None) -> _Draft:
        found, status = outcome.found, outcome.status
        if self.access is not None and isinstance(found, OpenFile | Folder) and not self._is_unguarded(found):
            refusal = await self._refusal_of(visitor, found)
            if refusal is not None:
                return _Draft(refusal)
        if isinstance(found, Moved) and found.paths:
            refusal = await self._refusal(visitor, found.paths)
            if refusal is not None:
                return _Draft(refusal)
        if isinstance(found, Folder):
            return _Draft(await self._list(request, target, found, visitor))
        now = time.time()
        if not isinstance(found, OpenFile):
            return _Draft(decide(request, found, now, ""))
        file = "/" + os.fsdecode(found.path).removeprefix("./")
        if self._thumbnails is not None and target.query == _THUMBNAIL and self._has_thumbnail(target):
            try:
                return _Draft(await self._thumbnail(request, self._thumbnails, found), file=file)
            finally:
                found.close()
        opened, representation, rejected = await self._negotiate(request, found, visitor)
        try:
            if status is not HTTPStatus.OK:
                response = whole(request, representation, status, now)
            else:
                boundary = secrets.token_hex(16) if "," in request.fields.get("range", "") else ""
                response = decide(request, representation, now, boundary)
        except BaseException:
            opened.close()
            raise
        if opened.waits:
            await read_first(opened, response)
        return _Draft(response, opened, file, outcome.origin, rejected)

    # --- which visitors -----------------------------------------------------------------------------------------------

    async def _refusal(self, visitor: Visitor | None, paths: Sequence[str]) -> Response | None:
        """The response to a visitor that may not see one of these paths."""
        if self.access is None:
            return None
        if visitor is None:
            raise ValueError("a site with checks of access needs a visitor")
        if not any(map(self.access.may_guard, paths)):
            return None
        return await self.access.refusal(visitor, paths)

    def _is_unguarded(self, found: OpenFile | Folder) -> bool:
        """Whether surely no check is for what was found: not by its name, and no link led to another place."""
        access = self.access
        return access is None or access.empty or (found.direct and not access.may_guard(_as_requested(found.path)))

    async def _refusal_of(self, visitor: Visitor | None, found: OpenFile | Folder) -> Response | None:
        """The response to a visitor that may not see what was found under another path, which is closed then."""
        try:
            refusal = await self._refusal(visitor, tuple(_paths_of(found)))
        except BaseException:
            found.close()
            raise
        if refusal is not None:
            found.close()
        return refusal

    # --- which file ---------------------------------------------------------------------------------------------------

    async def _find(self, request: Request, target: Target) -> _Outcome:
        rules, redirects = self._rules, self._rules.redirects
        if not (rules.protecting or redirects or self.options.fallback is not None):
            return await self._look_up(target)
        path, query = target.path(), target.query[1:].decode("latin-1")
        if rules.require_password(path):
            return _Outcome(Miss.PROTECTED)
        rule = redirects.find(path, query, exists=True)
        if rule is not None:
            return await self._follow(rule, target)
        outcome = _Outcome(Miss.PROTECTED) if rules.protect(path) else await self._look_up(target)
        # A rule can still send clients that may not see a file to a page for them.
        if outcome.found not in (*_ABSENT, Miss.PROTECTED):
            return outcome
        rule = redirects.find(path, query, exists=False)
        if rule is not None:
            return await self._follow(rule, target)
        if self.options.fallback is None or outcome.found is Miss.PROTECTED:
            return outcome
        name = target.names[-1] if target.names and not target.directory else b""
        if not is_navigation(request.fields, name):
            return replace(outcome, varies=True)
        found = await self._look_up_path(self.options.fallback)
        return _Outcome(self._in_its_place(target, found), Origin.FALLBACK, varies=True)

    async def _follow(self, rule: Redirected | Rewritten, target: Target) -> _Outcome:
        if isinstance(rule, Redirected):
            return _Outcome(Moved(rule.location, HTTPStatus(rule.status)))
        found, status = await self._look_up_path(rule.path), HTTPStatus(rule.status)
        if isinstance(found, Folder) and status is not HTTPStatus.OK:
            # A listing is no page of an error.
            found.close()
            found = Miss.ABSENT
        return _Outcome(self._in_its_place(target, found), Origin.REWRITE, status)

    def _in_its_place(self, target: Target, found: _Found) -> _Found:
        """A folder is listed under a path with a slash at its end, which the links in a listing go on from."""
        if not isinstance(found, Folder) or target.directory:
            return found
        try:
            paths = () if self.access is None else tuple(_paths_of(found))
        finally:
            found.close()
        return Moved(target.directory_location(), paths=paths)

    async def _look_up(self, target: Target) -> _Outcome:
        """The file that a path names, or the first of `try_files`."""
        if not self.options.try_files:
            return _Outcome(await self._look_up_name(target))
        wanted = target.path()
        outcome = _Outcome(Miss.ABSENT)
        for entry in self.options.try_files:
            if entry.startswith("="):
                return _Outcome(Refused(HTTPStatus(int(entry[1:])), f"no file of try_files: {entry}"))
            path = entry.replace("{path}", wanted)
            # A folder keeps its own target, for the redirect to its slash.
            found = await (self._look_up_name(target) if path == wanted else self._look_up_path(path))
            origin = Origin.OWN if "{path}" in entry else Origin.FALLBACK
            outcome = _Outcome(self._in_its_place(target, found), origin)
            if outcome.found not in _ABSENT:
                break
        return outcome

    async def _without_slash(self, target: Target) -> _Found:
        """A slash after a file: sent to the file. Not permanently, since a folder may take its place: a browser that
        remembers both redirects goes round in a circle."""
        file = Target(target.names, directory=False, query=target.query)
        found = await self._look_up_name(file)
        if not isinstance(found, OpenFile):
            return Miss.ABSENT
        found.close()
        return Moved(file.location(), HTTPStatus.TEMPORARY_REDIRECT)

    async def _look_up_path(self, path: str) -> _Found:
        """The file of a path that the operator gave. A folder's name stands for its index file: a redirect to its slash
        would tell clients a path of which they know nothing."""
        target = target_of_path(path)
        if target is None:
            return Miss.ABSENT
        found = await self._look_up_name(target)
        if isinstance(found, Moved):
            return await self._look_up_one(Target(target.names, directory=True))
        return found

    def _look_up_name(self, target: Target) -> Coroutine[Any, Any, _Found]:
        """With clean URLs, about means about.html where there is no such file, even where there is such a folder."""
        clean = self.options.clean_urls and not target.directory and target.names
        return self._look_up_clean(target) if clean else self._look_up_one(target)

    async def _look_up_clean(self, target: Target) -> _Found:
        found = await self._look_up_one(target)
        if found in _ABSENT or isinstance(found, Moved):
            *folders, name = target.names
            page = await self._look_up_one(Target((*folders, name + b".html"), directory=False))
            if page not in _ABSENT and not isinstance(page, Moved):
                if isinstance(page, OpenFile) and found is Miss.DANGLING:
                    page.passes_link = True
                return page
        return found

    async def _look_up_one(self, target: Target) -> _Found:
        found = await self.root.find(target, self._index)
        if isinstance(found, Folder) and not self.options.listing:
            found.close()
            return Miss.NO_INDEX
        if self._rules.protecting and isinstance(found, OpenFile | Folder) and self._is_protected(found):
            found.close()
            return Miss.PROTECTED
        return found

    def _is_protected(self, found: OpenFile | Folder) -> bool:
        """True if the open file must not be sent, by the name that it was found under or by the place links led to."""
        try:
            return any(map(self._rules.protect, _paths_of(found)))
        except OSError:
            return True

    def _is_withheld(self, found: OpenFile | Folder, visitor: Visitor | None) -> bool:
        """True if what is open must not be sent, or a visitor has not passed all of its checks."""
        if not self._rules.protecting and (visitor is None or self._is_unguarded(found)):
            return False
        try:
            return self._withholds(tuple(_paths_of(found)), visitor)
        except OSError:
            return True

    def _withholds(self, paths: Sequence[str], visitor: Visitor | None) -> bool:
        """The same for the paths of a file below the root: its name, and the place where links led to."""
        if self._rules.protecting and any(map(self._rules.protect, paths)):
            return True
        return self.access is not None and visitor is not None and self.access.hides(visitor, paths)

    def _needs_password(self, found: OpenFile) -> bool:
        """True if `_headers` asks for a password, by the name of an open file or by the place links led to."""
        try:
            return any(check.paths.cover(path) for path in _paths_of(found) for check in self._rules.checks)
        except OSError:
            return True

    # --- which representation of it -----------------------------------------------------------------------------------

    async def _negotiate(
        self, request: Request, opened: OpenFile, visitor: Visitor | None
    ) -> tuple[OpenFile, Representation, frozenset[bytes]]:
        """Take `opened` over, or a precompressed sibling in its place (RFC 9110 section 12.5.3).

        The last of the three has the paths of the siblings that are there and not sent: a change in place makes another
        choice right.
        """
        rejected = set[bytes]()
        try:
            if (encoded := self._types.encoded(opened.path)) is not None:
                return opened, await self._encoded(request, opened, encoded), frozenset()
            kind, compressible = self._types.described(opened.path)
            if self.options.type_attributes:
                own = self._types.of_attribute(await opened.run(read_attribute))
                kind, compressible = own or (kind, compressible)
            coding, varies, passes_link = None, False, opened.passes_link
            codings = self.options.precompressed if compressible else ()
            siblings = {opened.path + SUFFIXES[candidate]: candidate for candidate in codings}
            # Without any, Accept-Encoding has no influence.
            possible = opened.root.possible_siblings(list(siblings)) if siblings else ()
            if possible:
                wanted = preferred(request.fields.get("accept-encoding"), codings).codings
                # Those that are not acceptable are looked for too: Vary is due where there is a choice.
                candidates = (*wanted, *(other for other in codings if other not in wanted))
                ordered = (opened.path + SUFFIXES[candidate] for candidate in candidates)
                paths = [path for path in ordered if path in possible]
                for number, path in enumerate(paths):
                    sibling, candidate = await opened.root.open_file(path, paths[number + 1 :]), siblings[path]
                    if not isinstance(sibling, OpenFile):
                        passes_link = passes_link or sibling is Miss.DANGLING
                        if sibling is not Miss.ABSENT:
                            rejected.add(path)
                        continue
                    try:
                        # It may be a link to what is protected.
                        withheld = self._is_withheld(sibling, visitor)
                        belongs = not withheld and await self._siblings.belong(opened, sibling, candidate)
                    except BaseException:
                        sibling.close()
                        raise
                    varies = varies or belongs
                    if belongs and candidate in wanted:
                        opened.close()
                        sibling.original = opened
                        opened, coding = sibling, candidate
                        break
                    sibling.close()
                    rejected.add(path)
            opened.passes_link = passes_link
            mtime_ns, tag = opened.mtime_ns, ""
            if self._packed is not None and not varies and self._packed.may_have(opened, kind):
                varies = True
                wanted = preferred(request.fields.get("accept-encoding"), CODINGS).codings
                made = await self._packed.packed(opened, wanted[0]) if wanted else None
                if made is not None:
                    opened.close()
                    opened, tag, coding = made.file, made.tag, wanted[0]
            if not tag:
                tag = await self._tag(opened)
                if coding is not None:
                    tag = coded_tag(tag, coding)
            found = Representation(opened.size, mtime_ns, kind, tag, coding, varies)
            return opened, found, frozenset(rejected)
        except BaseException:
            opened.close()
            raise

    async def _encoded(self, request: Request, opened: OpenFile, encoded: Encoded) -> Representation:
        """A file that is stored in a content coding: its content, in that coding, or the packed file as it is.

        A request without Accept-Encoding takes any coding (RFC 9110 section 12.5.3); the bytes are the same.
        """
        tag, accepted = await self._tag(opened), request.fields.get("accept-encoding")
        if accepted is None or preferred(accepted, (encoded.coding,)).codings:
            tag = coded_tag(tag, encoded.coding)
            return Representation(opened.size, opened.mtime_ns, encoded.content_type, tag, encoded.coding, True)
        return Representation(opened.size, opened.mtime_ns, self._type_of(opened.path), tag, varies=True)

    async def _tag(self, opened: OpenFile) -> str:
        return opened.tag(self.options.etag) or content_tag(await self._hashes.digest(opened))

    # --- what is made, not found --------------------------------------------------------------------------------------

    async def _list(self, request: Request, target: Target, folder: Folder, visitor: Visitor | None) -> Response:
        from ktlsd.site import listing

        if (archives := self._archives.get(target.query)) is not None:
            return await self._archive(request, archives, target, folder, visitor)
        as_json = wants_json(request.fields.get("accept"))
        wanted = preferred(request.fields.get("accept-encoding"), CODINGS).codings
        coding = wanted[0] if wanted else None
        fields = packed_fields(listing.fields(as_json=as_json), coding)
        if request.method == "HEAD":
            folder.close()
            return Response(HTTPStatus.OK, fields)
        try:
            with folder.root as root:
                async with self._listings.one(folder.root.threads.seconds, waits=folder.waits):
                    entries = await folder.root.threads.run_on(
                        folder.descriptor, partial(self._read_folder, root, folder.path), waits=folder.waits
                    )
        finally:
            folder.close()
        sort = listing.parse_query(target.query)
        if as_json:
            return Response(HTTPStatus.OK, fields, packed(listing.render_json(entries, sort), coding))
        readme = b"" if self._readmes is None else await self._readme(self._readmes, folder, entries, visitor)
        thumbnails = THUMBNAIL_TYPES if self.options.thumbnails else frozenset[str]()
        forms = tuple(one.form.name for one in self._archives.values())
        page = listing.render_html(target.names, entries, sort, self._type_of, readme, thumbnails, forms)
        return Response(HTTPStatus.OK, fields, packed(page, coding))

    async def _archive(
        self, request: Request, archives: FolderArchives, target: Target, folder: Folder, visitor: Visitor | None
    ) -> Response:
        """The response with a folder as an archive; closes the folder."""
        root, is_head, form = folder.root, request.method == "HEAD", archives.form
        folder.close()
        name = target.names[-1] if target.names else _NAME_OF_ROOT

        def withheld(paths: Iterable[bytes]) -> bool:
            return self._withholds(tuple(map(_as_requested, paths)), visitor)

        try:
            async with self._listings.one(root.threads.seconds, waits=folder.waits):
                archive = await archives.archive(root, folder.path, name, self._index, self._read_folder, withheld)
        except TooLarge as error:
            return short(HTTPStatus.FORBIDDEN, f"a {form.name} of {error}", head=is_head)
        found = Representation(archive.layout.size, 0, form.media_type, archive.tag)
        # No client asks for several ranges of an archive.
        wanted = (*_CONDITIONS, "if-range", *(("range",) if "," not in request.fields.get("range", "") else ()))
        fields = {name: value for name in wanted if (value := request.fields.get(name)) is not None}
        response = decide(Request(request.method, fields), found, time.time(), "")
        if response.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            return response
        if isinstance(response.body, ByteRange):
            response = replace(response, body=archives.pieces(root, archive, response.body, withheld))
        saved = ("Content-Disposition", attachment(f"{os.fsdecode(name)}.{form.name}"))
        return replace(response, fields=(*response.fields, saved, ("Cache-Control", "no-cache")))

    def _has_thumbnail(self, target: Target) -> bool:
        """Whether the query of a target may ask for a thumbnail."""
        if self._thumbnails is None or target.directory or not target.names:
            return False
        return self._type_of(target.names[-1]) in THUMBNAIL_TYPES

    async def _thumbnail(self, request: Request, thumbnails: Thumbnails, opened: OpenFile) -> Response:
        """The response with the thumbnail of a picture, which is left open."""
        is_head, now = request.method == "HEAD", time.time()
        if opened.waits:
            # Its process could not be ended while the file system does not answer.
            return short(HTTPStatus.NOT_FOUND, "no thumbnail: the file system may not answer", head=is_head)
        conditions = {name: value for name in _CONDITIONS if (value := request.fields.get(name)) is not None}
        tag = coded_tag(await self._tag(opened), "thumbnail")
        found = Representation(1, opened.mtime_ns, THUMBNAIL_TYPE, tag)
        response = decide(Request("HEAD", conditions), found, now, "")
        if response.status is not HTTPStatus.OK:
            return response
        data = await thumbnails.made(opened)
        if data is None:
            return short(HTTPStatus.SERVICE_UNAVAILABLE, "no process for a thumbnail at the moment", head=is_head)
        if not data:
            return short(HTTPStatus.NOT_FOUND, "no thumbnail can be made of the picture", head=is_head)
        response = whole(Request("HEAD"), replace(found, size=len(data)), HTTPStatus.OK, now)
        return replace(response, fields=(*response.fields, ("ETag", tag)), body=b"" if is_head else data)

    async def _readme(
        self, readmes: Readmes, folder: Folder, entries: Sequence[Entry], visitor: Visitor | None
    ) -> bytes:
        """The README.md of a folder as HTML, if there is one and the visitor may see it."""
        from ktlsd.site.readme import readme_in

        name = readme_in(entries)
        if name is None:
            return b""
        try:
            opened = await folder.root.open_file(name if folder.path == b"." else folder.path + b"/" + name)
            if not isinstance(opened, OpenFile):
                return b""
            try:
                return b"" if self._is_withheld(opened, visitor) else await readmes.rendered(opened)
            finally:
                opened.close()
        except OSError:
            return b""

    def _read_folder(self, root: int, path: bytes, descriptor: int) -> list[Entry]:
        hidden = self._rules.files if path == b"." else frozenset[bytes]()
        dotfiles, hide = self.options.dotfiles, self.root.hide
        entries = read_folder(root, path, descriptor, dotfiles=dotfiles, hidden=hidden, hide=hide)
        return without_siblings(entries, self._sibling_suffixes)

    def _type_of(self, name: bytes) -> str:
        return self._types.described(name)[0]

    async def _with_error_page(
        self, request: Request, requested: str, answer: _Draft, request_id: RequestId | None
    ) -> _Draft:
        """The operator's page for this status and path (decoded) in place of the short text, where there is one; else
        the built-in one."""
        found = await self._with_own_error_page(request, requested, answer)
        if found is not None:
            return found
        is_head = request.method == "HEAD"
        response = for_client(answer.response, request.fields.get("accept"), request_id, is_head=is_head)
        return replace(answer, response=response)

    async def _with_own_error_page(self, request: Request, requested: str, answer: _Draft) -> _Draft | None:
        response = answer.response
        path = self._error_pages.find(requested, response.status)
        if path is None:
            return None
        try:
            found = await self._look_up_path(path)
            if isinstance(found, OpenFile) and self._needs_password(found):
                found.close()
                found = Miss.PROTECTED
        except OSError as error:
            found = miss_of(error)
        if not isinstance(found, OpenFile):
            if isinstance(found, Folder):
                found.close()
            if found is not Miss.PROTECTED:
                log.error("error page %s for %d not found in %s", path, response.status, self.options.root)
            return None
        try:
            opened, representation, _ = await self._negotiate(request, found, None)
            page = whole(request, representation, response.status, time.time())
            await read_first(opened, page)
        except OSError as error:
            log.error("error page %s for %d in %s: %s", path, response.status, self.options.root, error.strerror)
            return None
        if answer.opened is not None:
            answer.opened.close()
        others = without(response.fields, _OF_A_FILE | ({name.lower() for name, _ in page.fields} - {"vary"}))
        return _Draft(
            replace(
                page,
                fields=add_vary(page.fields + others),
                reason=response.reason,
                denied=response.denied,
                limit=response.limit,
            ),
            opened,
        )


def _paths_of(found: OpenFile | Folder) -> Iterator[str]:
    """The paths below the root of what was found: its name, and the place where links led to. Raises OSError."""
    with found.root as root:
        paths = paths_below(root, found.path, found.descriptor)
    return map(_as_requested, paths)


def _as_requested(path: bytes) -> str:
    """A path below the root ("." for the root itself) as that of a request, decoded."""
    return "/" + ("" if path == b"." else os.fsdecode(path))


async def read_first(opened: OpenFile, response: Response) -> None:
    """Read what comes first of a file whose file system may fail to answer; closes it then. Raises OSError."""
    try:
        await opened.read_first(response.body)
    except BaseException:
        opened.close()
        raise


_NAME_OF_ROOT: Final = b"files"
"""Name of the root in an archive."""
_CONDITIONS: Final = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
_OF_A_FILE: Final = frozenset({"etag", "last-modified", "accept-ranges"})
