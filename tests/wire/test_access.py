"""Access by network over the wire, over both protocols: who gets 403, by which names of a file, and from memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files import write_all
from tests.protocols import PROTOCOLS, plain_conversation
from tests.serving import Running, serving

CONFIGURATION = """
root = "www"
trusted_proxies = "unix"
listing = true
clean_urls = true
try_files = ["{path}", "/shown.txt"]
error_pages = { 403 = "/403.html" }

[[access]]
path = "/intern/**"
allow = ["10.0.0.0/8", "2001:db8::/32"]
deny = ["10.9.0.0/16"]

[[access]]
path = "*.key"
allow = ["10.1.0.0/16"]
"""
FILES = {
    "shown.txt": "shown",
    "intern/plan.html": "plan",
    "intern/index.html": "home",
    "intern/site.key": "key",
    "open/page.txt": "page",
    "open/page.txt.gz": "no gzip, and not of that file",
    "403.html": "forbidden",
}
INSIDE, OUTSIDE, DENIED = "10.1.2.3", "192.0.2.1", "10.9.0.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    write_all(folder / "www", FILES)
    (folder / "www" / "open" / "link.html").symlink_to("../intern/plan.html")
    (folder / "www" / "open" / "page.txt.br").symlink_to("../intern/plan.html")
    (folder / "ktlsd.toml").write_text(CONFIGURATION)
    backend = f"unix:{folder / 'socket'}"
    with serving(
        None, "--config", str(folder / "ktlsd.toml"), state=folder / "state", backend_listen=(backend,)
    ) as running:
        yield running


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("client", "target", "status"),
    [
        (INSIDE, "/intern/plan.html", 200),
        (OUTSIDE, "/intern/plan.html", 403),
        (DENIED, "/intern/plan.html", 403),
        ("2001:db8::1", "/intern/plan.html", 200),
        ("2001:db9::1", "/intern/plan.html", 403),
        # No name of the file leads around it, and none tells whether it is there.
        (OUTSIDE, "/intern/plan", 403),
        (OUTSIDE, "/intern/absent", 403),
        (OUTSIDE, "/intern", 403),
        (OUTSIDE, "/intern/", 403),
        (OUTSIDE, "/Intern/plan.html", 403),
        (OUTSIDE, "/open/../intern/plan.html", 403),
        (OUTSIDE, "/%69ntern/plan.html", 403),
        (OUTSIDE, "/open/link.html", 403),
        (OUTSIDE, "/open/link", 403),
        (INSIDE, "/open/link.html", 200),
        # Every table that matches must allow the client.
        ("10.2.0.1", "/intern/site.key", 403),
        (INSIDE, "/intern/site.key", 200),
        (OUTSIDE, "/open/page.txt", 200),
        (OUTSIDE, "/absent", 200),
        (OUTSIDE, "/open/", 200),
    ],
)
def test_networks_with_access(server: Running, protocol: str, client: str, target: str, status: int) -> None:
    with plain_conversation(server.unix_socket, protocol) as connection:
        for _ in range(3):
            # The second is remembered, and asked for by others in between.
            connection.get(target, f"X-Forwarded-For: {INSIDE}")
            answer = connection.get(target, f"X-Forwarded-For: {client}")
            assert answer.status == status
            if status == 403:
                assert answer.body == b"forbidden"
                assert connection.get(target, f"X-Forwarded-For: {client}", method="HEAD").status == 403


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_links_that_appear_later_lead_to_nothing_guarded(server: Running, folder: Path, protocol: str) -> None:
    top = folder / "www" / f"later-{protocol.replace('/', '')}"
    files = ("file.html", "folder/plan.html", "up/down/plan.html", "absolute/plan.html")
    for name in files:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("open")
    targets = [f"/{top.name}/{name}" for name in files]
    field = f"X-Forwarded-For: {OUTSIDE}"
    with plain_conversation(server.unix_socket, protocol) as connection:
        for target in (*targets, *targets):
            assert connection.get(target, field).body == b"open"
        (top / "file.html").unlink()
        for name in ("folder", "up", "absolute"):
            (top / name).rename(top / f"former-{name}")
        (top / "file.html").symlink_to("../intern/plan.html")
        (top / "folder").symlink_to("../intern")
        (top / "aside").mkdir()
        (top / "aside/down").symlink_to("../../intern")
        (top / "up").symlink_to("aside")
        (top / "absolute").symlink_to(folder / "www/intern")
        for target in (*targets, *targets):
            assert connection.get(target, field).status == 403
            assert connection.get(target, f"X-Forwarded-For: {INSIDE}").body == b"plan"
        assert connection.get(f"/{top.name}/former-folder/plan.html", field).body == b"open"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_sibling_that_is_elsewhere_is_not_sent(server: Running, protocol: str) -> None:
    with plain_conversation(server.unix_socket, protocol) as connection:
        answer = connection.get("/open/page.txt", f"X-Forwarded-For: {OUTSIDE}", "Accept-Encoding: br")
        assert (answer.status, answer.body) == (200, b"page")


def test_the_reason_is_logged(server: Running) -> None:
    with plain_conversation(server.unix_socket, PROTOCOLS[0]) as connection:
        connection.get("/intern/", f"X-Forwarded-For: {OUTSIDE}")
    line = server.wait_for_line(f"{OUTSIDE} .*403.*network")
    assert "/intern/" in line
