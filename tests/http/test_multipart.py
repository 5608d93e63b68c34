"""The frame of multipart/byteranges (RFC 9110 section 14.6), read back by Python's mail parser."""

from __future__ import annotations

import email.policy
import random
from email.parser import BytesParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.http.byte_range import ByteRange, parse_range
from ktlsd.http.multipart import Multipart, multipart

CONTENT = random.Random(1).randbytes(5000)
BOUNDARY = "3d6b6a416f9b5e1c0a4d2f8877665544"


def body_of(framed: Multipart, content: bytes) -> bytes:
    return b"".join(before + content[part.offset : part.end] for before, part in framed.parts) + framed.tail


def test_the_body_is_that_of_the_rfc() -> None:
    parts = (ByteRange(500, 3), ByteRange(7000, 2))
    framed = multipart(parts, 8000, "application/pdf", "THIS")
    assert framed.content_type == "multipart/byteranges; boundary=THIS"
    body = framed.parts[0][0] + b"abc" + framed.parts[1][0] + b"de" + framed.tail
    assert body == (
        b"\r\n--THIS\r\nContent-Type: application/pdf\r\nContent-Range: bytes 500-502/8000\r\n\r\nabc\r\n"
        b"--THIS\r\nContent-Type: application/pdf\r\nContent-Range: bytes 7000-7001/8000\r\n\r\nde\r\n"
        b"--THIS--\r\n"
    )
    assert framed.length == len(body)
    assert tuple(part for _, part in framed.parts) == parts


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4999), st.integers(1, 900)), min_size=1, max_size=10))
def test_a_mail_parser_finds_the_parts(asked: list[tuple[int, int]]) -> None:
    parts = parse_range("bytes=" + ",".join(f"{first}-{first + more}" for first, more in asked), len(CONTENT))
    framed = multipart(parts, len(CONTENT), "application/octet-stream", BOUNDARY)
    body = body_of(framed, CONTENT)
    assert len(body) == framed.length
    head = f"Content-Type: {framed.content_type}\r\n\r\n".encode()
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    assert message.get_content_type() == "multipart/byteranges"
    found = list(message.iter_parts())
    assert [part["Content-Range"] for part in found] == [part.content_range(len(CONTENT)) for part in parts]
    assert {part["Content-Type"] for part in found} == {"application/octet-stream"}
    assert [part.get_payload(decode=True) for part in found] == [CONTENT[part.offset : part.end] for part in parts]
    assert not message.defects
    assert not message.preamble
    assert not message.epilogue


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "image/png"])
def test_each_part_has_the_content_type_of_the_whole(content_type: str) -> None:
    framed = multipart((ByteRange(0, 1), ByteRange(900, 1)), 1000, content_type, BOUNDARY)
    line = f"\r\nContent-Type: {content_type}\r\n".encode()
    assert [before.count(line) for before, _ in framed.parts] == [1, 1]
