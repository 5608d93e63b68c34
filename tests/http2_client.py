"""A client of HTTP/2 over TLS for tests: the library h2 on a blocking socket, every frame an event."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from tests.serving import Answer, client_context, connect

HeaderField = tuple[str, str] | tuple[bytes, bytes]


@dataclass
class Stream:
    """A response as far as it has come."""

    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None
    """The code of RST_STREAM."""

    def answer(self) -> Answer:
        """The response, which is whole."""
        assert self.ended
        assert self.reset is None
        return Answer(self.status, self.fields, bytes(self.body))


class Http2Client:
    """One connection. Windows are renewed unless `window` says how large they are for ever."""

    def __init__(
        self,
        connection: socket.socket,
        window: int | None = None,
        frame_bytes: int | None = None,
        scheme: str = "https",
        renewed: int | None = None,
    ) -> None:
        """`window` is not renewed, `renewed` is; by default it is that of the RFC."""
        self.socket = connection
        self.scheme = scheme
        if connection.family != socket.AF_UNIX:
            # As browsers: a request after an acknowledgement of SETTINGS does not wait for the server's.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = h2.config.H2Configuration(client_side=True, header_encoding="ascii", validate_outbound_headers=False)
        config.normalize_outbound_headers = False
        self.http = h2.connection.H2Connection(config)
        changes = {}
        initial = renewed if window is None else window
        if initial is not None:
            changes[h2.settings.SettingCodes.INITIAL_WINDOW_SIZE] = initial
        if frame_bytes is not None:
            changes[h2.settings.SettingCodes.MAX_FRAME_SIZE] = frame_bytes
        self.http.local_settings = h2.settings.Settings(client=True, initial_values=changes)
        self.http.initiate_connection()
        if frame_bytes is not None:
            self.http.max_inbound_frame_size = frame_bytes
        if window is not None:
            # The connection's is out of the way.
            self.http.increment_flow_control_window(1 << 30)
        elif renewed is not None:
            self.http.increment_flow_control_window(renewed)
        self.renews = window is None
        self.streams: dict[int, Stream] = {}
        self.goaways: list[int] = []
        """The last stream that each GOAWAY named."""
        self.error: int | None = None
        """The code of the last GOAWAY."""
        self._received = b""
        self.received_bytes = 0
        """All of the connection's, frames and all."""
        self.closed = False
        """Whether the server ended the connection."""
        self.flush()

    def flush(self) -> None:
        data = self.http.data_to_send()
        if data:
            self.socket.sendall(data)

    def ask(
        self, target: str | bytes, *fields: HeaderField, method: str = "GET", host: str = "localhost", end: bool = True
    ) -> int:
        """Send a request; its stream."""
        stream_id = self.http.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", self.scheme), (":authority", host), (":path", target)]
        self.http.send_headers(stream_id, [*pseudo, *fields], end_stream=end)
        self.streams[stream_id] = Stream()
        self.flush()
        return stream_id

    def receive(self) -> bool:
        """Take what the server sends next; False at the end of the connection."""
        data = self.socket.recv(65536)
        if not data:
            self.closed = True
            return False
        self._received += data
        self.received_bytes += len(data)
        # Frame by frame: h2 takes the first GOAWAY for the end, but streams go on (RFC 9113 section 6.8).
        while (size := 9 + int.from_bytes(self._received[:3])) <= len(self._received):
            frame, self._received = self._received[:size], self._received[size:]
            for event in self.http.receive_data(frame):
                self._take(event)
        self.flush()
        return True

    def _take(self, event: Any) -> None:
        stream = self.streams.get(getattr(event, "stream_id", None) or 0, Stream())
        if isinstance(event, h2.events.ResponseReceived):
            fields = [(str(name), str(value)) for name, value in event.headers]
            stream.fields = dict(fields)
            assert len(stream.fields) == len(fields), f"a field is there twice: {fields}"
            stream.status = int(stream.fields.pop(":status"))
        elif isinstance(event, h2.events.DataReceived):
            stream.body += event.data
            if self.renews and event.flow_controlled_length:
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            stream.ended = True
        elif isinstance(event, h2.events.StreamReset):
            stream.reset = int(event.error_code or 0)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append(event.last_stream_id or 0)
            self.error = int(event.error_code or 0)
            self.http.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN

    def wait_for(self, *stream_ids: int) -> None:
        """Receive until these streams have ended, in whichever way."""
        while any(not (self.streams[one].ended or self.streams[one].reset is not None) for one in stream_ids):
            assert self.receive(), "the connection ended"

    def get(self, target: str, *fields: HeaderField, method: str = "GET", host: str = "localhost") -> Answer:
        """A request and its whole response."""
        stream_id = self.ask(target, *fields, method=method, host=host)
        self.wait_for(stream_id)
        return self.streams[stream_id].answer()

    def read_to_end(self) -> None:
        while self.receive():
            pass


def h2_context(*protocols: str) -> ssl.SSLContext:
    context = client_context()
    context.set_alpn_protocols(list(protocols or ("h2", "http/1.1")))
    return context


@contextlib.contextmanager
def http2(
    port: int, *, window: int | None = None, frame_bytes: int | None = None, name: str | None = None
) -> Iterator[Http2Client]:
    """A connection over which HTTP/2 was chosen."""
    with connect(port, h2_context(), name=name) as connection:
        assert connection.selected_alpn_protocol() == "h2"
        yield Http2Client(connection, window, frame_bytes)
