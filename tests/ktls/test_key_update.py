"""A client that updates its TLS 1.3 keys (RFC 8446 section 4.6.3), by the real `openssl s_client`.

docs/key-update.md says what each path does and why; here each is held to it: answered right or closed, never
hung, never corrupt.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlsd.ssl_ffi import Library
from tests.serving import Answer, Running, parse, serving

SIZE = 2_000_003
REQUEST = b"GET /file.bin HTTP/1.1\r\nHost: a\r\n\r\n"
NOT_REQUESTED, REQUESTED = b"k\n", b"K\n"
PATIENCE = 30.0


class Client:
    """openssl s_client, which takes `k` and `K` at the start of what it reads as commands to update its keys."""

    def __init__(self, port: int) -> None:
        arguments = ["-connect", f"127.0.0.1:{port}", "-tls1_3", "-quiet", "-no_ign_eof"]
        self.process = subprocess.Popen(
            ["openssl", "s_client", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.received = b""

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)
            self.process.stdin.flush()
        # s_client looks for a command at the start of each read: two writes must not become one.
        time.sleep(1.0)

    def receive(self, until: int) -> bytes:
        """Collect until so many bytes are there, or the connection ends."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while len(self.received) < until:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"hangs after {len(self.received)} bytes"
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                break
            self.received += data
        return self.received

    def answer(self) -> Answer | None:
        """The next response; None when the connection ended instead."""
        self.receive(1)
        if not self.received:
            return None
        while b"\r\n\r\n" not in self.received:
            before = len(self.received)
            assert len(self.receive(before + 1)) > before, "cut off in the head"
        head = self.received.index(b"\r\n\r\n") + 4
        found = re.search(rb"Content-Length: (\d+)", self.received)
        assert found is not None
        self.receive(head + int(found[1]))
        answer, self.received = parse(self.received)
        return answer

    def has_ended(self) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=PATIENCE)
        return self.process.poll() is not None

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(SIZE)


def run_server(tmp_path: Path, content: bytes, *options: str) -> contextlib.AbstractContextManager[Running]:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file.bin").write_bytes(content)
    return serving(tmp_path / "root", *options, state=tmp_path / "state")


@pytest.fixture
def user_space(tmp_path: Path, content: bytes) -> Iterator[Running]:
    with run_server(tmp_path, content, "--ktls", "off") as server:
        yield server


@pytest.fixture
def kernel(tmp_path: Path, content: bytes) -> Iterator[Running]:
    with run_server(tmp_path, content, "--ktls", "require") as server:
        yield server


@pytest.mark.parametrize("update", [NOT_REQUESTED, REQUESTED])
def test_in_user_space_the_connection_goes_on(user_space: Running, content: bytes, update: bytes) -> None:
    client = Client(user_space.port)
    try:
        for _ in range(3):
            client.send(REQUEST)
            answer = client.answer()
            assert answer is not None
            assert answer.body == content
            client.send(update)
    finally:
        client.close()


@pytest.mark.ktls
@pytest.mark.parametrize("update", [NOT_REQUESTED, REQUESTED])
@pytest.mark.parametrize("target", [b"file.bin", b"nothing"])
def test_with_ktls_it_is_answered_or_closed(kernel: Running, content: bytes, target: bytes, update: bytes) -> None:
    receives_in_kernel = Library().version >= (3, 2, 0)
    client = Client(kernel.port)
    try:
        client.send(REQUEST)
        first = client.answer()
        assert first is not None
        assert first.body == content
        lines = len(kernel.log)
        client.send(update)
        client.send(REQUEST.replace(b"file.bin", target))
        second = client.answer()
        print(f"after {update!r}: {second and (second.status, second.fields.get('connection'))}")
        if receives_in_kernel:
            assert second is None
            kernel.wait_for_line("the peer updated its keys, which kTLS RX cannot follow", since=lines)
        else:
            assert second is not None
            assert second.body == (content if target == b"file.bin" else b"404 Not Found\n")
            assert second.fields.get("connection") == ("close" if update == REQUESTED else None)
        if receives_in_kernel or update == REQUESTED:
            assert client.has_ended()
    finally:
        client.close()
    # Whatever became of that connection, the server goes on.
    other = Client(kernel.port)
    try:
        other.send(REQUEST)
        answer = other.answer()
        assert answer is not None
        assert answer.body == content
    finally:
        other.close()


@pytest.mark.ktls
@pytest.mark.parametrize("update", [NOT_REQUESTED, REQUESTED])
def test_with_ktls_a_download_under_way_arrives_whole(kernel: Running, content: bytes, update: bytes) -> None:
    client = Client(kernel.port)
    try:
        # The server is still sending, to a client that does not read, when the update arrives.
        client.send(REQUEST * 8)
        client.send(update)
        bodies = []
        while (answer := client.answer()) is not None:
            bodies.append(answer.body)
            if len(bodies) == 8:
                break
        print(f"{len(bodies)} of 8 pipelined responses came with {update!r} among them")
        assert bodies == [content] * 8
    finally:
        client.close()
