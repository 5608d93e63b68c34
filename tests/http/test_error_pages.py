"""Which file is the body of an error."""

from __future__ import annotations

import pytest

from ktlsd.config.options import ErrorPageOptions, SiteOptions
from ktlsd.http.error_pages import ErrorPages

RULES = (
    ErrorPageOptions(path="/docs/**", status=404, file="/docs/404.html"),
    ErrorPageOptions(path="*.js", status=404, file="/empty.js"),
    ErrorPageOptions(path="**", status=429, file="/slow.html"),
)
PAGES = ErrorPages(SiteOptions(error_page=RULES, error_pages={"404": "/404.html", "429": "/never.html"}))


@pytest.mark.parametrize(
    ("path", "status", "file"),
    [
        ("/docs/a/b", 404, "/docs/404.html"),
        ("/docs/", 404, "/docs/404.html"),
        ("/docs/a.js", 404, "/docs/404.html"),
        ("/docs", 404, "/404.html"),
        ("/a/b.js", 404, "/empty.js"),
        ("/", 404, "/404.html"),
        ("/docs/a", 403, None),
        ("/docs/a", 429, "/slow.html"),
    ],
)
def test_the_first_rule_for_path_and_status_comes_before_the_table(path: str, status: int, file: str | None) -> None:
    assert PAGES.find(path, status) == file


def test_a_site_without_any_has_none() -> None:
    assert not ErrorPages(SiteOptions())
    assert ErrorPages(SiteOptions()).find("/", 404) is None
    assert ErrorPages(SiteOptions(error_page=RULES[:1]))
    assert ErrorPages(SiteOptions(error_pages={"404": "/a"}))
