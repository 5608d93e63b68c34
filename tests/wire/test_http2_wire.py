"""HTTP/2 over TLS: streams side by side, windows, bodies of requests, ends of streams and connections.

Content and sites are the same as over HTTP/1.1: test_same_responses.py, and all tests with the parameter `protocol`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http2_client import Stream, h2_context, http2
from tests.mounting import evict, overlay
from tests.serving import WAIT_SECONDS, Running, connect, counts, eventually, serving

BIG = 3_000_001
INTERNAL_ERROR, CANCEL = 2, 8
LARGEST = 2**31 - 1


def config(folder: Path, root: Path, *lines: str) -> Path:
    path = folder / "ktlsd.toml"
    path.write_text("\n".join((f"root = {json.dumps(str(root))}", *lines)))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("h2") / "www"
    (folder / "many").mkdir(parents=True)
    (folder / "index.html").write_text("<p>Start</p>")
    (folder / "empty").write_bytes(b"")
    (folder / "small.txt").write_bytes(b"small\n" * 100)
    (folder / "middle").write_bytes(os.urandom(40_000))
    (folder / "big").write_bytes(os.urandom(BIG))
    (folder / "page.css").write_text("p {}" * 500)
    (folder / "page.css.gz").write_bytes(b"not really gzip")
    for number in range(300):
        (folder / f"many/{number}.txt").write_text(f"file {number}\n")
    before = time.time() - 3600
    for path in folder.rglob("*"):
        os.utime(path, (before, before))
    return folder


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("state")
    lines = ("listing = true", 'access_log = "stderr"', 'access_log_format = "json"', 'metrics_listen = "127.0.0.1:0"')
    path = config(folder, root, *lines, "[error_pages]", '404 = "/small.txt"')
    with serving(None, "--config", str(path), state=folder) as running:
        yield running


@pytest.mark.parametrize("end", [True, False])
def test_connect_is_refused_at_once(server: Running, end: bool) -> None:
    """RFC 9113 section 8.5: no body is waited for, since a tunnel has none."""
    with http2(server.port) as client:
        client.receive()
        stream_id = client.http.get_next_available_stream_id()
        client.http.send_headers(stream_id, [(":method", "CONNECT"), (":authority", "a.example:443")], end_stream=end)
        client.streams[stream_id] = Stream()
        client.flush()
        began = time.monotonic()
        client.wait_for(stream_id)
        assert client.streams[stream_id].status == 405
        assert client.streams[stream_id].fields["allow"] == "GET, HEAD, OPTIONS"
        # Far from head_seconds.
        assert time.monotonic() - began < 10
        assert client.get("/small.txt").status == 200


def test_many_streams_side_by_side(server: Running, root: Path) -> None:
    with http2(server.port) as client:
        client.receive()
        asked = {client.ask(f"/many/{number}.txt"): root / f"many/{number}.txt" for number in range(100)}
        big = client.ask("/big")
        client.wait_for(big, *asked)
        for stream_id, path in asked.items():
            assert client.streams[stream_id].answer().body == path.read_bytes()
        assert client.streams[big].answer().body == (root / "big").read_bytes()


def test_files_of_any_size_side_by_side(tmp_path: Path) -> None:
    """Small files go with their heads, larger ones in turns; decided, remembered, and several of them at once. No log:
    then most of them are sent the shortest way."""
    files = tmp_path / "www"
    files.mkdir()
    before = time.time() - 3600
    for size in (1, 15_360, 15_361, 16_384, 16_385, 32_768, 65_535, 65_536, 65_537, 131_072, 300_000):
        (files / str(size)).write_bytes(os.urandom(size))
        os.utime(files / str(size), (before, before))
    names = [path.name for path in files.iterdir()]
    with serving(None, "--config", str(config(tmp_path, files)), state=tmp_path) as server:
        for frame_bytes in (None, 20_000, 1 << 20):
            with http2(server.port, window=LARGEST, frame_bytes=frame_bytes) as client:
                for _ in range(2):
                    asked = {client.ask(f"/{name}"): files / name for name in [*names, *reversed(names)]}
                    client.wait_for(*asked)
                    for stream_id, path in asked.items():
                        assert client.streams[stream_id].answer().body == path.read_bytes()


@pytest.mark.parametrize(("window", "frame_bytes"), [(None, 1 << 20), (1, None), (4000, None), (100_000, None)])
def test_windows_and_frames(server: Running, root: Path, window: int | None, frame_bytes: int | None) -> None:
    """A body comes through whatever windows a client has, and no more of it than they allow."""
    expected = (root / "middle").read_bytes()
    with http2(server.port, window=window, frame_bytes=frame_bytes) as client:
        stream_id = client.ask("/middle")
        stream = client.streams[stream_id]
        allowed = window
        while allowed is not None and allowed < len(expected):
            while len(stream.body) < allowed:
                client.receive()
            assert len(stream.body) == allowed
            step = max(4096, allowed)
            client.http.increment_flow_control_window(step, stream_id)
            client.flush()
            allowed += step
        client.wait_for(stream_id)
        assert stream.answer().body == expected


def test_small_response_beside_a_full_window(server: Running, root: Path) -> None:
    """The window of one stream is full, that of the connection is not."""
    with http2(server.port, window=1000) as client:
        big = client.ask("/big")
        while len(client.streams[big].body) < 1000:
            client.receive()
        for number in range(20):
            assert client.get(f"/many/{number}.txt").status == 200
        assert len(client.streams[big].body) == 1000


def test_client_resets_a_stream_in_the_middle(server: Running, root: Path) -> None:
    with http2(server.port, window=100_000) as client:
        first = client.ask("/big")
        while len(client.streams[first].body) < 50_000:
            client.receive()
        client.http.reset_stream(first, error_code=CANCEL)
        client.flush()
        before = server.open_files()
        assert client.get("/small.txt").body == (root / "small.txt").read_bytes()
        assert eventually(lambda: server.open_files() <= before)
    line = server.wait_for_line('"target":"/big".*"complete":false')
    assert json.loads(line)["protocol"] == "HTTP/2.0"


@pytest.mark.parametrize("size", [100, 200_000])
def test_request_bodies_are_skipped(server: Running, size: int) -> None:
    with http2(server.port) as client:
        stream_id = client.ask("/small.txt", method="POST", end=False)
        sent = 0
        while sent < size and client.streams[stream_id].reset is None and not client.streams[stream_id].ended:
            count = min(size - sent, client.http.local_flow_control_window(stream_id), 10_000)
            if count:
                client.http.send_data(stream_id, bytes(count), end_stream=sent + count == size)
                client.flush()
                sent += count
            else:
                client.receive()
        client.wait_for(stream_id)
        assert client.streams[stream_id].status == 405
        assert client.get("/small.txt").status == 200


def test_expect_continue_is_answered_without_the_body(server: Running) -> None:
    with http2(server.port) as client:
        stream_id = client.ask("/small.txt", ("expect", "100-continue"), end=False)
        client.wait_for(stream_id)
        assert client.streams[stream_id].ended
        assert client.streams[stream_id].status == 200


@pytest.mark.parametrize(
    "fields",
    [
        [(":method", "GET"), (":scheme", "https"), (":path", "/"), ("Upper", "case")],
        [(":method", "GET"), (":scheme", "https"), (":path", "/"), ("connection", "close")],
        [(":method", "GET"), (":scheme", "https")],
        [(":method", "GET"), (":method", "GET"), (":scheme", "https"), (":path", "/")],
        [(":method", "GET"), (":scheme", "https"), (":path", "/"), ("x", "a\r\nb: c")],
    ],
)
def test_malformed_requests_end_their_stream_only(server: Running, fields: list[tuple[str, str]]) -> None:
    with http2(server.port) as client:
        stream_id = client.http.get_next_available_stream_id()
        client.http.send_headers(stream_id, [*fields], end_stream=True)
        client.streams[stream_id] = Stream()
        client.flush()
        client.wait_for(stream_id)
        assert client.streams[stream_id].reset == 1
        assert client.get("/small.txt").status == 200


def test_head_beyond_the_limit(server: Running) -> None:
    with http2(server.port) as client:
        fields = [(f"x-{number}", "a" * 1000) for number in range(40)]
        assert client.get("/small.txt", *fields).status == 431
        assert client.get("/small.txt", *((f"x-{number}", "a") for number in range(120))).status == 431
        assert client.get("/" + "a" * 9000).status == 414
        assert client.get("/small.txt").status == 200


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\0\0\0\0\0\0\0\0\1", 1),  # DATA on an idle stream
        (b"\xff\0\0\0\0\0\0\0\1", 6),  # a frame that is too large
        (b"\0\0\5\6\0\0\0\0\0abcde", 6),  # PING of 5 bytes
        (b"\0\0\1\1\5\0\0\0\1\xff", 9),  # half a header block
    ],
)
def test_connection_errors(server: Running, frame: bytes, code: int) -> None:
    with http2(server.port) as client:
        client.receive()
        client.socket.sendall(frame)
        client.read_to_end()
        assert client.error == code


def test_no_preface(server: Running) -> None:
    with connect(server.port, h2_context("h2")) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while data := connection.recv(65536):
            received += data
    assert received[-17:-8] == b"\0\0\x08\x07\0\0\0\0\0"  # GOAWAY
    server.wait_for_line("cut off: HTTP/2: no HTTP/2 connection preface")


def test_flood_of_resets_ends_the_connection(server: Running) -> None:
    key = "http2_resets_per_second"
    before = counts(server, "ktlsd_limited_total").get(key, 0)
    with http2(server.port) as client:
        client.receive()
        for _ in range(3000):
            stream_id = client.http.get_next_available_stream_id()
            request = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/big")]
            client.http.send_headers(stream_id, request, end_stream=True)
            client.http.reset_stream(stream_id, error_code=CANCEL)
        with contextlib.suppress(OSError):
            client.flush()
            client.read_to_end()
    server.wait_for_line(f"cut off: HTTP/2: too many resets .*: limit {key} = 20")
    assert counts(server, "ktlsd_limited_total")[key] == before + 1
    with http2(server.port) as client:
        assert client.get("/small.txt").status == 200


# --- ends of connections


def test_sigterm_lets_streams_end(root: Path, tmp_path: Path) -> None:
    """GOAWAY comes twice; a request between them is answered."""
    with serving(None, "--config", str(config(tmp_path, root)), state=tmp_path) as server:
        with http2(server.port, window=100_000) as client, http2(server.port) as idle:
            idle.get("/small.txt")
            big = client.ask("/big")
            while len(client.streams[big].body) < 100_000:
                client.receive()
            server.process.send_signal(signal.SIGTERM)
            while not client.goaways:
                client.receive()
            assert client.goaways == [LARGEST]
            while len(client.goaways) < 2:
                client.receive()
            assert client.goaways == [LARGEST, big]
            client.http.increment_flow_control_window(BIG, big)
            client.flush()
            client.wait_for(big)
            assert client.streams[big].answer().body == (root / "big").read_bytes()
            client.read_to_end()
            idle.read_to_end()
            assert idle.goaways == [LARGEST, 1]
        assert server.process.wait(WAIT_SECONDS) == 0


def test_most_requests_of_a_connection(root: Path, tmp_path: Path) -> None:
    path = config(tmp_path, root, "[limits]", "requests_per_connection = 5")
    with serving(None, "--config", str(path), state=tmp_path) as server, http2(server.port) as client:
        for _ in range(5):
            assert client.get("/small.txt").status == 200
        client.read_to_end()
        assert client.goaways[0] == LARGEST
        assert client.goaways[-1] == 9
        assert client.error == 0


def test_idle_connection(root: Path, tmp_path: Path) -> None:
    path = config(tmp_path, root, "[limits]", "idle_seconds = 1")
    with serving(None, "--config", str(path), state=tmp_path) as server, http2(server.port) as client:
        assert client.get("/small.txt").status == 200
        client.read_to_end()
        assert client.goaways == [1]
        assert client.error == 0


def test_closed_windows(root: Path, tmp_path: Path) -> None:
    """A stream whose client takes nothing of it is reset, and others go on."""
    path = config(tmp_path, root, "[limits]", "send_seconds = 1")
    with serving(None, "--config", str(path), state=tmp_path) as server, http2(server.port, window=1000) as client:
        stream_id = client.ask("/big")
        client.wait_for(stream_id)
        assert client.streams[stream_id].reset == CANCEL
        assert len(client.streams[stream_id].body) == 1000
        assert client.get("/many/1.txt").status == 200
        server.wait_for_line("stream 1 reset: the client's windows")


def test_request_body_that_never_ends(root: Path, tmp_path: Path) -> None:
    path = config(tmp_path, root, "[limits]", "head_seconds = 1")
    with serving(None, "--config", str(path), state=tmp_path) as server, http2(server.port) as client:
        stream_id = client.ask("/small.txt", end=False)
        client.wait_for(stream_id)
        assert client.streams[stream_id].status == 200
        assert client.get("/many/1.txt").status == 200
        server.wait_for_line("stream 1 answered without waiting for its request body: limit head_seconds = 1$")


@pytest.mark.parametrize("name", ["shrinks", "empties"])
def test_file_that_shrinks_while_it_is_sent(root: Path, tmp_path: Path, name: str) -> None:
    """No stream ends as whole that is not; the others go on."""
    www = tmp_path / "www"
    www.mkdir()
    (www / "shrinks").write_bytes(os.urandom(BIG))
    (www / "other").write_bytes(b"other")
    with serving(None, "--config", str(config(tmp_path, www)), state=tmp_path) as server:
        with http2(server.port, window=500_000) as client:
            stream_id = client.ask("/shrinks")
            while len(client.streams[stream_id].body) < 65_535:
                client.receive()
            os.truncate(www / "shrinks", 0 if name == "empties" else BIG // 2)
            while not client.streams[stream_id].ended and client.streams[stream_id].reset is None:
                client.http.increment_flow_control_window(BIG, stream_id)
                client.flush()
                client.receive()
            assert client.streams[stream_id].reset == INTERNAL_ERROR
            assert client.get("/other").body == b"other"
        server.wait_for_line("stream 1 reset: the file shrank while it was sent")


def test_clients_that_disappear(server: Running) -> None:
    before = server.open_files()
    for _ in range(20):
        with http2(server.port) as client:
            for _ in range(10):
                client.ask("/big")
            client.receive()
    assert eventually(lambda: server.open_files() <= before)
    with http2(server.port) as client:
        assert client.get("/small.txt").status == 200


# --- other clients


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True).stdout


def test_curl(server: Running, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("curl", "-sS", "--cacert", str(server.certificate), "-w", "%{http_version} %{http_code}", "-o", str(out))
    url = f"https://localhost:{server.port}/big"
    assert run(*common, "--resolve", f"localhost:{server.port}:127.0.0.1", url) == "2 200"
    assert out.read_bytes() == (root / "big").read_bytes()
    assert run(*common, "--resolve", f"localhost:{server.port}:127.0.0.1", "--http1.1", url) == "1.1 200"
    assert out.read_bytes() == (root / "big").read_bytes()


def test_h2load(server: Running) -> None:
    url = server.url("/middle")
    output = run("h2load", "-n", "400", "-c", "4", "-m", "20", url, server.url("/small.txt"))
    assert re.search(r"400 succeeded, 0 failed, 0 errored", output), output


def test_nghttp(server: Running) -> None:
    output = run("nghttp", "-nsa", server.url("/"), server.url("/big"), server.url("/many/1.txt"))
    assert len(re.findall(r" 200 +\d", output)) == 3, output


# --- file systems


def test_file_that_is_not_in_memory(server: Running, root: Path) -> None:
    for name in ("big", "middle", "small.txt"):
        evict(root / name)
    with http2(server.port) as client:
        asked = {client.ask(f"/{name}"): root / name for name in ("big", "middle", "small.txt")}
        client.wait_for(*asked)
        for stream_id, path in asked.items():
            assert client.streams[stream_id].answer().body == path.read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_files_without_rwf_nowait(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    contents = {"big": os.urandom(BIG), "small": os.urandom(500)}
    for name, content in contents.items():
        (shown / name).write_bytes(content)
    with (
        overlay(tmp_path, shown) as root,
        serving(None, "--config", str(config(tmp_path, root)), state=tmp_path) as server,
        http2(server.port) as client,
    ):
        for _ in range(3):
            for name, content in contents.items():
                assert client.get(f"/{name}").body == content
                assert client.get(f"/{name}", ("range", "bytes=100-299,400-")).status == 206
