#!/usr/bin/env python3
"""Makes ktlsd/site/assets/media.types, the media types by suffix, from mime-db. `python packaging/make_types.py
[FOLDER]`

Strategy: npm fetches the release of mime-db that is named here. Of several types for a suffix, the registered one wins;
where that is not what web servers and browsers expect, CHOICES says so, with the reason. tests/system/test_packaging.py
runs this again and compares.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
VERSION: Final = "1.54.0"
"""Of mime-db, in the npm registry."""
TABLE: Final = "ktlsd/site/assets/media.types"
LICENSE: Final = "licenses/mime-db"

_SOURCES: Final = ("iana", "nginx", "apache")
"""Where mime-db has a type from, the best first; a type without a source comes last."""

CHOICES: Final[Mapping[str, str]] = {
    # Registered twice; these are the types that media elements and players expect.
    "3gp": "video/3gpp",
    "3gpp": "video/3gpp",
    "3gpp2": "video/3gpp2",
    "mp4": "video/mp4",
    "mpg4": "video/mp4",
    # MPEG transport streams, as in nginx: HLS needs that type, and no browser runs TypeScript.
    "mts": "video/mp2t",
    "ts": "video/mp2t",
    # RFC 8216 section 4: a playlist of HLS has one of these suffixes.
    "m3u": "application/vnd.apple.mpegurl",
    # Registered since: RFC 9559, RFC 9639, RFC 9512, RFC 6350.
    "mk3d": "video/matroska-3d",
    "mka": "audio/matroska",
    "mkv": "video/matroska",
    "flac": "audio/flac",
    "yaml": "application/yaml",
    "yml": "application/yaml",
    "vcf": "text/vcard",
    # WHATWG MIME Sniffing section 6.2 and MDN, not registered.
    "wav": "audio/wav",
    # RFC 9239; RFC 7303 section 9.1: text/xml is the same, but would get a charset that the file may contradict.
    "js": "text/javascript",
    "xml": "application/xml",
    "xsl": "application/xml",
    # Signatures are more often beside downloads than keys are.
    "asc": "application/pgp-signature",
    "org": "text/x-org",
    "mpp": "application/vnd.ms-project",
    "rtf": "application/rtf",
    # What a browser shows as text, and would save under the names that Apache has for it.
    **dict.fromkeys(("bat", "c", "h", "ksh", "pl", "srt"), "text/plain"),
    "py": "text/x-python",
    "rst": "text/x-rst",
    # Packed files have their own type, regardless of their content.
    **dict.fromkeys(("svgz", "taz", "tgz", "tz"), "application/gzip"),
    **dict.fromkeys(("tbz", "tbz2"), "application/x-bzip2"),
    "txz": "application/x-xz",
    **dict.fromkeys(("tzst", "zst"), "application/zstd"),
    "lz": "application/x-lzip",
    "lzma": "application/x-lzma",
    # As registered, or as Debian and Unity's manual have it.
    "deb": "application/vnd.debian.binary-package",
    "cur": "image/vnd.microsoft.icon",
    "avifs": "image/avif",
    "h5": "application/x-hdf5",
    "jsonl": "application/jsonl",
    "ndjson": "application/x-ndjson",
    "unityweb": "application/octet-stream",
}
LEFT_OUT: Final = frozenset({"pub", "rs", "sub"})
"""Suffixes that mostly belong to something else than mime-db says: public keys, Rust, subtitles of several formats."""

_HEADER: Final = """\
# Media types with their suffixes, after an empty line. Made by packaging/make_types.py.
# They are from mime-db {version}, with a few choices. mime-db is under the MIT License; licenses/mime-db has its text:
{copyright}

"""


def files(database: Mapping[str, Any], license_text: str) -> dict[str, str]:
    """The text of each file by its path in the repository, from db.json and LICENSE of mime-db."""
    suffixes: dict[str, list[str]] = {}
    for suffix, kind in sorted(_types(database).items()):
        suffixes.setdefault(kind, []).append(suffix)
    copyright_lines = [f"#   {line}" for line in license_text.splitlines() if line.startswith("Copyright")]
    header = _HEADER.format(version=VERSION, copyright="\n".join(copyright_lines))
    lines = (f"{kind} {' '.join(f'.{name}' for name in names)}\n" for kind, names in sorted(suffixes.items()))
    return {TABLE: header + "".join(lines), LICENSE: license_text}


def _types(database: Mapping[str, Any]) -> dict[str, str]:
    rank = {source: number for number, source in enumerate(_SOURCES)}
    best: dict[str, tuple[int, str]] = {}
    for kind, entry in database.items():
        for suffix in entry.get("extensions", ()):
            candidate = (rank.get(entry.get("source"), len(rank)), kind)
            best[suffix] = min(best.get(suffix, candidate), candidate)
    return {suffix: kind for suffix, (_, kind) in best.items() if suffix not in LEFT_OUT} | dict(CHOICES)


def fetch(folder: Path) -> dict[str, str]:
    """files() of the release, which npm puts into `folder`. Raises CalledProcessError."""
    npm = ["npm", "pack", "--silent", f"mime-db@{VERSION}"]
    name = subprocess.run(npm, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    with tarfile.open(folder / name) as package:
        package.extractall(folder, filter="data")
    unpacked = folder / "package"
    database = json.loads((unpacked / "db.json").read_text(encoding="utf-8"))
    return files(database, (unpacked / "LICENSE").read_text(encoding="utf-8"))


def main() -> None:
    arguments = argparse.ArgumentParser(description="Make the table of media types.")
    arguments.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=REPOSITORY)
    target = arguments.parse_args().folder
    with tempfile.TemporaryDirectory() as folder:
        for name, text in fetch(Path(folder)).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
