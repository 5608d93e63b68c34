"""What rules by path come to over the wire: paths that are protected, caches, and folders that stand for a file.

One server has a site for each kind of rules, and no name in the handshake, so that Host alone says which. All over both
protocols.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.files import write
from tests.protocols import HTTP_1, HTTP_2, PROTOCOLS, Conversation, ask, conversation
from tests.serving import Answer, Running, eventually, serving

CONFIGURATION = """
root = "secrets"
headers_file = true
redirects_file = true
clean_urls = true
listing = true

[[site]]
names = ["secrets"]
[site.error_pages]
403 = "/secret/403.html"
404 = "/secret/404.html"

[[site]]
names = ["secret-fallback"]
fallback = "/secret/page.html"

[[site]]
names = ["secret-try"]
clean_urls = false
index = ["home.htm", "index.html"]
try_files = ["{path}", "{path}.htm", "/hidden{path}", "/secret/"]

[[site]]
names = ["everything"]
root = "everything"
error_pages = { 403 = "/403.html" }

[[site]]
names = ["roles"]
root = "roles"

[[site]]
names = ["roles-only"]
root = "roles-only"

[[site]]
names = ["later"]
root = "later"

[[site]]
names = ["spa"]
root = "spa"
fallback = "/index.html"
listing = false
[[site.header]]
path = "/assets/**"
set = { Cache-Control = "public, max-age=31536000, immutable", X-Assets = "yes" }
[[site.header]]
path = "/account/**"
set = { Cache-Control = "no-store" }
[[site.redirect]]
from = "/assets/old.js"
to = "/assets/new.js"
status = 302
[[site.redirect]]
from = "/assets/rewritten.js"
to = "/index.html"
status = 200
[[site.redirect]]
from = "/renamed.js"
to = "/assets/app.js"
status = 200
[[site.redirect]]
from = "/assets/error/*"
to = "/index.html"
status = 404

[[site]]
names = ["spa-try"]
root = "spa"
try_files = ["{path}", "/index.html"]
header = [{ path = "/assets/**", set = { Cache-Control = "max-age=31536000", Content-Type = "text/x-own" } }]

[[site]]
names = ["folders"]
root = "folders"
headers_file = false
redirects_file = false
listing = false
fallback = "/app"
error_pages = { 403 = "/about" }
[[site.redirect]]
from = "/to-folder"
to = "/app"
status = 200
[[site.redirect]]
from = "/to-page"
to = "/about"
status = 200
[[site.redirect]]
from = "/to-both"
to = "/both"
status = 200
[[site.redirect]]
from = "/to-slash"
to = "/both/"
status = 200
[[site.redirect]]
from = "/to-error"
to = "/errors"
status = 404
[[site.redirect]]
from = "/to-empty"
to = "/files"
status = 200

[[site]]
names = ["folders-errors"]
root = "folders"
error_pages = { 404 = "/errors", 403 = "/about", 412 = "/files" }
[[site.redirect]]
from = "/browse/*"
to = "/files/:splat"
status = 200
[[site.redirect]]
from = "/lost"
to = "/files/"
status = 404

[[site]]
names = ["folders-try"]
root = "folders"
try_files = ["{path}", "/alias{path}", "/app"]

[[site]]
names = ["hidden"]
root = "hidden"
listing = true
headers_file = false
redirects_file = false
clean_urls = false
index = ["start.bak", "index.html"]
hide = ["*.bak", "/private/**", "*.br"]
error_pages = { 404 = "/private/404.html" }
[[site.redirect]]
from = "/rewritten"
to = "/private/page.html"
status = 200
[[site.redirect]]
from = "/page.bak"
to = "/index.html"
status = 200
force = false

[[site]]
names = ["hidden-clean"]
root = "hidden"
headers_file = false
redirects_file = false
hide = ["/about", "/private"]
clean_urls = true
fallback = "/private/page.html"

[[site]]
names = ["hidden-try"]
root = "hidden"
headers_file = false
redirects_file = false
clean_urls = false
hide = ["/private/"]
try_files = ["{path}", "/private{path}", "/private/page.html"]

[[site]]
names = ["no-clean"]
root = "folders"
clean_urls = false
fallback = "/about"
[[site.redirect]]
from = "/to-page"
to = "/about"
status = 200
"""

SECRET = b"for few eyes"
PASSWORD = "pa55word"


@dataclass
class Place:
    """A running server, the folder that its configuration is in, and the protocol to ask it by."""

    server: Running
    folder: Path
    protocol: str = HTTP_1

    def ask(self, site: str, target: str, *fields: str, method: str = "GET") -> Answer:
        return ask(self.server.port, target, *fields, protocol=self.protocol, method=method, host=site)

    def conversation(self) -> contextlib.AbstractContextManager[Conversation]:
        return conversation(self.server.port, self.protocol)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    make_secrets(folder / "secrets")
    make_roles(folder / "roles")
    make_roles(folder / "roles-only")
    write(folder / "roles-only/_redirects", "/gated/* 200! Role=member\n/gone/* /sorry.html 410!\n")
    write(folder / "everything/_headers", f"/*\n  Basic-Auth: user:{PASSWORD}\n")
    write(folder / "everything/index.html", SECRET)
    write(folder / "everything/403.html", SECRET)
    write(folder / "later/index.html", SECRET)
    write(folder / "later/open.html", "open")
    make_pages(folder / "spa", "index.html", "assets/app.js", "assets/sub/index.html", "account/index.html")
    write(folder / "spa/_headers", "/assets/*\n  CDN-Cache-Control: max-age=31536000\n/index.html\n  X-Index: yes\n")
    write(folder / "spa/_redirects", "/assets/lines/* /index.html 200\n/assets/moved /elsewhere\n")
    pages = ("app/index.html", "about.html", "both.html", "both/index.html", "errors/index.html", "files/sub/a.txt")
    make_pages(folder / "folders", *pages, "alias/x/index.html")
    make_hidden(folder / "hidden")
    config = folder / "ktlsd.toml"
    config.write_text(CONFIGURATION)
    with serving(None, "--config", str(config), state=folder / "state") as server:
        yield Place(server, folder)


@pytest.fixture
def place(started: Place, protocol: str) -> Place:
    return dataclasses.replace(started, protocol=protocol)


def make_pages(root: Path, *names: str) -> None:
    for name in names:
        write(root / name, name)


def make_secrets(root: Path) -> None:
    secret = (
        "secret/index.html",
        "secret/home.htm",
        "secret/page.html",
        "secret/403.html",
        "secret/404.html",
        "secret/sub/file.txt",
        "about.html",
        "single.html",
        "third.htm",
        "hidden/fourth",
        "folder/index.html",
        "paper.pdf",
    )
    for name in secret:
        write(root / name, SECRET)
        write(root / f"{name}.gz", gzip.compress(SECRET))
    write(root / "index.html", "open")
    write(root / "public.html", "open")
    write(root / "public.html.gz", gzip.compress(b"open"))
    (root / "link.html").symlink_to("secret/page.html")
    (root / "chain.html").symlink_to("link.html")
    (root / "link-folder").symlink_to("secret")
    write(
        root / "_headers",
        f"""\
/secret/*
  Basic-Auth: user:{PASSWORD} other:{PASSWORD}2
  X-Rule: secret
/about
  Basic-Auth: user:{PASSWORD}
/single.html
  Basic-Auth: user:{PASSWORD}
/third
  Basic-Auth: user:{PASSWORD}
/fourth
  Basic-Auth: user:{PASSWORD}
/folder
  Basic-Auth: user:{PASSWORD}
https://example.org/*.pdf
  Basic-Auth: user:{PASSWORD}
/*
  X-All: yes
""",
    )
    write(
        root / "_redirects",
        """\
/secret/moved /elsewhere 301!
/open /secret/page.html 200!
/open-clean /secret/page 200
/open-folder /secret 200
/open-slash /secret/ 200
/open-listing /secret/sub/ 200
/open-error /secret/page.html 404
/open-chain /link.html 200
/opened/* /secret/:splat 200
""",
    )

    # A sibling that has its original's times is taken for its content.
    write(root / "other.html", "open")
    (root / "other.html.gz").symlink_to("secret/page.html.gz")
    for file in (root / "other.html", root / "secret/page.html.gz"):
        os.utime(file, (1_700_000_000, 1_700_000_000))


def make_hidden(root: Path) -> None:
    secret = ("private/page.html", "private/index.html", "private/404.html", "deep/x.bak", "start.bak", "about.html")
    for name in secret:
        write(root / name, SECRET)
        write(root / f"{name}.gz", gzip.compress(SECRET))
    write(root / "old.bak/file.txt", SECRET)
    write(root / "page.bak", SECRET)
    make_pages(root, "index.html", "privately.txt", "deep/index.html")
    write(root / "index.html.br", "hidden by its own name")
    make_pages(root, "deep/list/shown.txt", "deep/list/x.bak", "deep/list/x.bak.gz", "deep/list/old.bak/file")
    (root / "deep/list/link.txt").symlink_to("../../private/page.html")
    (root / "deep/list/link").symlink_to("../../private")
    (root / "deep/list/good").symlink_to("..")
    (root / "link.html").symlink_to("private/page.html")
    (root / "chain.html").symlink_to("link.html")
    (root / "link-folder").symlink_to("private")
    write(root / "other.html", "shown")
    (root / "other.html.gz").symlink_to("private/page.html.gz")
    for file in (root / "other.html", root / "private/page.html.gz"):
        os.utime(file, (1_700_000_000, 1_700_000_000))


def make_roles(root: Path) -> None:
    for name in ("admin/index.html", "admin/page.html", "gated/page.html", "gone/page.html", "personal.html"):
        write(root / name, SECRET if name != "personal.html" else "open")
    make_pages(root, "login.html", "index.html")
    write(
        root / "_redirects",
        """\
/admin/*  /admin/:splat  200!  Role=admin,editor
/admin/*  /login         302
/gated/*                 200!  Role=member
/gone/*   /sorry.html    410!
/personal /welcome       302!  Role=member
/de       /index.html    200!  Language=de
/us       https://us.example.org/  302!  Country=us
/api/*    https://api.example.org/:splat  200!
/* /index.html 200
""",
    )


# --- paths that are protected ----------------------------------------------------------------------------------------

PROTECTED = (
    "/secret",
    "/secret/",
    "/secret/index.html",
    "/secret/index.html.gz",
    "/secret/index",
    "/secret/page",
    "/secret/page.html",
    "/secret/page.html/",
    "/secret/page.html.gz",
    "/secret/page.html?user=a",
    "/secret/nothing",
    "/secret/moved",
    "/secret/403.html",
    "/secret/sub",
    "/secret/sub/",
    "/secret/sub/?sort=size",
    "/secret/sub/file.txt",
    "//secret//page.html",
    "/./secret/./page.html",
    "/public/../secret/page.html",
    "/secret/sub/../page.html",
    "/%73ecret/page%2Ehtml",
    "/%2e/secret/page.html",
    "/SECRET/page.html",
    "https://secrets/secret/page.html",
    "/link",
    "/link.html",
    "/chain.html",
    "/link-folder/",
    "/link-folder/page",
    "/link-folder/sub/",
    "/open",
    "/open-clean",
    "/open-folder",
    "/open-folder/",
    "/open-slash",
    "/open-listing",
    "/open-listing/",
    "/open-error",
    "/open-chain",
    "/opened/page.html",
    "/opened/page",
    "/opened/",
    "/opened/sub/",
    "/about",
    "/about/",
    "/about.html",
    "/about.html.gz",
    "/single",
    "/single.html",
    "/single.html.gz",
    "/folder",
    "/folder/",
    "/folder/index.html",
    "/folder/index",
    "/folder/index.html.gz",
    "/paper.pdf",
    "/paper.pdf.gz",
)


def basic(user: str, password: str) -> str:
    return "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def assert_refused(answer: Answer) -> None:
    assert (answer.status, answer.body) == (401, b"401 Unauthorized\n")
    assert answer.fields["www-authenticate"].startswith("Basic ")
    assert not [value for value in answer.fields.values() if PASSWORD in value]
    assert not {"basic-auth", "etag", "last-modified", "location", "content-encoding"} & answer.fields.keys()


@pytest.mark.parametrize("target", PROTECTED)
def test_a_protected_path_is_refused_however_it_is_written(place: Place, target: str) -> None:
    for fields in ((), ("Accept-Encoding: gzip",), ("Range: bytes=0-3",), ("If-None-Match: *",)):
        assert_refused(place.ask("secrets", target, *fields))
    assert place.ask("secrets", target, method="HEAD").status == 401


@pytest.mark.parametrize(
    ("site", "target"),
    [
        ("secret-fallback", "/nothing"),
        ("secret-fallback", "/deep/nothing"),
        ("secret-fallback", "/secret/page.html"),
        ("secret-try", "/nothing"),
        ("secret-try", "/secret/"),
        ("secret-try", "/third"),
        ("secret-try", "/third.htm"),
        ("secret-try", "/third.htm.gz"),
        ("secret-try", "/fourth"),
        ("secret-try", "/hidden/fourth"),
        ("secret-try", "/secret/home.htm"),
        ("everything", "/"),
        ("everything", "/index.html"),
        ("everything", "/403.html"),
        ("everything", "/nothing"),
    ],
)
def test_no_way_to_look_up_leads_to_what_is_protected(place: Place, site: str, target: str) -> None:
    assert_refused(place.ask(site, target))


@pytest.mark.parametrize(
    ("user", "password", "target", "status"),
    [
        ("user", PASSWORD, "/secret/page.html", 200),
        ("other", PASSWORD + "2", "/secret/page.html", 200),
        ("other", PASSWORD, "/secret/page.html", 401),
        ("nobody", PASSWORD, "/secret/page.html", 401),
        ("user", PASSWORD, "/link.html", 200),
        ("user", PASSWORD, "/open", 200),
        ("user", PASSWORD, "/about", 200),
        ("user", PASSWORD, "/secret/nothing", 404),
        # That of another path.
        ("other", PASSWORD + "2", "/about", 401),
    ],
)
def test_a_password_opens_its_path(place: Place, user: str, password: str, target: str, status: int) -> None:
    for _ in range(2):
        answer = place.ask("secrets", target, basic(user, password))
        assert answer.status == status
        if status == 200:
            assert answer.body == SECRET
            assert answer.fields["cache-control"] == "private"
        place.ask("secrets", "/secret/page.html", basic("user", PASSWORD))
        assert_refused(place.ask("secrets", "/secret/page.html"))


def test_an_error_page_that_is_protected_is_not_shown(place: Place) -> None:
    answer = place.ask("secrets", "/nothing")
    assert (answer.status, answer.body, answer.fields["x-all"]) == (404, b"404 Not Found\n", "yes")


@pytest.mark.parametrize("target", ["/", "/public", "/public.html", "/secretary", "/public.html.gz", "/other"])
def test_what_is_not_protected_is_served(place: Place, target: str) -> None:
    answer = place.ask("secrets", target)
    assert answer.status == (404 if target == "/secretary" else 200)
    assert SECRET not in answer.body
    assert "x-rule" not in answer.fields
    assert answer.fields["x-all"] == "yes"
    packed = place.ask("secrets", target, "Accept-Encoding: gzip")
    assert SECRET not in (gzip.decompress(packed.body) if "content-encoding" in packed.fields else packed.body)


def without_date(answer: Answer) -> tuple[int, bytes, dict[str, str]]:
    return answer.status, answer.body, {name: value for name, value in answer.fields.items() if name != "date"}


@pytest.mark.parametrize(
    ("site", "targets"),
    [
        ("hidden", ("/private", "/private/", "/private/page.html", "/private/page.html.gz", "/PRIVATE/page.html")),
        ("hidden", ("/private/nothing", "/private/../private/page.html", "/%70rivate/page.html", "/rewritten")),
        ("hidden", ("/old.bak", "/old.bak/", "/old.bak/file.txt", "/deep/x.bak", "/deep/x.bak.gz", "/index.html.br")),
        ("hidden", ("/link.html", "/chain.html", "/link-folder", "/link-folder/", "/link-folder/page.html")),
        ("hidden-clean", ("/about", "/about/", "/about.html", "/about.html.gz", "/private", "/private/", "/nothing")),
        ("hidden-try", ("/private/", "/private/page.html", "/page.html", "/nothing", "/link.html")),
    ],
)
def test_what_is_hidden_counts_as_absent(place: Place, site: str, targets: tuple[str, ...]) -> None:
    with place.conversation() as connection:
        for method, *fields in (("GET",), ("GET", "Accept-Encoding: gzip"), ("GET", "Range: bytes=0-3"), ("HEAD",)):
            absent = without_date(connection.get("/none/such.txt", *fields, method=method, host=site))
            assert absent[0] == 404
            for target in targets:
                assert without_date(connection.get(target, *fields, method=method, host=site)) == absent, target


def test_what_is_not_hidden_is_served_without_what_is(place: Place) -> None:
    for target, body in (("/", b"index.html"), ("/privately.txt", b"privately.txt"), ("/page.bak", b"index.html")):
        assert (place.ask("hidden", target).status, place.ask("hidden", target).body) == (200, body)
    for target, coding in (("/", "br"), ("/other.html", "gzip")):
        answer = place.ask("hidden", target, f"Accept-Encoding: {coding}")
        assert (answer.status, answer.fields.get("content-encoding")) == (200, None)
        assert "vary" not in answer.fields
    for target in ("/deep/list/", "/deep/list/good/list/"):
        listing = json.loads(place.ask("hidden", target, "Accept: application/json").body)
        assert {entry["name"] for entry in listing} == {"shown.txt", "good"}
    place.ask("hidden", "/link.html")
    place.server.wait_for_line(r"404 GET /link\.html: hidden by a pattern of hide")


def test_the_log_says_why_and_no_password(place: Place) -> None:
    place.ask("secrets", "/secret/page.html")
    place.server.wait_for_line(r"401 GET /secret/page\.html: no password")
    place.ask("secrets", "/secret/page.html", basic("user", PASSWORD[:-1]))
    assert not [line for line in place.server.log if PASSWORD in line]
    for target in ("/_headers", "/_headers.gz", "/%5Fheaders", "/_headers/"):
        assert place.ask("secrets", target).status == 404


def test_a_path_is_protected_from_the_moment_that_its_line_is_read(started: Place) -> None:
    """Answers that are remembered do not outlive it."""
    root = started.folder / "later"

    def statuses() -> list[int]:
        found = []
        for protocol in PROTOCOLS:
            with conversation(started.server.port, protocol) as client:
                targets = ("/", "/index.html", "/open.html", "/nothing")
                found += [client.get(target, host="later").status for target in targets]
        return found

    for _ in range(3):
        assert statuses() == [200, 200, 200, 404] * 2
    (root / "_headers").write_text(f"/\n  Basic-Auth: user:{PASSWORD}\n")
    assert eventually(lambda: statuses() == [401, 401, 200, 404] * 2)
    for _ in range(3):
        assert statuses() == [401, 401, 200, 404] * 2
    (root / "_headers").write_text("/\n  X-A: b\n")
    assert eventually(lambda: statuses() == [200, 200, 200, 404] * 2)
    filler = "#" * 99 + "\n"
    (root / "_headers").write_text(filler * 10_600 + f"/\n  Basic-Auth: user:{PASSWORD}\n")
    assert eventually(lambda: statuses() == [403] * 8)
    started.server.wait_for_line("later/_headers: what is left out protects paths: 403 for all of the site")
    (root / "_headers").unlink()
    assert eventually(lambda: statuses() == [200, 200, 200, 404] * 2)


@pytest.mark.parametrize(
    ("target", "status", "then"),
    [
        ("/admin/", 302, "/login"),
        ("/admin/page.html", 302, "/login"),
        ("/admin/page", 302, "/login"),
        ("/gated/page.html", 200, "index.html"),
        ("/gated/page", 200, "index.html"),
        ("/gone/page.html", 200, "index.html"),
        ("/personal", 200, "open"),
        ("/de", 200, "index.html"),
        ("/us", 200, "index.html"),
        ("/api/x", 200, "index.html"),
        ("/login", 200, "login.html"),
    ],
)
def test_a_rule_with_a_condition_is_left_out_whole(place: Place, target: str, status: int, then: str) -> None:
    """Clients without the role get what the next rule has for them, and no file that the rule kept from them."""
    answer = place.ask("roles", target)
    assert SECRET not in answer.body
    found = answer.fields["location"] if status == 302 else answer.body.decode()
    assert (answer.status, found) == (status, then)


@pytest.mark.parametrize(
    "target",
    ["/gated", "/gated/", "/gated/page", "/gated/page.html", "/GATED/page.html", "/gone/page", "/gone/page.html"],
)
def test_without_another_rule_a_role_means_403(place: Place, target: str) -> None:
    assert place.ask("roles-only", target).status == 403
    assert place.ask("roles-only", "/login").body == b"login.html"
    place.server.wait_for_line(r"roles-only/_redirects:1: /gated/\* 200! Role=member: .* 403 for files of /gated/\*")


# --- caches ----------------------------------------------------------------------------------------------------------

FOREVER = "public, max-age=31536000, immutable"
PAGE = "Accept: text/html"


@pytest.mark.parametrize(
    ("target", "status", "control", "more"),
    [
        ("/assets/app.js", 200, FOREVER, {"cdn-cache-control": "max-age=31536000", "x-assets": "yes"}),
        ("/assets/sub/", 200, FOREVER, {"cdn-cache-control": "max-age=31536000", "x-assets": "yes"}),
        # The fallback, for what is not there.
        ("/assets/gone.js", 200, None, {"x-assets": "yes"}),
        ("/assets/gone/", 200, None, {"x-assets": "yes"}),
        ("/assets/lines/gone.js", 200, None, {"x-assets": "yes"}),
        ("/assets/rewritten.js", 200, None, {"x-assets": "yes"}),
        # Redirects, and an error.
        ("/assets/old.js", 302, None, {"x-assets": "yes", "location": "/assets/new.js"}),
        ("/assets/moved", 301, None, {"x-assets": "yes", "location": "/elsewhere"}),
        ("/assets/sub", 301, None, {"x-assets": "yes", "location": "/assets/sub/"}),
        ("/assets/error/x", 404, None, {"x-assets": "yes"}),
        # The file counts, under whatever path.
        ("/renamed.js", 200, FOREVER, {"cdn-cache-control": "max-age=31536000", "x-assets": None}),
        # No cache keeps private responses.
        ("/account/", 200, "no-store", {}),
        ("/account/gone", 200, "no-store", {}),
        ("/account", 301, None, {"location": "/account/"}),
    ],
)
def test_a_cache_rule_is_for_the_file_that_answers(
    place: Place, target: str, status: int, control: str | None, more: dict[str, str | None]
) -> None:
    # Remembered answers have the same fields.
    with place.conversation() as client:
        answers = [client.get(target, PAGE, host="spa") for _ in range(4)]
    answers.append(place.ask("spa", target, PAGE, method="HEAD"))
    if status == 200:
        answers.append(place.ask("spa", target, PAGE, "Range: bytes=0-1"))
        answers.append(place.ask("spa", target, PAGE, f"If-None-Match: {answers[0].fields['etag']}"))
    assert [answer.status for answer in answers] == [*[status] * 5, *([206, 304] if status == 200 else [])]
    for answer in answers:
        assert answer.fields.get("cache-control") == control
        assert {name: answer.fields.get(name) for name in more} == more
        assert ("cdn-cache-control" in answer.fields) is (control == FOREVER)


def test_a_fixed_entry_of_try_files_is_a_fallback_too(place: Place) -> None:
    answer = place.ask("spa-try", "/assets/app.js")
    assert (answer.fields["cache-control"], answer.fields["content-type"]) == ("max-age=31536000", "text/x-own")
    answer = place.ask("spa-try", "/assets/gone.js")
    assert (answer.body, answer.fields["content-type"]) == (b"index.html", "text/html; charset=utf-8")
    assert "cache-control" not in answer.fields


# --- folders that stand for a file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "target", "status", "body"),
    [
        ("folders", "/nothing", 200, "app/index.html"),
        ("folders", "/deep/nothing", 200, "app/index.html"),
        ("folders", "/app/nothing", 200, "app/index.html"),
        ("folders", "/to-folder", 200, "app/index.html"),
        ("folders", "/to-page", 200, "about.html"),
        # As for a request: about means about.html even where there is such a folder.
        ("folders", "/to-both", 200, "both.html"),
        ("folders", "/to-slash", 200, "both/index.html"),
        ("folders", "/to-error", 404, "errors/index.html"),
        # With the error page /about.
        ("folders", "/to-empty", 403, "about.html"),
        ("folders-errors", "/nothing", 404, "errors/index.html"),
        ("folders-errors", "/lost", 404, "errors/index.html"),
        ("folders-try", "/nothing", 200, "app/index.html"),
        ("folders-try", "/about", 200, "about.html"),
        ("folders-try", "/both", 200, "both.html"),
        ("folders-try", "/x", 200, "alias/x/index.html"),
        ("no-clean", "/nothing", 404, "404 Not Found\n"),
        ("no-clean", "/to-page", 404, "404 Not Found\n"),
    ],
)
def test_a_folder_stands_for_its_index_file(place: Place, site: str, target: str, status: int, body: str) -> None:
    with place.conversation() as client:
        answers = [client.get(target, host=site) for _ in range(3)]
    assert [(answer.status, answer.body.decode()) for answer in answers] == [(status, body)] * 3
    if status == 200:
        assert place.ask(site, target, "Range: bytes=1-2").body == body[1:3].encode()


def test_an_error_page_that_is_a_folder_without_index_file_is_told(place: Place) -> None:
    answer = place.ask("folders-errors", "/about", 'If-Match: "x"')
    assert (answer.status, answer.body) == (412, b"412 Precondition Failed\n")
    place.server.wait_for_line("error page /files for 412 not found")


def test_a_folder_that_was_asked_for_keeps_its_redirect(place: Place) -> None:
    for site in ("folders", "folders-try", "no-clean"):
        answer = place.ask(site, "/app?x")
        assert (answer.status, answer.fields["location"]) == (301, "/app/?x")


def test_a_listing_under_another_path_has_links_that_lead_on(place: Place) -> None:
    answer = place.ask("folders-errors", "/browse/sub?x")
    assert (answer.status, answer.fields["location"]) == (301, "/browse/sub/?x")
    answer = place.ask("folders-errors", "/browse/sub/", "Accept: application/json")
    assert b'"./a.txt"' in answer.body
    assert place.ask("folders-errors", "/browse/sub/a.txt").body == b"files/sub/a.txt"


def test_a_new_clean_url_takes_the_place_of_a_remembered_folder(started: Place) -> None:
    with conversation(started.server.port, HTTP_1) as one, conversation(started.server.port, HTTP_2) as other:

        def bodies() -> list[bytes]:
            return [client.get("/app/other", host="folders").body for client in (one, other)]

        assert [bodies(), bodies()] == [[b"app/index.html"] * 2] * 2
        write(started.folder / "folders/app.html", "app.html")
        assert eventually(lambda: bodies() == [b"app.html"] * 2)
        (started.folder / "folders/app.html").unlink()
        assert eventually(lambda: bodies() == [b"app/index.html"] * 2)
