"""Whether content of a media type gets smaller by compression: pure.

Strategy: a table of the types that are compressed already, as mime-db has them; unknown types are worth a try.
"""

from __future__ import annotations

from typing import Final

_COMPRESSED_FAMILIES: Final = ("image/", "audio/", "video/", "font/woff")
_PLAIN_IMAGES: Final = frozenset(
    {"image/bmp", "image/x-ms-bmp", "image/vnd.microsoft.icon", "image/x-icon"}
    | {"image/vnd.adobe.photoshop", "image/vnd.ms-dds"}
)
_PLAIN_STRUCTURES: Final = ("+xml", "+json")
_COMPRESSED_STRUCTURES: Final = ("+zip", "+gzip", "+zstd")
_COMPRESSED_PREFIXES: Final = (
    "application/vnd.oasis.opendocument.",
    "application/vnd.openxmlformats-officedocument.",
)
_COMPRESSED: Final = frozenset(
    {
        "application/appx",
        "application/appxbundle",
        "application/gzip",
        "application/java-archive",
        "application/mp4",
        "application/msix",
        "application/msixbundle",
        "application/ogg",
        "application/pdf",
        "application/vnd.android.package-archive",
        "application/vnd.apple.keynote",
        "application/vnd.apple.numbers",
        "application/vnd.apple.pages",
        "application/vnd.apple.pkpass",
        "application/vnd.debian.binary-package",
        "application/vnd.google-earth.kmz",
        "application/vnd.ms-cab-compressed",
        "application/vnd.ms-xpsdocument",
        "application/vnd.rar",
        "application/x-7z-compressed",
        "application/x-brotli",
        "application/x-bzip2",
        "application/x-compress",
        "application/x-debian-package",
        "application/x-gzip",
        "application/x-lzip",
        "application/x-lzma",
        "application/x-rar-compressed",
        "application/x-redhat-package-manager",
        "application/x-rpm",
        "application/x-shockwave-flash",
        "application/x-xpinstall",
        "application/x-xz",
        "application/x-zip-compressed",
        "application/zip",
        "application/zstd",
    }
)


def is_compressible(content_type: str) -> bool:
    """Whether to try to compress content of this type, whose parameters do not matter."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.endswith(_PLAIN_STRUCTURES) or kind in _PLAIN_IMAGES:
        return True
    return not (
        kind in _COMPRESSED
        or kind.startswith(_COMPRESSED_FAMILIES + _COMPRESSED_PREFIXES)
        or kind.endswith(_COMPRESSED_STRUCTURES)
    )
