"""The targets by name. Each is a module with check(), which raises for an input whose outcome is wrong.

Strategy: a second, naive implementation says what should come out, and where there can be none, what holds for every
outcome does. A corpus can be replayed without atheris: the targets need nothing but ktlsd, that of regular expressions
google-re2, and those of HTTP/2 hpack and hyperframe.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final, NamedTuple, cast

Check = Callable[[bytes], None]


class Target(NamedTuple):
    """What is fuzzed."""

    name: str
    modules: tuple[str, ...]
    """What check() is about, whose coverage counts."""
    longest: int = 1024
    """Bytes of an input that are tried at most."""
    test_runs: int = 2000
    """Inputs in a run of the tests."""

    def load(self) -> Check:
        """The function that takes an input; importing it may make what it needs."""
        return cast(Check, importlib.import_module(f"{__name__}.{self.name}").check)

    def tokens(self) -> tuple[bytes, ...]:
        """Pieces that inputs are made of, for a fuzzer to insert."""
        return cast("tuple[bytes, ...]", importlib.import_module(f"{__name__}.{self.name}").TOKENS)


_ALL: Final = (
    Target(
        "request_head",
        (
            *("ktlsd.protocol.http1", "ktlsd.protocol.http1_inline", "ktlsd.protocol.http1_reader"),
            *(
                "ktlsd.protocol.exchange",
                "ktlsd.site.response_cache",
                "ktlsd.http.decide",
                "ktlsd.site.site",
                "ktlsd.http.head_scanner",
            ),
        ),
        2048,
        100,
    ),
    Target("request_target", ("ktlsd.http.request_target",), 512),
    Target("client_hello", ("ktlsd.tls.client_hello",), 4096),
    Target("byte_range", ("ktlsd.http.byte_range",), 512),
    Target("validators", ("ktlsd.http.validators",), 512),
    Target("decide", ("ktlsd.http.decide", "ktlsd.http.multipart", "ktlsd.http.byte_range", "ktlsd.http.validators")),
    Target("accept_encoding", ("ktlsd.http.accept_encoding",), 512),
    Target("basic_auth", ("ktlsd.http.basic_auth",), 512),
    Target("signed_links", ("ktlsd.http.signed_links",), 512),
    Target("path_glob", ("ktlsd.http.path_glob",), 256),
    Target("header_rules", ("ktlsd.http.header_rules", "ktlsd.site.rule_files", "ktlsd.http.fields")),
    Target("regexes", ("ktlsd.http.regexes",), 256),
    Target("redirects", ("ktlsd.http.redirects", "ktlsd.site.rule_files")),
    Target(
        "settings", ("ktlsd.settings", "ktlsd.config.errors", "ktlsd.config.options", "ktlsd.config.toml_lines"), 2048
    ),
    Target("forwarded", ("ktlsd.http.forwarded",)),
    Target("proxy_protocol", ("ktlsd.connection.proxy_protocol",)),
    Target(
        "http2_frames",
        (
            *("ktlsd.http2.connection", "ktlsd.http2.streams", "ktlsd.http2.credit", "ktlsd.http2.header_block"),
            *("ktlsd.http2.frames", "ktlsd.http2.peer_settings", "ktlsd.http2.sender", "ktlsd.http2.scheduler"),
        ),
        2048,
        1000,
    ),
    Target(
        "http2_hpack",
        (
            *("ktlsd.http2.hpack_decoder", "ktlsd.http2.huffman", "ktlsd.http2.header_table", "ktlsd.http2.head_cache"),
            *("ktlsd.http2.request_fields", "ktlsd.http2.hpack_encoder"),
        ),
    ),
    Target("http2_priority", ("ktlsd.http2.priority",), 300),
)
TARGETS: Final = {target.name: target for target in _ALL}
