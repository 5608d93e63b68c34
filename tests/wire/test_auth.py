"""Passwords over the wire, over both protocols: who gets 401, what caches are told, how the file of users reloads."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlsd.site import password_hashes
from tests.files import write_all
from tests.protocols import HTTP_1, PROTOCOLS, conversation, plain_conversation
from tests.serving import Running, counts, eventually, run_to_end, serving

CONFIGURATION = """
root = "www"
backend_listen = "unix:socket"
trusted_proxies = "unix"
access_log = "access.log"
access_log_format = "json"
clean_urls = true
error_pages = { 401 = "/401.html" }

[limits]
exempt_clients = []
client_wrong_passwords_per_minute = 5

[[auth]]
path = "/intern/**"
users = "users"
realm = "Staff only"

[[access]]
path = "/intern/near/**"
allow = ["192.0.2.0/24"]

[[cache]]
path = "**"
control = "public, max-age=3600"

[cors]
origins = ["https://app.example"]
headers = ["Authorization"]
"""
FILES = {"shown.txt": "shown", "intern/plan.html": "plan", "intern/near/x.txt": "near", "401.html": "Who are you?"}


def line(name: str, password: bytes) -> str:
    return f"{name}:{password_hashes._made(password, '$2y$04$abcdefghijklmnopqrstu.')}\n"


def basic(user: str, password: str) -> str:
    return "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auth")
    write_all(folder / "www", FILES)
    (folder / "www" / "link.html").symlink_to("intern/plan.html")
    (folder / "users").write_text(line("ann", b"right") + line("o m", b"other"))
    (folder / "ktlsd.toml").write_text(CONFIGURATION)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with serving(
        None, "--config", str(folder / "ktlsd.toml"), "--metrics-listen", "127.0.0.1:0", state=folder / "state"
    ) as running:
        yield running


ANN = basic("ann", "right")
CLIENT = "X-Forwarded-For: 192.0.2."
HTTPS = "X-Forwarded-Proto: https"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_gets_in(server: Running, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        for target in ("/intern/plan.html", "/intern/plan", "/link", "/link.html", "/intern/absent", "/INTERN/plan"):
            refused = client.get(target)
            assert (refused.status, refused.body) == (401, b"Who are you?"), target
            assert refused.fields["www-authenticate"] == 'Basic realm="Staff only", charset="UTF-8"'
            assert refused.fields["cache-control"] == "no-store"
            assert client.get(target, method="HEAD").status == 401
        for _ in range(2):
            # The second is remembered, and is for nobody else.
            answer = client.get("/intern/plan.html", ANN)
            assert (answer.status, answer.body) == (200, b"plan")
            assert answer.fields["cache-control"] == "private, max-age=3600"
            assert "Authorization" in answer.fields["vary"]
            assert client.get("/intern/plan.html", ANN, "Range: bytes=1-2").body == b"la"
            tag = answer.fields["etag"]
            assert client.get("/intern/plan.html", ANN, f"If-None-Match: {tag}").fields["vary"] == answer.fields["vary"]
            assert client.get("/intern/plan.html", f"If-None-Match: {tag}").status == 401
            assert client.get("/intern/plan.html", "Authorization: Bearer x").status == 401
            assert client.get("/link", ANN).body == b"plan"
            assert client.get("/intern/absent", ANN).status == 404
            # From 127.0.0.1.
            assert client.get("/intern/near/x.txt", ANN).status == 403
            assert client.get("/shown.txt").fields["cache-control"] == "public, max-age=3600"
            assert client.get("/shown.txt", ANN).body == b"shown"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_strange_fields_are_no_password(server: Running, protocol: str) -> None:
    token = ANN.rpartition(" ")[2]
    with conversation(server.port, protocol) as client:
        for fields in (
            ("Authorization:",),
            ("Authorization: Basic",),
            (f"Authorization: {token}",),
            (f"Authorization: Basic {token}=",),
            (f"Authorization: Basic {token},",),
            (ANN, ANN),
            (ANN, "Authorization: Bearer x"),
            (f"Authorization: Digest {token}",),
            ("Authorization: Basic " + "A" * 4000,),
            (basic("ann\0", "right"),),
            (f"Proxy-Authorization: Basic {token}",),
        ):
            assert client.get("/intern/plan.html", *fields).status == 401, fields
        assert client.get("/intern/plan.html", ANN).status == 200


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_http_asks_for_no_password(server: Running, folder: Path, protocol: str) -> None:
    with plain_conversation(str(folder / "socket"), protocol) as client:
        for fields in ((), (ANN,)):
            refused = client.get("/intern/plan.html", *fields, CLIENT + "1")
            assert refused.status == 403
            assert "www-authenticate" not in refused.fields
        assert client.get("/intern/plan.html", ANN, CLIENT + "1", HTTPS).status == 200
        assert client.get("/intern/plan.html", ANN, CLIENT + "1").status == 403


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_preflights_need_no_password(server: Running, protocol: str) -> None:
    origin = "Origin: https://app.example"
    with conversation(server.port, protocol) as client:
        fields = origin, "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization"
        answer = client.get("/intern/plan.html", *fields, method="OPTIONS")
        assert (answer.status, answer.fields["access-control-allow-headers"]) == (204, "Authorization")
        assert client.get("/intern/plan.html", method="OPTIONS").status == 401
        assert client.get("/intern/plan.html", origin).fields["access-control-allow-origin"] == "https://app.example"


@pytest.mark.parametrize(("protocol", "network"), list(zip(PROTOCOLS, ("2", "3"), strict=True)))
def test_wrong_passwords_are_limited(server: Running, folder: Path, protocol: str, network: str) -> None:
    before = counts(server, "ktlsd_access_denied_total")
    with plain_conversation(str(folder / "socket"), protocol) as client:
        for number in range(5):
            wrong = basic("ann" if number % 2 else "eve", f"x{number}")
            assert client.get("/intern/plan.html", wrong, CLIENT + network, HTTPS).status == 401
        refused = client.get("/intern/plan.html", basic("ann", "y"), CLIENT + network, HTTPS)
        assert (refused.status, 5 < int(refused.fields["retry-after"]) <= 12) == (429, True)
        # What is known to be right passes, and so do others.
        assert client.get("/intern/plan.html", ANN, CLIENT + network, HTTPS).status == 200
        assert client.get("/intern/plan.html", basic("ann", "y"), CLIENT + "100", HTTPS).status == 401
    after = counts(server, "ktlsd_access_denied_total")
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert (grown["wrong_password"], grown["too_many_passwords"]) == (6, 1)


def test_logs(server: Running, folder: Path) -> None:
    with plain_conversation(str(folder / "socket"), HTTP_1) as client:
        for user, password in (("o m", "other"), ("o m", "other"), ("m\xf6", "pass-word-x"), ("m\xf6", "pass-word-y")):
            client.get("/intern/plan?log", basic(user, password), CLIENT + "9", HTTPS)
    lines: list[dict[str, object]] = []

    def are_written() -> bool:
        texts = (folder / "access.log").read_text().splitlines()
        lines[:] = [told for text in texts if (told := json.loads(text))["target"] == "/intern/plan?log"]
        return len(lines) == 4

    assert eventually(are_written)
    assert [(told["user"], told["status"]) for told in lines] == [("o m", 200)] * 2 + [("m\xc3\xb6", 401)] * 2
    assert sum("wrong password or unknown user" in text for text in server.log) == 1
    assert not any("pass-word" in text for text in (*server.log, *(folder / "access.log").read_text().splitlines()))


def test_a_file_that_cannot_be_used_ends_the_start(folder: Path) -> None:
    (folder / "plain").write_text("# users\nann:x\n")
    config = folder / "bad.toml"
    config.write_text('root = "www"\n[[auth]]\npath = "**"\nusers = "plain"\n')
    ended = run_to_end("--config", str(config), state=folder / "state")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    said = f"ktlsd: {config}:4: auth[0]: users {folder / 'plain'}: line 2: not a hash"
    assert ended.stderr.startswith(said)


def test_the_file_reloads(server: Running, folder: Path) -> None:
    # The last test: users are others afterwards.
    users = folder / "users"
    with conversation(server.port, HTTP_1) as client:
        assert client.get("/intern/plan.html", ANN).status == 200
        since = len(server.log)
        users.write_text(line("new", b"pass"))

        def told(word: str) -> bool:
            return any(word in text for text in server.log[since:])

        # Any request for a protected path looks at the file.
        assert eventually(lambda: client.get("/intern/plan").status == 401 and told("read again"))
        assert client.get("/intern/plan.html", ANN).status == 401
        new = basic("new", "pass")
        users.write_text("new:pass\n")
        assert eventually(lambda: client.get("/intern/plan", new).status == 200 and told("line 1: not a hash"))
    assert sum(str(users) in text for text in server.log[since:]) == 2
