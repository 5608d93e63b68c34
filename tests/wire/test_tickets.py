"""Session tickets: when keys change (pure), the file that has them, and real clients that come back."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from itertools import count, pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlsd.openssl.algorithms import TICKET_KEY_BYTES
from ktlsd.tls.ticket_file import TicketFile, TicketFileError
from ktlsd.tls.ticket_keys import LEAD_SECONDS, PERIOD_SECONDS, SESSION_SECONDS, TicketKey, ring, rotated
from tests.serving import WAIT_SECONDS, Running, client_context, connect, parse, read_to_end, serving
from tests.tls.test_certificates import Authority

HOUR = 3600
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
REQUEST = b"GET /a.txt HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n"


# --- which keys, pure -------------------------------------------------------------------------------------------------


def key(start: int, fill: int = 1) -> TicketKey:
    return TicketKey(start, bytes([fill]) * TICKET_KEY_BYTES)


NOW = 1_800_000_000


def make(size: int) -> bytes:
    return b"\xff" * size


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([], [0]),
        ([-1], [-1]),
        ([-PERIOD_SECONDS + LEAD_SECONDS + 1], [-PERIOD_SECONDS + LEAD_SECONDS + 1]),
        # The next one is made before it starts.
        ([-PERIOD_SECONDS + LEAD_SECONDS], [-PERIOD_SECONDS + LEAD_SECONDS, LEAD_SECONDS]),
        # After a pause of the service the next one starts at once.
        ([-PERIOD_SECONDS - 100], [-PERIOD_SECONDS - 100, 0]),
        ([-PERIOD_SECONDS - SESSION_SECONDS + 1], [-PERIOD_SECONDS - SESSION_SECONDS + 1, 0]),
        # No ticket that was made with it can be used any more.
        ([-PERIOD_SECONDS - SESSION_SECONDS], [0]),
        # A clock that was set back.
        ([LEAD_SECONDS + 1], [0]),
        ([LEAD_SECONDS], [0, LEAD_SECONDS]),
    ],
)
def test_keys_come_and_go_in_time(starts: list[int], expected: list[int]) -> None:
    kept = rotated([key(NOW + start) for start in starts], NOW, make)
    assert [found.start - NOW for found in kept] == expected


def test_a_key_of_another_size_is_dropped() -> None:
    assert [found.key for found in rotated([TicketKey(NOW, b"short")], NOW, make)] == [make(TICKET_KEY_BYTES)]


@given(st.lists(st.integers(1, 20 * HOUR), min_size=1, max_size=60))
def test_no_ticket_is_refused_before_its_time_and_no_key_lasts_a_day(steps: list[int]) -> None:
    fills = count(1)
    keys: tuple[TicketKey, ...] = ()
    issued: dict[bytes, list[float]] = {}
    now = float(NOW)
    for step in steps:
        keys = rotated(keys, now, lambda size: next(fills).to_bytes(size))
        held = ring(keys, now)
        issued.setdefault(held.current, []).append(now)
        assert all(earlier.start < later.start for earlier, later in pairwise(keys))
        for used, times in issued.items():
            recent = [made for made in times if now - made < SESSION_SECONDS]
            if recent:
                assert used == held.current or used in held.others.values()
            if now - min(times) >= 24 * HOUR:
                assert used != held.current
                assert used not in held.others.values()
        # As often as a worker looks, or less often.
        now += min(step, 60) if step % 2 else step


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_is_private_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = TicketFile(path), TicketFile(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.ring() == second.ring()
    assert len(first.ring().current) == TICKET_KEY_BYTES
    first.close()
    second.close()


@pytest.mark.parametrize("content", [b"", b"half a key [{", b"[]", b"[{}]", b"\0" * 5000])
def test_a_broken_file_gets_new_keys(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    path.chmod(0o600)
    file = TicketFile(path)
    current = file.ring().current
    file.close()
    (kept,) = msgspec.json.decode(path.read_bytes(), type=list[TicketKey])
    assert kept.key == current


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.touch(mode=0o640)
    with pytest.raises(TicketFileError, match=rf"^{path}: .* chmod 600 it$"):
        TicketFile(path)


@pytest.mark.parametrize(
    ("kind", "reason"), [("link", "symbolic link"), ("fifo", "not a regular file"), ("folder", "directory")]
)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str, reason: str) -> None:
    path = tmp_path / "keys.json"
    if kind == "link":
        path.symlink_to("elsewhere.json")
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    else:
        path.mkdir()
    with pytest.raises(TicketFileError, match=reason):
        TicketFile(path)


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    program = f"""
from pathlib import Path
from ktlsd.tls.ticket_file import TicketFile
print(TicketFile(Path({str(path)!r})).ring().current.hex())
"""
    command = [sys.executable, "-c", program]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate(timeout=120)[0] for process in running}) == 1


# --- clients that come back -------------------------------------------------------------------------------------------


def visit(
    server: Running, context: ssl.SSLContext, session: ssl.SSLSession | None = None, name: str = "localhost"
) -> tuple[ssl.SSLSession, bool]:
    """One request; the session for the next time, and whether this one was resumed."""
    with connect(server.port, context, session, name) as connection:
        connection.sendall(REQUEST % name.encode())
        assert parse(read_to_end(connection))[0].body == b"content"
        found = connection.session
        assert found is not None
        return found, bool(connection.session_reused)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"content")
    return folder


def age(path: Path, seconds: int) -> None:
    """Have all keys in a file be older: the same as waiting for so long."""
    keys = msgspec.json.decode(path.read_bytes(), type=list[TicketKey])
    path.write_bytes(msgspec.json.encode([TicketKey(found.start - seconds, found.key) for found in keys]))


@pytest.mark.parametrize("newest", [TLS_1_2, TLS_1_3])
def test_sessions_last_over_workers_restarts_and_new_keys(root: Path, tmp_path: Path, newest: ssl.TLSVersion) -> None:
    keys = tmp_path / "state/ktlsd/ticket-keys.json"
    context = client_context(newest=newest)
    with serving(root, "--workers", "2", state=tmp_path / "state") as server:
        old, resumed = visit(server, context)
        assert not resumed
        for _ in range(8):
            assert visit(server, context, old)[1]
    (first,) = msgspec.json.decode(keys.read_bytes(), type=list[TicketKey])
    # Replaced a minute ago: the old key still reads, and a new one makes tickets.
    age(keys, PERIOD_SECONDS + 60)
    with serving(root, state=tmp_path / "state") as server:
        assert visit(server, context, old)[1]
        new, resumed = visit(server, context)
        assert not resumed
        assert visit(server, context, new)[1]
    kept = msgspec.json.decode(keys.read_bytes(), type=list[TicketKey])
    assert len(kept) == 2
    assert kept[0].key == first.key
    # Now nothing that was made with the first key can be good any more.
    age(keys, SESSION_SECONDS)
    with serving(root, state=tmp_path / "state") as server:
        assert not visit(server, context, old)[1]
        assert visit(server, context, new)[1]


def test_a_ticket_of_an_old_key_is_followed_by_one_of_the_new(root: Path, tmp_path: Path) -> None:
    keys = tmp_path / "state/ktlsd/ticket-keys.json"
    context = client_context()
    with serving(root, state=tmp_path / "state") as server:
        old, _ = visit(server, context)
    age(keys, PERIOD_SECONDS + 60)
    with serving(root, state=tmp_path / "state") as server:
        renewed = old
        # No new ticket comes where the handshake took one call only.
        for _ in range(50):
            renewed, resumed = visit(server, context, old)
            assert resumed
            if renewed != old:
                break
    # The first key is gone, the second is not.
    age(keys, SESSION_SECONDS)
    with serving(root, state=tmp_path / "state") as server:
        assert not visit(server, context, old)[1]
        assert visit(server, context, renewed)[1]


def test_a_ticket_resumes_at_its_own_site_alone(root: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    lines = [f"root = '{root}'", f"ticket_keys = '{tmp_path / 'keys.json'}'"]
    for name, kind in (("a.test", "ec"), ("b.test", "ec384")):
        authority.issue(kind)
        paths = [f"cert = '{authority.certificate(kind)}'", f"key = '{authority.key_of(kind)}'"]
        lines += ["[[site]]", f"names = ['{name}']", *paths]
    config = tmp_path / "ktlsd.toml"
    config.write_text("\n".join(lines))
    for newest in (TLS_1_2, TLS_1_3):
        context = client_context(newest=newest)
        with serving(None, "--config", str(config), state=tmp_path / "state") as server:
            session, _ = visit(server, context, name="a.test")
            assert visit(server, context, session, name="a.test")[1]
            assert not visit(server, context, session, name="b.test")[1]
            assert not visit(server, context, session, name="other.test")[1]
    assert (tmp_path / "keys.json").exists()
    assert not (tmp_path / "state/ktlsd/ticket-keys.json").exists()


def test_a_handshake_gives_one_ticket(root: Path, tmp_path: Path) -> None:
    with serving(root, state=tmp_path / "state") as server:
        client = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_3", "-ign_eof", "-msg"]
        request = REQUEST % b"a"
        done = subprocess.run(client, input=request, capture_output=True, timeout=WAIT_SECONDS, check=True)
    assert done.stdout.count(b"NewSessionTicket") == 1


def test_no_tickets_where_none_are_wanted(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "ktlsd.toml"
    config.write_text("session_tickets = false\n")
    with serving(root, "--config", str(config), state=tmp_path / "state") as server:
        for newest in (TLS_1_2, TLS_1_3):
            with connect(server.port, client_context(newest=newest)) as connection:
                connection.sendall(REQUEST % b"a")
                assert parse(read_to_end(connection))[0].body == b"content"
                assert connection.session is None or not connection.session.has_ticket
    assert not (tmp_path / "state/ktlsd/ticket-keys.json").exists()


def test_half_a_hello_with_an_old_ticket_is_waited_for(root: Path, tmp_path: Path) -> None:
    """The look for the key's name sees a ClientHello that comes in two pieces as a whole."""
    keys = tmp_path / "state/ktlsd/ticket-keys.json"
    context = client_context()
    with serving(root, state=tmp_path / "state") as server:
        old, _ = visit(server, context)
    age(keys, PERIOD_SECONDS + 60)
    with serving(root, state=tmp_path / "state") as server:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, session=old, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
            while True:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    data = outgoing.read()
                    raw.sendall(data[:100])
                    time.sleep(0.2)
                    raw.sendall(data[100:])
                    incoming.write(raw.recv(65536))
                else:
                    break
        assert tls.session_reused
