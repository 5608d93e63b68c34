"""Signed links over the wire, over both protocols: who gets in, until when, and how others sign."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlsd.cli import main
from ktlsd.http.signed_links import sign
from ktlsd.http.validators import parse_http_date
from tests.files import write_all
from tests.protocols import HTTP_1, PROTOCOLS, conversation, plain_conversation
from tests.serving import Running, eventually, serving

DOCUMENT = Path(__file__).parents[2] / "docs/access.md"
CONFIGURATION = """
root = "www"
backend_listen = "unix:socket"
trusted_proxies = "unix"
access_log = "access.log"
access_log_format = "json"
clean_urls = true

[[signed]]
path = "/files/**"
keys = "keys"

[[cache]]
path = "*.mp4"
control = "public, max-age=600"
"""
SECRET = b"0123456789abcdef0123456789abcdef"
FILES = {
    "shown.txt": "shown",
    "files/a.mp4": "film",
    "files/b c.txt": "text",
    "files/100% Größe.txt": "big",
    "files/deep/x.html": "page",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    write_all(folder / "www", FILES)
    (folder / "www" / "link.mp4").symlink_to("files/a.mp4")
    (folder / "keys").write_bytes(b"k1:" + SECRET + b"\n")
    (folder / "ktlsd.toml").write_text(CONFIGURATION)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with serving(None, "--config", str(folder / "ktlsd.toml"), state=folder / "state") as running:
        yield running


def link(path: str, *, seconds: float = 3600, more: str = "", prefix: str | None = None, secret: bytes = SECRET) -> str:
    query = f"{more}expires={int(time.time() + seconds)}&key=k1"
    if prefix is not None:
        query += f"&prefix={prefix}"
    signature = sign(secret, (prefix or path).encode(), query.encode())
    return f"{path.replace(' ', '%20')}?{query}&signature={signature}"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_gets_in(server: Running, protocol: str) -> None:
    film = link("/files/a.mp4")
    with conversation(server.port, protocol) as client:
        for _ in range(2):
            # The second is remembered, for this link only.
            answer = client.get(film)
            assert (answer.status, answer.body) == (200, b"film")
            assert answer.fields["cache-control"] == "private"
            expires = parse_http_date(answer.fields["expires"])
            assert expires is not None
            assert 500 < expires - time.time() <= 600
            assert client.get(film, "Range: bytes=1-2").body == b"il"
            assert client.get(film, method="HEAD").status == 200
            assert client.get("/files/b%20c.txt" + link("/files/b c.txt")[16:]).body == b"text"
            assert client.get(link("/files/b c.txt")).fields["cache-control"] == "private, no-cache"
            for target, status in (
                ("/files/a.mp4", 403),
                (film[:-1] + ("0" if film[-1] != "0" else "1"), 403),
                (film.replace("a.mp4", "A.mp4"), 403),
                (film.replace("expires=1", "expires=2"), 403),
                (link("/files/b c.txt").replace("b%20c.txt", "a.mp4"), 403),
                ("/link.mp4" + film[12:], 403),
                ("/link.mp4", 403),
                ("/files/absent", 403),
                (link("/link.mp4"), 200),
                (link("/files/absent"), 404),
                (link("/files/deep/x", prefix="/files/"), 200),
                (link("/files/deep/x", prefix="/files/other/"), 403),
                (link("/files/a.mp4", seconds=-1), 410),
                (link("/files/a.mp4", more=f"starts={int(time.time()) + 60}&"), 403),
                ("/shown.txt", 200),
            ):
                refused = client.get(target)
                assert refused.status == status, target
                if status in (403, 410):
                    assert refused.fields["cache-control"] == "no-store"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_link_ends_and_is_for_a_client(server: Running, folder: Path, protocol: str) -> None:
    short, bound = link("/files/a.mp4", seconds=2), link("/files/a.mp4", more="client=192.0.2.0/24&")
    with plain_conversation(str(folder / "socket"), protocol) as client:
        first = client.get(short)
        assert first.status == 200
        expires, now = parse_http_date(first.fields["expires"]), time.time()
        assert expires is not None
        assert expires <= now + 2
        for _ in range(2):
            assert client.get(bound, "X-Forwarded-For: 192.0.2.7").status == 200
            assert client.get(bound, "X-Forwarded-For: 198.51.100.7").status == 403
        assert eventually(lambda: client.get(short).status == 410)
        assert time.time() >= expires


def test_logs_have_no_whole_signature(server: Running, folder: Path) -> None:
    wrong = link("/files/logged", secret=b"x" * 32)
    with conversation(server.port, HTTP_1) as client:
        client.get(wrong, "Referer: https://localhost" + wrong)
    told = server.wait_for_line("403 GET /files/logged.*a wrong signature")
    assert wrong[-64:] not in told
    assert f"signature={wrong[-64:-56]}..." in told

    def is_written() -> bool:
        lines = [json.loads(line) for line in (folder / "access.log").read_text().splitlines()]
        return any(
            "logged" in line["target"] and "..." in line["target"] and "..." in line["referer"] for line in lines
        )

    assert eventually(is_written)
    assert wrong[-64:] not in (folder / "access.log").read_text()


def test_how_others_sign(
    server: Running, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DOCUMENT.read_text()
    script = re.search(r"```sh\n(path=.*?)```", text, re.DOTALL)
    assert script
    shell = script[1].replace("/etc/ktlsd/keys", str(folder / "keys")).replace("/files/report.pdf", "/files/a.mp4")
    python = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert python
    code = python[1].replace("/etc/ktlsd/keys", str(folder / "keys")).replace("/files/report.pdf", "/files/b c.txt")
    links = [
        subprocess.run(["sh", "-euc", shell], capture_output=True, text=True, check=True, timeout=60).stdout,
        subprocess.run(["python3", "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout,
    ]
    keys = "--keys", str(folder / "keys")
    for arguments in (
        ["--expires", "1h", "https://example.org/files/b%20c.txt?download=a?b"],
        ["--expires", str(int(time.time()) + 60), "--client", "127.0.0.1", "/files/a.mp4"],
        ["--expires", "1h", "--starts", "0s", "--folder", "/files/"],
        ["--expires", "1h30m", "https://example.org/files/b c.txt?name=große Datei"],
        ["--expires", "1h", "/files/100% Größe.txt"],
        ["--expires", "1h", "/files//deep/./../b%20c.txt"],
    ):
        assert main(["sign-url", *keys, *arguments]) == 0
        links.append(capfd.readouterr().out)
        assert re.fullmatch(r"[!-~]+\n", links[-1])
    with conversation(server.port, HTTP_1) as client:
        for url in links:
            target = url.strip().removeprefix("https://example.org").replace("/?", "/deep/x.html?")
            assert client.get(target).status == 200, target


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--expires", "soon", "/a"], "not a time"),
        (["--expires", "1h", "--folder", "/a"], "ends in a slash"),
        (["--expires", "999999999y", "/a"], "not a time"),
        (["--expires", "1h", "a"], "not a URL with a path"),
        (["--expires", "1h", "/a#b"], "a number sign in a path is written %23"),
        (["--expires", "1h", "/a?expires=1"], "expires twice in a signed link: leave parameters"),
        (["--expires", "1h", "/a?b&signature=0"], "a signature of an unknown key: leave parameters"),
        (["--expires", "1h", "/a%2fb"], "slash"),
        (["--expires", "1h", "--client", "me", "/a"], "--client: 'me'"),
    ],
)
def test_what_cannot_be_signed(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(["sign-url", "--keys", str(folder / "keys"), *arguments]) == 2
    told = capfd.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert reason in told.err


def test_keys_rotate(server: Running, folder: Path) -> None:
    # The last test: keys are others afterwards.
    new = b"fedcba9876543210" * 2
    with conversation(server.port, HTTP_1) as client:
        (folder / "keys").write_bytes(b"k2:" + new + b"\nk1:" + SECRET + b"\n")
        query = f"expires={int(time.time()) + 60}&key=k2"
        target = f"/files/a.mp4?{query}&signature={sign(new, b'/files/a.mp4', query.encode())}"
        old = link("/files/a.mp4")
        assert eventually(lambda: client.get(target).status == 200)
        assert client.get(old).status == 200
        (folder / "keys").write_bytes(b"k2:" + new + b"\n")
        assert eventually(lambda: client.get(old).status == 403)
        assert client.get(target).status == 200
