"""Built-in error pages over both protocols: forms, request ids, and what no site answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.protocols import PROTOCOLS, conversation
from tests.serving import Running, eventually, serving

PAGE = "Accept: text/html,*/*;q=0.8"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("errors")
    (base / "root/folder").mkdir(parents=True)
    options = ("--access-log", str(base / "access.log"), "--access-log-format", "json")
    with serving(base / "root", *options, state=base) as running:
        yield running


def request_ids(server: Running, mark: str) -> list[str]:
    """Those of requests with this user agent."""
    lines = (server.state / "access.log").read_text().splitlines()
    return [record["request_id"] for record in map(json.loads, lines) if record["user_agent"] == mark]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_forms_and_request_ids(server: Running, protocol: str) -> None:
    with conversation(server.port, protocol) as client:
        text = client.get("/folder/")
        assert (text.body, text.fields["vary"]) == (b"403 Forbidden\n", "Accept")
        mark = f"shows its id over {protocol}"
        page = client.get("/folder/", PAGE, f"User-Agent: {mark}")
        assert (page.status, page.fields["content-type"]) == (403, "text/html; charset=utf-8")
        assert page.fields["x-content-type-options"] == "nosniff"
        found = re.search(rb"Request ([0-9a-f]{32})<", page.body)
        assert found
        assert eventually(lambda: request_ids(server, mark) == [found[1].decode()])
        head = client.get("/folder/", PAGE, method="HEAD")
        assert (head.body, head.fields["content-length"]) == (b"", page.fields["content-length"])
        assert json.loads(client.get("/folder/", "Accept: application/json").body)["title"] == "Forbidden"
        # These are one remembered response, and hidden names look like absent ones: no id.
        missing = [client.get(path, PAGE) for path in ("/wp-login.php", "/.env", "/a/b", "/wp-login.php", "/c")]
        assert {(answer.status, answer.body) for answer in missing} == {(404, missing[0].body)}
        assert b"<h1><span>404</span> Not Found</h1>" in missing[0].body
        assert b"Request" not in missing[0].body


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_that_no_site_answers(server: Running, protocol: str) -> None:
    many = [f"X-{number}: a" for number in range(101)]
    for target, fields, status in (
        ("/%2e%2e/x", [], 400),
        ("/" + "x" * 9000, [], 414),
        ("/", many, 431),
        ("/", [f"Cookie: {'x' * 40_000}"], 431),
        ("/", ["Expect: more"], 417),
    ):
        with conversation(server.port, protocol) as client:
            answer = client.get(target, PAGE, *fields)
            assert answer.status == status
            assert f"<h1><span>{status}</span>".encode() in answer.body
            assert answer.fields["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
