"""The checks of one site: which paths none of them is for."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import pytest

from ktlsd.http.access import Access, Check, Visitor
from ktlsd.http.decide import Response
from ktlsd.http.fields import Fields
from ktlsd.http.forwarded import Origin
from ktlsd.http.protected_paths import GuardedPaths, ProtectedPaths


class _Closed:
    """A check that nobody passes."""

    def __init__(self, paths: GuardedPaths | ProtectedPaths) -> None:
        self.paths = paths

    def admits(self, visitor: Visitor) -> bool:
        return False

    async def refusal(self, visitor: Visitor) -> Response | None:
        return Response(HTTPStatus.FORBIDDEN, ())

    def marked(self, visitor: Visitor, fields: Fields) -> Fields:
        return fields


def closed(*patterns: str) -> Check:
    return _Closed(GuardedPaths(patterns))


@pytest.mark.parametrize(
    ("checks", "path", "expected"),
    [
        ([], "/intern/plan", False),
        ([closed("/intern/**")], "/intern/plan", True),
        ([closed("/intern/**")], "/Intern/plan", True),
        ([closed("/intern/**")], "/open/plan", False),
        # A folder of the same name elsewhere: the patterns themselves decide.
        ([closed("/intern/**")], "/open/intern/plan", True),
        # Its name may be the same as an ASCII one.
        ([closed("/intern/**")], "/öffen/plan", True),
        ([closed("/a/**"), closed("*.key")], "/b/x.key", True),
        ([closed("/a/**"), closed("*.key")], "/b/x.txt", False),
        # Without a fixed part that can be compared.
        ([closed("/a/**"), closed("**")], "/b", True),
        ([closed("/ä/**")], "/b", True),
    ],
)
def test_paths_that_no_check_may_be_for(checks: Sequence[Check], path: str, expected: bool) -> None:
    access = Access(checks)
    assert access.may_guard(path) is expected
    assert access.empty is not bool(checks)
    assert not access.guards(path) or expected


async def test_checks_come_and_go() -> None:
    changing: Sequence[Check] = ()
    access = Access([closed("/a/**")], lambda: changing)
    visitor = Visitor(b"GET", b"/b/x", {}, Origin("192.0.2.1", True))
    assert not access.guards("/b/x")
    assert await access.refusal(visitor, ["/b/x"]) is None
    changing = (_Closed(ProtectedPaths(["/b/*"])),)
    assert access.guards("/b/x")
    assert access.hides(visitor, ["/b/x"])
    assert await access.refusal(visitor, ["/b/x"]) is not None
    changing = ()
    assert not access.guards("/b/x")
    assert access.guards("/a/x")
