"""The same request over both protocols on one server: the same response, log line and count, for generated requests."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import os
import re
import time
from pathlib import Path

from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.protocols import PROTOCOLS, assert_alike, conversation
from tests.serving import Answer, get, serving

LINES = """
root = "www"
listing = true
clean_urls = true
headers_file = true
redirects_file = true
trusted_proxies = "127.0.0.1"
error_pages = { 404 = "/404.html", 412 = "/absent.html" }
access_log = "access.log"
access_log_format = "json"
[hsts]
[cors]
origins = ["https://app.example"]
path = "/sub/**"
[limits]
head_bytes = 16384
[[site]]
names = ["other.example"]
root = "www/sub"
fallback = "/index.html"
"""
LARGE = 300_001
TAG, DATE = "TAG", "DATE"
"""In a field: the validators of the target, as far as it has them."""
TARGETS = (
    *("/", "/index.html", "/index", "/page", "/empty.txt", "/large.bin", "/sub", "/sub/", "/sub/a.txt", "/absent"),
    *(
        "/list/",
        "/list",
        "/moved/x",
        "/rewritten",
        "/_headers",
        "/.hidden",
        "/%2e%2e/x",
        "/%zz",
        "/a%00",
        "//sub//a.txt",
    ),
    *("/large.bin?q=1", "/?", "/%C3%A9", "/" + "x" * 9000, "/sub/a.txt/", "/page.html.gz", "/fifo"),
    *("/list/?sort=size", "/sub/../page", "/index.html?a=b#c"),
)
FIELDS = (
    *("Range: bytes=0-9", "Range: bytes=-5", "Range: bytes=5-,0-1,100000-200000", "Range: bytes=9999999-", "Range: x"),
    *(
        "Range: bytes=0-299999",
        "Range: bytes=0-99,50-149",
        f"If-Range: {TAG}",
        'If-Range: "other"',
        f"If-Range: {DATE}",
    ),
    *(f"If-None-Match: {TAG}", "If-None-Match: *", 'If-None-Match: "other"', f"If-None-Match: W/{TAG}"),
    *("If-Match: *", f"If-Match: {TAG}", 'If-Match: "other"', f"If-Modified-Since: {DATE}", "If-Modified-Since: never"),
    *("If-Modified-Since: Thu, 01 Jan 1970 00:00:01 GMT", f"If-Unmodified-Since: {DATE}"),
    *("If-Unmodified-Since: Thu, 01 Jan 1970 00:00:01 GMT", "Accept-Encoding: gzip", "Accept-Encoding: gzip;q=0"),
    *("Accept-Encoding:", "Accept-Encoding: *", "Accept: application/json", "Accept: text/html", "Accept: image/png"),
    *("Origin: https://app.example", "Origin: https://evil.example", "Access-Control-Request-Method: GET"),
    *("Access-Control-Request-Headers: X-Asked", "Expect: 100-continue", "Expect: more", "Content-Length: 0"),
    *("X-Forwarded-Proto: http", "X-Forwarded-Proto: https", "X-Forwarded-For: 192.0.2.7", "X-Request-ID: one"),
    *(
        "Forwarded: for=192.0.2.9;proto=http",
        "Cookie: a=b",
        "Cookie: c",
        "Referer: https://a.example/\xe9",
        "TE: trailers",
    ),
    *("Content-Type: text/plain", "Priority: u=1, i", "X-Odd: a\tb", "X-Empty:", "Cache-Control: no-cache"),
)
METHODS = st.sampled_from(("GET",) * 6 + ("HEAD", "HEAD", "OPTIONS", "POST", "DELETE", "BREW", "get"))
HOSTS = st.sampled_from(("localhost",) * 4 + ("other.example", "OTHER.example:8443", "127.0.0.1", "[::1]:1", "a."))
BODIES = st.sampled_from((b"",) * 4 + (b"abcde", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", bytes(10_000)))
REQUESTS = st.tuples(METHODS, st.sampled_from(TARGETS), HOSTS, st.lists(st.sampled_from(FIELDS), max_size=4), BODIES)
NUMBERS = itertools.count()
RANDOM = re.compile(rb"[0-9a-f]{32}")
OF_ONE = frozenset(("time", "duration_ms", "port", "via", "protocol"))
"""Of a log line."""


def make_files(root: Path) -> None:
    (root / "sub").mkdir(parents=True)
    (root / "list").mkdir()
    page = b"<h1>page</h1>\n" * 500
    contents = {
        "index.html": b"start",
        "page.html": page,
        "page.html.gz": gzip.compress(page),
        "404.html": b"lost",
        "empty.txt": b"",
        "large.bin": os.urandom(LARGE),
        "sub/a.txt": b"a" * 100,
        "sub/index.html": b"index",
        "list/one.txt": b"1",
        "list/two.txt": b"2",
        ".hidden": b"",
        "_headers": b"/*\n  X-All: yes\n/sub/*\n  Cache-Control: max-age=60\n  ! X-All\n",
        "_redirects": b"/moved/* /to/:splat 302\n/rewritten /sub/a.txt 200\n",
    }
    moment = time.time_ns() - 10**15
    for name, content in contents.items():
        (root / name).write_bytes(content)
        os.utime(root / name, ns=(moment, moment))
    os.mkfifo(root / "fifo")


def without_random_parts(answer: Answer) -> Answer:
    """The boundary of several ranges is random, and so is the request id of an error."""
    if answer.fields.get("content-type", "").startswith("multipart/"):
        answer.fields["content-type"] = answer.fields["content-type"].partition("=")[0]
        answer.body = RANDOM.sub(b"", answer.body)
    elif answer.status >= 400:
        answer.body = RANDOM.sub(b"", answer.body)
    return answer


def test_both_protocols_give_the_same(tmp_path: Path) -> None:
    make_files(tmp_path / "www")
    config = tmp_path / "ktlsd.toml"
    config.write_text(LINES)
    with serving(None, "--config", str(config), state=tmp_path) as server:

        @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(REQUESTS, min_size=1, max_size=6))
        @example([("GET", "/", "localhost", [f"X-{number}: a" for number in range(101)], b"")])
        @example([("HEAD", "/large.bin", "localhost", [f"X-{number}: {'a' * 1000}" for number in range(20)], b"")])
        @example([("OPTIONS", "*", "localhost", [], b"")])
        @example([("GET", "/list/", "localhost", ["Accept: application/json"], b"abc")])
        def compare(requests: list[tuple[str, str, str, list[str], bytes]]) -> None:
            asked = []
            for method, target, host, fields, body in requests:
                # One of HTTP/1.1 may repeat itself (RFC 9110 section 8.6), one of HTTP/2 does not.
                assume(fields.count("Content-Length: 0") + bool(body) <= 1)
                # HTTP/2 needs no body for the response then, and resets the stream if it comes.
                assume(not body or not any(field.startswith("Expect") for field in fields))
                validators = known(target, host)
                lines = [field.replace(TAG, validators[TAG]).replace(DATE, validators[DATE]) for field in fields]
                # The second may get a remembered response. The last field finds it in the log.
                asked += [(target, (*lines, f"User-Agent: {next(NUMBERS)}"), method, host, body)] * 2
            found: list[list[Answer]] = []
            for protocol in PROTOCOLS:
                with conversation(server.port, protocol) as client:
                    found.append([])
                    for target, more, method, host, body in asked:
                        answer = client.get(target, *more, method=method, host=host, body=body)
                        found[-1].append(without_random_parts(answer))
                        if found[-1][-1].fields.get("connection") == "close":
                            break
            assert found[0]
            for one, other in zip(*found, strict=False):
                assert_alike(one, other)

        @functools.cache
        def known(target: str, host: str) -> dict[str, str]:
            fields = get(server.port, target, method="HEAD", host=host).fields
            return {TAG: fields.get("etag", '"none"'), DATE: fields.get("last-modified", "none")}

        compare()
        assert server.stop() == 0
    records = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    of_requests: dict[str, dict[str, list[dict[str, object]]]] = {}
    for record in records:
        if record["user_agent"]:
            of_one = of_requests.setdefault(record["user_agent"], {protocol: [] for protocol in PROTOCOLS})
            if record["request_id"] != "one":
                del record["request_id"]
            if str(record["target"]).startswith("/list/"):
                # The framing of chunks counts.
                del record["bytes"]
            kept = {name: value for name, value in record.items() if name not in OF_ONE}
            of_one[record["protocol"]].append(kept)
    compared = [both for both in of_requests.values() if all(both.values())]
    assert len(compared) > 50
    for one, other in (both.values() for both in compared):
        assert all(record == one[0] for record in (*one, *other))
