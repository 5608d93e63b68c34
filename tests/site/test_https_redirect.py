"""What a plain-HTTP listener answers, decided with a real folder of challenges."""

from __future__ import annotations

import os
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from ktlsd.http.byte_range import ByteRange
from ktlsd.http.decide import Request
from ktlsd.http.request_target import parse_target
from ktlsd.site.content_types import DEFAULT_TYPE
from ktlsd.site.https_redirect import HttpsRedirect
from ktlsd.site.site import Answer
from tests.files import nothing_stays_open

TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
KEY = b"evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
WELL_KNOWN = "/.well-known/acme-challenge/"


@pytest.fixture
def challenges(tmp_path: Path) -> Path:
    folder = tmp_path / "challenges"
    folder.mkdir()
    (folder / TOKEN).write_bytes(KEY)
    (folder / "empty").write_bytes(b"")
    (folder / "folder").mkdir()
    (folder / "folder/index.html").write_text("index")
    (folder / "folder" / TOKEN).write_bytes(KEY)
    (folder / "index.html").write_text("index")
    (folder / ".hidden").write_text("hidden")
    (folder / "a.txt").write_text("no token")
    (tmp_path / "outside").write_text("outside")
    (folder / "outside").symlink_to("../outside")
    (folder / "inside").symlink_to(TOKEN)
    os.mkfifo(folder / "fifo")
    return folder


@pytest.fixture
def redirect(challenges: Path) -> Iterator[HttpsRedirect]:
    made = HttpsRedirect(challenges)
    yield made
    made.close()


@pytest.fixture
def without() -> Iterator[HttpsRedirect]:
    """One that no folder of challenges was given to."""
    made = HttpsRedirect(None)
    yield made
    made.close()


async def ask(
    redirect: HttpsRedirect, target: str, host: str | None = "example.org", method: str = "GET", **fields: str
) -> Answer:
    return await redirect.answer(Request(method, fields), parse_target(target.encode("latin-1")), host)


def location(answer: Answer) -> str | None:
    return dict(answer.response.fields).get("Location")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("target", "host", "port", "expected"),
    [
        ("/", "example.org", 443, "https://example.org/"),
        ("/a", "example.org", 443, "https://example.org/a"),
        ("/a/", "example.org", 443, "https://example.org/a/"),
        ("/a?b=c&d", "example.org", 443, "https://example.org/a?b=c&d"),
        ("/?b", "example.org", 443, "https://example.org/?b"),
        ("/a/?", "example.org", 443, "https://example.org/a/?"),
        ("/", "example.org", 8443, "https://example.org:8443/"),
        ("/a?b", "127.0.0.1", 8443, "https://127.0.0.1:8443/a?b"),
        ("/", "[::1]", 443, "https://[::1]/"),
        ("/", "[::1]", 8443, "https://[::1]:8443/"),
        # What has no effect in a target goes, and nothing in it leads to another host.
        ("//evil.example/a", "example.org", 443, "https://example.org/evil.example/a"),
        ("/a/../b/./c", "example.org", 443, "https://example.org/b/c"),
        ("/%0d%0aSet-Cookie:%20a", "example.org", 443, "https://example.org/%0D%0ASet-Cookie:%20a"),
        ("/\\\\evil.example", "example.org", 443, "https://example.org/%5C%5Cevil.example"),
        ("/@evil.example", "example.org", 443, "https://example.org/@evil.example"),
        ("/%c3%a9", "example.org", 443, "https://example.org/%C3%A9"),
        # Only names right below the folder of challenges are answered.
        (WELL_KNOWN, "example.org", 443, f"https://example.org{WELL_KNOWN}"),
        (WELL_KNOWN[:-1], "example.org", 443, f"https://example.org{WELL_KNOWN[:-1]}"),
        (f"{WELL_KNOWN}{TOKEN}/", "example.org", 443, f"https://example.org{WELL_KNOWN}{TOKEN}/"),
        (f"{WELL_KNOWN}folder/{TOKEN}", "example.org", 443, f"https://example.org{WELL_KNOWN}folder/{TOKEN}"),
        (f"/a{WELL_KNOWN}{TOKEN}", "example.org", 443, f"https://example.org/a{WELL_KNOWN}{TOKEN}"),
        (f"/{TOKEN}", "example.org", 443, f"https://example.org/{TOKEN}"),
        ("/.well-known/security.txt", "example.org", 443, "https://example.org/.well-known/security.txt"),
    ],
)
async def test_the_same_address_under_https(
    redirect: HttpsRedirect, method: str, target: str, host: str, port: int, expected: str
) -> None:
    redirect.port = port
    answer = await ask(redirect, target, host, method)
    assert (answer.response.status, location(answer), answer.opened) == (301, expected, None)
    assert answer.response.body == (b"" if method == "HEAD" else b"301 Moved Permanently\n")
    assert not answer.response.close


async def test_the_port_of_https_is_443_unless_told(without: HttpsRedirect) -> None:
    assert location(await ask(without, "/")) == "https://example.org/"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_without_a_host_there_is_nowhere_to_go(redirect: HttpsRedirect, method: str) -> None:
    answer = await ask(redirect, "/a", None, method)
    assert (answer.response.status, location(answer)) == (400, None)
    assert "Host" in answer.response.reason


async def test_without_a_folder_challenges_are_redirected_too(without: HttpsRedirect) -> None:
    answer = await ask(without, WELL_KNOWN + TOKEN)
    assert (answer.response.status, location(answer)) == (301, f"https://example.org{WELL_KNOWN}{TOKEN}")


@pytest.mark.parametrize("host", ["example.org", "unknown.example", None])
@pytest.mark.parametrize(
    ("target", "content"),
    [
        (WELL_KNOWN + TOKEN, KEY),
        (WELL_KNOWN + "empty", b""),
        (WELL_KNOWN + "inside", KEY),
        (f"{WELL_KNOWN}{TOKEN}?query", KEY),
        (f"//.well-known/./acme-challenge//{TOKEN}", KEY),
        (f"/.well-known/acme%2Dchallenge/{TOKEN}", KEY),
    ],
)
async def test_a_challenge_is_answered(redirect: HttpsRedirect, host: str | None, target: str, content: bytes) -> None:
    """As application/octet-stream, whose bytes no browser runs (RFC 8555 section 8.3)."""
    answer = await ask(redirect, target, host)
    assert answer.opened is not None
    assert os.pread(answer.opened.descriptor, 1000, 0) == content
    answer.opened.close()
    assert (answer.response.status, answer.response.body) == (200, ByteRange(0, len(content)))
    fields = dict(answer.response.fields)
    assert (fields["Content-Type"], fields["Content-Length"]) == (DEFAULT_TYPE, str(len(content)))


async def test_a_challenge_is_a_file_like_any(redirect: HttpsRedirect) -> None:
    async def status(method: str = "GET", **fields: str) -> int:
        answer = await ask(redirect, WELL_KNOWN + TOKEN, method=method, **fields)
        assert answer.opened is not None
        answer.opened.close()
        return answer.response.status

    assert await status("HEAD") == HTTPStatus.OK
    assert await status(range="bytes=0-3") == HTTPStatus.PARTIAL_CONTENT
    assert await status(**{"if-none-match": "*"}) == HTTPStatus.NOT_MODIFIED


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("absent", 404),
        # What no token is made of (section 8.3) is not looked for.
        ("index.html", 404),
        (".hidden", 404),
        ("a.txt", 404),
        ("%c3%a9", 404),
        ("a%0ab", 404),
        (f"{TOKEN}%0a", 404),
        ("folder", 404),
        ("outside", 404),
        ("fifo", 403),
        ("a" * 300, 404),
    ],
)
async def test_nothing_but_challenges_is_sent(redirect: HttpsRedirect, token: str, status: int) -> None:
    answer = await ask(redirect, WELL_KNOWN + token)
    assert (answer.response.status, answer.opened, location(answer)) == (status, None, None)


@pytest.mark.parametrize("target", ["/", "/a", WELL_KNOWN + TOKEN])
async def test_options_is_answered(redirect: HttpsRedirect, target: str) -> None:
    answer = await ask(redirect, target, method="OPTIONS")
    assert (answer.response.status, answer.opened) == (204, None)
    assert dict(answer.response.fields) == {"Allow": "GET, HEAD, OPTIONS"}


async def test_no_descriptor_stays_open(redirect: HttpsRedirect) -> None:
    with nothing_stays_open():
        for name in (TOKEN, "folder", "fifo", "outside", "absent", "index.html", ""):
            answer = await ask(redirect, WELL_KNOWN + name)
            if answer.opened is not None:
                answer.opened.close()


@pytest.mark.parametrize(("name", "error"), [("absent", FileNotFoundError), ("a.txt", NotADirectoryError)])
def test_a_folder_of_challenges_must_be_one(challenges: Path, name: str, error: type[OSError]) -> None:
    with pytest.raises(error):
        HttpsRedirect(challenges / name)
