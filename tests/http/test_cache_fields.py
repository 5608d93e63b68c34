"""Fields for caches of responses that not everybody may see."""

from __future__ import annotations

import pytest

from ktlsd.http.cache_fields import never_stored, private


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
