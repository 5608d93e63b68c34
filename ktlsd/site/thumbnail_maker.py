"""A thumbnail of one picture: the program that thumbnails.py runs, with the picture as its standard input.

Strategy: decoders of pictures are large and their input is not trusted, so they run in a process of their own, with
limits on memory, processor time and pixels. It needs Pillow, of the extra `pages`.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import sys
from typing import Final

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
LONGEST_SIDE: Final = 320
"""Pixels of a thumbnail."""
MOST_PIXELS: Final = 50_000_000
MOST_JPEG_PIXELS: Final = 400_000_000
"""Of a JPEG, which is decoded at an eighth of its size."""
MOST_BYTES: Final = 1 << 30
"""Address space."""
MOST_SECONDS: Final = 10
"""Processor time."""
_QUALITY: Final = 75


def main() -> int:
    """Write a WebP to standard output; the exit status is 1 if there is none."""
    # A sandbox may forbid these: pixels are bounded all the same, and the caller has a time-out.
    for limit, most in (
        (resource.RLIMIT_AS, MOST_BYTES),
        (resource.RLIMIT_CPU, MOST_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = None
    with Image.open(sys.stdin.buffer, formats=FORMATS) as picture:
        width, height = picture.size
        if width * height > (MOST_JPEG_PIXELS if picture.format == "JPEG" else MOST_PIXELS):
            return 1
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), reducing_gap=2.0)
        upright = ImageOps.exif_transpose(picture)
        mode = "RGBA" if upright.has_transparency_data else "RGB"
        made = io.BytesIO()
        upright.convert(mode).save(made, "WEBP", quality=_QUALITY)
    data = memoryview(made.getbuffer())
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
    return 0


if __name__ == "__main__":
    sys.exit(main())
