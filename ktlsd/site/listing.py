"""A folder's entries as a page for people or as JSON for programs: pure.

Strategy: both come as an iterator of pieces that each take about a millisecond to make, so that an event loop can do
other work between them; an empty piece is only such a chance. Sorting fits in by sorting short runs and merging them
while the rows are written. No name gets into the page but percent-encoded or escaped.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from html import escape
from typing import Any, Final, Literal, NamedTuple, get_args
from urllib.parse import quote

from ktlsd.site.folder import Entry
from ktlsd.site.page_assets import asset, head, policy, source

LARGEST_THUMBNAIL: Final = 2 * 1024 * 1024
"""Bytes of a picture that is shown in the list itself."""
LARGEST_OWN_THUMBNAIL: Final = 131_072
"""The same, if smaller thumbnails can be made."""

Column = Literal["name", "size", "date"]
_MediaType = Callable[[bytes], str]
_Key = tuple[Any, ...]


class Sort(NamedTuple):
    """The sort key of a listing; folders come first in any case."""

    column: Column = "name"
    descending: bool = False


_COLUMNS: Final[tuple[Column, ...]] = get_args(Column)
_TITLES: Final[dict[Column, str]] = {"name": "Name", "size": "Size", "date": "Modified (UTC)"}
# People look for the newest and the largest.
_DESCENDING_FIRST: Final[dict[Column, bool]] = {"name": False, "size": True, "date": True}
# A group of rows too: a number that many others divide, so that few rows of the gallery are short.
_ENTRIES_IN_A_PIECE: Final = 60

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_OLDEST, _NEWEST = -62135596800, 253402300799  # the years 1 and 9999, in seconds since the epoch
_NUMBER: Final = re.compile("0*([0-9]+)")
# Controls, line and paragraph separators, characters that change direction or have no width; not the joiners, which
# emoji and several scripts need.
_UNSEEN: Final = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_SAFE_IN_HREF: Final = "!$()*+,:;=@"

_ICONS: Final = tuple(
    (icon, re.compile(types))
    for icon, types in (
        ("picture", r"image/"),
        ("sound", r"audio/"),
        ("film", r"video/"),
        ("code", r"text/(html|css|javascript|x-|xml)|application/(json|javascript|yaml|wasm|x-sh|(.*\+)?(json|xml)\b)"),
        ("text", r"text/|application/(pdf|rtf|msword|epub|vnd\.(openxml|oasis))"),
        ("archive", r"application/(zip|gzip|zstd|vnd\.rar|java-archive|x-(tar|7z|bzip2|xz|rar|gzip))"),
    )
)
_PLAYED: Final = ("audio/", "video/")
_LONG_NAME: Final = 60
"""Characters. A longer name may be cut off in the page, and is shown in full under the pointer."""
_PICTURE_TYPES: Final = frozenset(
    "image/" + name for name in ("apng", "avif", "bmp", "gif", "jpeg", "png", "svg+xml", "webp")
)

_STYLE: Final = asset("theme.css") + asset("listing.css")
_SCRIPT, _SPRITE = map(asset, ("listing.js", "icons.svg"))
_POLICY: Final = policy(
    f"style-src {source(_STYLE)}", f"script-src {source(_SCRIPT)}", "img-src 'self' data:", "media-src 'self'"
)
# A listing has no validator: it is made for each request.
_FIELDS: Final = (("Cache-Control", "no-cache"), ("Vary", "Accept"))
_HTML_FIELDS: Final = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", _POLICY),
    ("Referrer-Policy", "same-origin"),
    *_FIELDS,
)
_JSON_FIELDS: Final = (("Content-Type", "application/json"), *_FIELDS)


def fields(*, as_json: bool) -> tuple[tuple[str, str], ...]:
    """The header fields of a listing, without its length, which is unknown before it is made."""
    return _JSON_FIELDS if as_json else _HTML_FIELDS


def parse_query(query: bytes) -> Sort:
    """Read "?sort=name|size|date&order=asc|desc"; other parameters have no effect."""
    values = dict(pair.split("=", 1) for pair in query.decode("latin-1").lstrip("?").split("&") if "=" in pair)
    column = next((column for column in _COLUMNS if column == values.get("sort")), Sort().column)
    return Sort(column, values.get("order") == "desc")


def render_json(entries: Sequence[Entry], sort: Sort) -> Iterator[bytes]:
    """An array of objects with "name", "href" (relative to the folder), "type" ("file" or "directory"), "modified" and,
    for a file, "size" in bytes. Bytes of a name that are not UTF-8 become U+FFFD; "href" has every byte."""
    ordered = yield from _ordered(entries, sort)
    opening = "["
    for piece in _pieces(ordered):
        yield (opening + ",\n".join(map(_json_row, piece))).encode()
        opening = ",\n"
    yield b"]\n" if entries else b"[]\n"


def _json_row(entry: Entry) -> str:
    row: dict[str, str | int] = {
        "name": entry.name.decode("utf-8", "replace"),
        "href": _href(entry),
        "type": "directory" if entry.directory else "file",
        "modified": _moment(entry.mtime_ns),
    }
    if not entry.directory:
        row["size"] = entry.size
    return json.dumps(row)


def render_html(
    names: Sequence[bytes],
    entries: Sequence[Entry],
    sort: Sort,
    media_type: _MediaType,
    readme: bytes = b"",
    thumbnails: frozenset[str] = frozenset(),
    archives: Sequence[str] = (),
) -> Iterator[bytes]:
    """The page of the folder whose path below the root is `names`; `media_type` gives a file name's Content-Type.
    `readme` is HTML to show below; pictures of the types in `thumbnails` have thumbnails (thumbnails.py). `archives`
    are the formats in which the folder can be downloaded (folder_archive.py)."""
    folders = size = 0
    pictures = False
    for piece in _pieces(entries):
        for entry in piece:
            folders += entry.directory
            size += 0 if entry.directory else entry.size
        pictures = pictures or any(_thumbnail(entry, media_type(entry.name), thumbnails) is not None for entry in piece)
        yield b""
    ordered = yield from _ordered(entries, sort)
    yield _head(names, _summary(folders, len(entries) - folders, size)).encode()
    if not entries:
        up = _table_begin("", _UP) + "</table>" if names else ""
        yield f'{up}<p class="empty">This folder is empty.</p></main></body></html>\n'.encode()
        return
    yield _tools(pictures, archives).encode()
    yield _table_begin(_columns(sort), _UP if names else "").encode()
    for piece in _pieces(ordered):
        yield ("<tbody>" + "".join(_html_row(entry, media_type, thumbnails) for entry in piece) + "</tbody>\n").encode()
    yield b'</table><p id="none" class="empty" hidden>No matches</p>\n'
    if readme:
        yield b'<section id="readme" aria-label="README">' + readme + b"</section>\n"
    yield _END.encode()


def _head(names: Sequence[bytes], summary: str) -> str:
    shown = [escape(_visible(name), quote=False) for name in names]
    title = shown[-1] + "/" if shown else "Home"
    heading = f"<bdi>{shown[-1]}</bdi>/" if shown else "Home"
    crumbs = "".join(
        f'<li><a href="{"../" * (len(names) - depth)}"><bdi>{name}</bdi></a></li>'
        for depth, name in enumerate(("Home", *shown[:-1]))
        if depth < len(names)
    )
    navigation = f'<nav aria-label="Breadcrumb"><ol>{crumbs}</ol></nav>\n' if crumbs else ""
    return f"""{head(title, _STYLE)}<body>{_SPRITE}<header>
{navigation}<h1>{heading}</h1>
<p id="status" role="status">{summary}</p></header>
<main>"""


_UP: Final = (
    '<tbody id="up"><tr><td><a href="../"><svg aria-hidden="true"><use href="#i-up"/></svg>'
    "Parent folder</a></tr></tbody>\n"
)


def _tools(pictures: bool, archives: Sequence[str]) -> str:
    downloads = "".join(f'<a class="button" href="?{form}" download>Download as {form}</a>' for form in archives)
    grid = '<label class="gallery"><input type="checkbox" id="gallery" autocomplete="off">Grid</label>'
    buttons = (grid if pictures else "") + downloads
    return f"""
<div class="tools"><div class="script search"><input type="search" id="search" aria-label="Search in this folder"
 placeholder="Search in this folder" autocomplete="off" spellcheck="false"></div>{buttons}</div>
"""


def _table_begin(heads: str, up: str) -> str:
    return f'<table><caption class="name-only">Files and folders</caption>{heads}\n{up}'


def _columns(sort: Sort) -> str:
    return "<thead><tr>" + "".join(_column_head(column, sort) for column in _COLUMNS) + "</tr></thead>"


def _column_head(column: Column, sort: Sort) -> str:
    first = "descending" if _DESCENDING_FIRST[column] else "ascending"
    now = ""
    descending = _DESCENDING_FIRST[column]
    if column == sort.column:
        now = f' aria-sort="{"descending" if sort.descending else "ascending"}"'
        descending = not sort.descending
    link = f"?sort={column}&amp;order={'desc' if descending else 'asc'}"
    return f'<th scope="col" data-key="{column}" data-first="{first}"{now}><a href="{link}">{_TITLES[column]}</a></th>'


_END: Final = f"""</main>
<dialog aria-label="Viewer" tabindex="-1"><div id="stage"></div><div id="bar"><a href="./"></a>
<span id="counter" role="status"></span>
<button type="button" data-action="-1" aria-label="Previous" title="Previous (\u2190)">\u2190</button>
<button type="button" data-action="1" aria-label="Next" title="Next (\u2192)">\u2192</button>
<button type="button" data-action="close" title="Close (Esc)">Close</button></div></dialog>
<script>{_SCRIPT}</script></body></html>
"""


def _html_row(entry: Entry, media_type: _MediaType, thumbnails: frozenset[str]) -> str:
    href = _href(entry)
    visible = _visible(entry.name)
    name = escape(visible, quote=False)
    moment = _moment(entry.mtime_ns)
    title = f' title="{escape(visible)}"' if len(visible) > _LONG_NAME else ""
    shown = ""
    if entry.directory:
        icon, slash, size = _icon("folder"), "/", ""
    else:
        kind = media_type(entry.name)
        slash, size = "", _size_cell(entry.size)
        if kind.startswith(_PLAYED) or kind in _PICTURE_TYPES:
            shown = f' data-type="{escape(kind)}"'
        if (query := _thumbnail(entry, kind, thumbnails)) is not None:
            icon = f'<img src="{href}{query}" alt="" width="36" height="36" loading="lazy" decoding="async">'
        else:
            icon = _icon(next((icon for icon, types in _ICONS if types.match(kind)), "file"))
    return (
        f'<tr><td><a href="{href}"{shown}{title}>{icon}<bdi>{name}{slash}</bdi></a><td>{size}'
        f'<td><time datetime="{moment}">{moment[:10]} {moment[11:16]}</time></tr>\n'
    )


def _icon(name: str) -> str:
    return f'<svg aria-hidden="true"><use href="#i-{name}"/></svg>'


def _thumbnail(entry: Entry, media_type: str, made: frozenset[str]) -> str | None:
    """The query of the URL of an entry's thumbnail, empty for the picture itself; None if there is none."""
    if entry.directory or not entry.size:
        return None
    if media_type in made and entry.size > LARGEST_OWN_THUMBNAIL:
        return "?thumbnail"
    return "" if media_type in _PICTURE_TYPES and entry.size <= LARGEST_THUMBNAIL else None


def _size_cell(size: int) -> str:
    exact = f' title="{size:,} bytes"' if size >= 1024 else ""
    return f'<data value="{size}"{exact}>{human_size(size)}</data>'


def _summary(folders: int, files: int, size: int) -> str:
    parts = [f"{folders:,} folder{'s' if folders != 1 else ''}"] if folders else []
    if files:
        parts.append(f"{files:,} file{'s' if files != 1 else ''}, {human_size(size)}")
    return ", ".join(parts)


def human_size(size: int) -> str:
    """Bytes in the unit that needs the fewest digits."""
    if size < 1024:
        return f"{size:,} B"
    # The unit in which fewer than 1000 are shown, so that no number needs more than three digits.
    power, amount = 0, size / 1024
    while amount >= 999.5:
        power, amount = power + 1, amount / 1024
    return f"{amount:.1f} {_UNITS[power]}" if amount < 99.95 else f"{amount:.0f} {_UNITS[power]}"


def _moment(mtime_ns: int) -> str:
    """ISO 8601 in UTC; a time beyond the years 1 to 9999 is shown as the nearest of these."""
    year, month, day, hour, minute, second = time.gmtime(min(max(mtime_ns // 1_000_000_000, _OLDEST), _NEWEST))[:6]
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"


def _href(entry: Entry) -> str:
    # "./" keeps a colon in the first segment from being read as a scheme's (RFC 3986 section 4.2).
    return "./" + quote(entry.name, safe=_SAFE_IN_HREF) + ("/" if entry.directory else "")


def _visible(name: bytes) -> str:
    """A name as text in which nothing is unseen or changes how its neighbours are shown."""
    return _UNSEEN.sub(_picture, name.decode("utf-8", "replace"))


def _picture(character: re.Match[str]) -> str:
    code = ord(character[0])
    # Unicode's control pictures: U+2400 on for the controls, U+2421 for DEL.
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"[U+{code:04X}]"


def _ordered(entries: Sequence[Entry], sort: Sort) -> Generator[bytes, None, Iterator[Entry]]:
    """Sort run by run, with an empty piece after each; the iterator that is returned merges the runs as it goes."""
    # One long sort would hold up everything else in this process, another thread too: it never lets the GIL go.
    reverse = sort.descending and sort.column == "name"
    runs: dict[bool, list[list[_Key]]] = {True: [], False: []}
    for piece in _pieces(entries):
        for directory, of_a_kind in runs.items():
            of_a_kind.append(
                sorted((_key(entry, sort) for entry in piece if entry.directory is directory), reverse=reverse)
            )
        yield b""
    merged = (heapq.merge(*runs[directory], reverse=reverse) for directory in (True, False))
    return (key[-1] for key in itertools.chain.from_iterable(merged))


def _key(entry: Entry, sort: Sort) -> _Key:
    # Each number gets its length in front, so that "2" comes before "10".
    natural = _NUMBER.sub(lambda number: f"{len(number[1]):03}{number[1]}", _visible(entry.name).casefold())
    sign = -1 if sort.descending else 1
    if sort.column == "date":
        return sign * entry.mtime_ns, natural, entry
    if sort.column == "size" and not entry.directory:
        return sign * entry.size, natural, entry
    return natural, entry


def _pieces(entries: Sequence[Entry] | Iterator[Entry]) -> Iterator[tuple[Entry, ...]]:
    iterator = iter(entries)
    return iter(lambda: tuple(itertools.islice(iterator, _ENTRIES_IN_A_PIECE)), ())
