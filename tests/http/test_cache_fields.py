"""Fields for caches of responses that not everybody may see."""

from __future__ import annotations

import pytest

from ktlsd.http.cache_fields import ending, never_stored, private
from ktlsd.http.fields import Fields


@pytest.mark.parametrize(
    ("control", "merged"),
    [
        (None, "private"),
        ("public, max-age=3600, immutable", "private, max-age=3600, immutable"),
        ("max-age=60, S-MaxAge=600", "private, max-age=60"),
        ("no-store", "private, no-store"),
        ('private="set-cookie", no-cache', "private, no-cache"),
    ],
)
def test_private(control: str | None, merged: str) -> None:
    fields = (("ETag", '"x"'), *((("cache-control", control),) if control else ()), ("CDN-Cache-Control", "max-age=9"))
    assert private(fields) == (("ETag", '"x"'), ("Cache-Control", merged))


def test_never_stored() -> None:
    fields = (("Cache-Control", "public"), ("Expires", "soon"), ("Surrogate-Control", "max-age=9"), ("A", "b"))
    assert never_stored(fields) == (("A", "b"), ("Cache-Control", "no-store"))


@pytest.mark.parametrize(
    ("fields", "merged"),
    [
        ((), (("Cache-Control", "private, no-cache"),)),
        (
            (("Cache-Control", "public, max-age=60, immutable"),),
            (("Cache-Control", "private"), ("Expires", "Thu, 01 Jan 1970 00:17:40 GMT")),
        ),
        (
            (("Cache-Control", "max-age=600"),),
            (("Cache-Control", "private"), ("Expires", "Thu, 01 Jan 1970 00:18:20 GMT")),
        ),
        (
            (("Expires", "Thu, 01 Jan 1970 00:17:00 GMT"), ("Cache-Control", "no-transform")),
            (("Cache-Control", "private, no-transform"), ("Expires", "Thu, 01 Jan 1970 00:17:00 GMT")),
        ),
        ((("Cache-Control", "no-cache, max-age=9"),), (("Cache-Control", "private, no-cache"),)),
        ((("Cache-Control", "no-store"),), (("Cache-Control", "private, no-store, no-cache"),)),
        ((("Cache-Control", "max-age=x"),), (("Cache-Control", "private, no-cache"),)),
    ],
)
def test_ending(fields: Fields, merged: Fields) -> None:
    assert ending(fields, 1000, 1100) == merged
