"""Request targets (RFC 9112 section 3.2, RFC 3986 section 5.2.4): tables, and promises for every target."""

from __future__ import annotations

import itertools
import os
import string
from urllib.parse import quote_from_bytes

import h11
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ktlsd.http.request_target import BadTarget, Target, parse_target, target_of_path, top_name

PIECES = [b"/", b"//", b".", b"..", b"...", b"%2e", b"%2E%2e", b"%252e", b"%25", b"%", b"%2f", b"%5c", b"\\", b"%00"]
PIECES += [b"a", b"b.html", b".well-known", b"%c3%a9", b"\xc3\xa9", b"%ff", b"%0d%0a", b"?", b"?q=1", b":", b"@", b";"]
PIECES += [b"http://", b"example", b"+"]


def vchar(target: bytes) -> bool:
    return all(0x21 <= octet <= 0x7E for octet in target)


def targets(*, only_vchar: bool = False) -> st.SearchStrategy[bytes]:
    """Targets out of telling pieces, or out of any bytes; `only_vchar`: those that h11 lets through."""
    pieces = [piece for piece in PIECES if vchar(piece) or not only_vchar]
    built = st.lists(st.sampled_from(pieces), max_size=10).map(lambda chosen: b"/" + b"".join(chosen))
    printable = st.text(string.ascii_letters + string.digits + string.punctuation).map(str.encode)
    return built | (printable if only_vchar else st.binary()).map(lambda text: b"/" + text)


def parsed(target: bytes) -> Target:
    """The target, or a case for hypothesis to pass over."""
    try:
        return parse_target(target)
    except BadTarget:
        assume(False)
        raise


def remove_dot_segments(path: str) -> str:
    """RFC 3986 section 5.2.4, step by step."""
    output = ""
    while path:
        if path.startswith("/./"):
            path = path[2:]
        elif path == "/.":
            path = "/"
        elif path.startswith("/../"):
            path, output = path[3:], output.rpartition("/")[0]
        elif path == "/..":
            path, output = "/", output.rpartition("/")[0]
        else:
            end = path.find("/", 1) if "/" in path[1:] else len(path)
            path, output = path[end:], output + path[:end]
    return output


@pytest.mark.parametrize(
    ("target", "path", "directory"),
    [
        (b"/", b".", True),
        (b"/a", b"a", False),
        (b"/a/", b"a", True),
        (b"/a/b/c/./../../g", b"a/g", False),  # RFC 3986 section 5.2.4
        (b"/mid/content=5/../6", b"mid/6", False),
        (b"/a/.", b"a", True),
        (b"/a/..", b".", True),
        (b"/a/b/..", b"a", True),
        (b"/a/b/../", b"a", True),
        (b"/.", b".", True),
        (b"/./a", b"a", False),
        (b"/a/%2e%2E/b", b"b", False),
        (b"/a/%2e", b"a", True),
        (b"/a/.%2e/b", b"b", False),
        (b"/...", b"...", False),
        (b"/..a", b"..a", False),
        (b"/a../b", b"a../b", False),
        (b"//a", b"a", False),
        (b"/a//b", b"a/b", False),
        (b"/a//", b"a", True),
        (b"//evil.example/a", b"evil.example/a", False),
        (b"/a?", b"a", False),
        (b"/a?b/../../c", b"a", False),
        (b"/a?b?c", b"a", False),
        (b"/?/", b".", True),
        (b"/a%3fb", b"a?b", False),
        (b"/a%23b", b"a#b", False),
        (b"/a%20b", b"a b", False),
        (b"/a+b", b"a+b", False),
        (b"/%C3%a9", b"\xc3\xa9", False),
        (b"/%ff%01", b"\xff\x01", False),
        (b"/%5c..%5ca", b"\\..\\a", False),
        (b"/a;b=1,c", b"a;b=1,c", False),
        (b"/C:", b"C:", False),
        # absolute-form (RFC 9112 section 3.2.2)
        (b"http://example.com/a", b"a", False),
        (b"https://example.com/a/", b"a", True),
        (b"HTTPS://EXAMPLE.COM:8443/a", b"a", False),
        (b"https://[::1]:8443/a", b"a", False),
        (b"https://example.com", b".", True),
        (b"https://example.com?q", b".", True),
        (b"https://example.com/../a", None, False),
        (b"https://example.com//a", b"a", False),
        (b"https://example.com/http://other/a", b"http:/other/a", False),
    ],
)
def test_a_target_names_a_path_below_the_root(target: bytes, path: bytes | None, directory: bool) -> None:
    if path is None:
        with pytest.raises(BadTarget):
            parse_target(target)
        return
    result = parse_target(target)
    assert (result.file_path(), result.directory) == (path, directory)


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"*",
        b"a",
        b"?a",
        b"example.com:443",
        b"ftp://example.com/a",
        b"file:///etc/passwd",
        b"https:/a",
        b"https:a",
        b" /a",
        b"/a#b",
        b"/a?b#c",
        b"/..",
        b"/../",
        b"/../a",
        b"/a/../..",
        b"/a/../../a",
        b"/%2e%2e",
        b"/a/%2e./%2E%2e/b",
        b"/a%00",
        b"/a\0b",
        b"/a%2fb",
        b"/a%2Fb",
        b"/..%2f..%2fetc/passwd",
        b"/%",
        b"/a%",
        b"/a%4",
        b"/a%4/b",
        b"/a%zz",
        b"/a%%41",
        b"/a%+1",
        b"/a% 1",
        b"/a%\n41",
        # An empty host MUST be rejected (RFC 9110 section 4.2.1 and 4.2.2).
        b"http:///a",
        b"https://",
        b"https://:8443/a",
        # User information is an error there (section 4.2.4).
        b"https://user@example.com/a",
        b"https://user:secret@example.com/a",
        # Hosts that no Host field could name either.
        b'https://exa"mple.com/a',
        b"https://example.com\\@evil.example/a",
        b"https://<example.com>/a",
        b"https://example.com|a/",
        b"https://exa mple.com/a",
        b"https://caf\xc3\xa9.example/a",
        b"https://example.com:x/a",
        b"https://example.com:1:2/a",
        b"https://::1/a",
        b"https://[::1/a",
        b"https://[]/a",
        b"https://[::1]a/",
        b"https://example.com\n",
    ],
)
def test_what_could_mean_two_things_is_refused(target: bytes) -> None:
    with pytest.raises(BadTarget):
        parse_target(target)


@pytest.mark.parametrize(
    ("target", "name"),
    [(b"/%252e", b"%2e"), (b"/%252e%252e", b"%2e%2e"), (b"/%25252f", b"%252f"), (b"/%2500", b"%00"), (b"/%25", b"%")],
)
def test_percent_decoding_happens_once(target: bytes, name: bytes) -> None:
    assert parse_target(target).names == (name,)


@settings(deadline=None)
@given(st.binary(min_size=1).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")))
def test_every_name_that_a_file_can_have_is_reached(name: bytes) -> None:
    escaped = "".join(f"%{octet:02x}" for octet in name)
    assert parse_target(f"/{escaped}".encode()).names == (name,)
    assert parse_target(f"/{quote_from_bytes(name, safe='')}".encode()).names == (name,)


@settings(deadline=None)
@given(targets() | st.binary())
@example(b"/a/%2e%2e/%252e%252e/%5c..//b")
def test_no_target_leads_outside(target: bytes) -> None:
    result = parsed(target)
    path = result.file_path()
    assert not path.startswith(b"/")
    assert b"\0" not in path
    components = path.split(b"/")
    assert b"" not in components
    assert b".." not in components
    assert b"." not in components or path == b"."


@settings(deadline=None)
@given(targets() | st.binary() | st.binary().map(lambda data: b"/a" + data))
@example(b"/a/b//c/?..#")
def test_the_top_name_is_the_first_of_a_target_that_hides_none(target: bytes) -> None:
    name = top_name(target)
    if name is not None:
        result = parse_target(target)
        assert (result.names[0], result.hidden(), result.host) == (name, False, None)


@pytest.mark.parametrize(
    ("target", "name"),
    [(b"/a", b"a"), (b"/a/", b"a"), (b"/a.b/c.d//e?f/../%", b"a.b"), (b"/", None), (b"/.a", None), (b"/a%20", None)],
)
def test_the_top_name(target: bytes, name: bytes | None) -> None:
    assert top_name(target) == name


@settings(deadline=None)
@given(targets())
def test_the_query_has_no_say_in_the_path(target: bytes) -> None:
    result = parsed(target)
    path, question_mark, query = target.partition(b"?")
    assert parse_target(path + b"?/../%zz/..") == Target(result.names, result.directory, b"?/../%zz/..")
    assert result.query == question_mark + query


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", ".", ".."]), max_size=8), st.booleans())
def test_dot_segments_go_as_the_rfc_removes_them(segments: list[str], slash: bool) -> None:
    path = "/" + "".join(f"{segment}/" for segment in segments)
    if not slash and segments:
        path = path[:-1]
    steps = [{"..": -1, ".": 0}.get(segment, 1) for segment in segments]
    if min(itertools.accumulate(steps), default=0) < 0:
        with pytest.raises(BadTarget, match="above the root"):
            parse_target(path.encode())
        return
    removed = remove_dot_segments(path)
    result = parse_target(path.encode())
    assert (result.file_path().decode(), result.directory) == (removed.strip("/") or ".", removed.endswith("/"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/a/b/c/./../../g", "/a/g"), ("/a/..", "/"), ("/../a", "/a"), ("/a//../b", "/a/b"), ("/", "/")],
)
def test_the_model_removes_as_the_rfc_does(path: str, expected: str) -> None:
    assert remove_dot_segments(path) == expected


def test_empty_segments_go_before_dots_are_resolved() -> None:
    """As nginx merges slashes: an empty segment names nothing that ".." could take away."""
    assert parse_target(b"/a//../b").file_path() == b"b"
    with pytest.raises(BadTarget):
        parse_target(b"//../b")


@pytest.mark.parametrize(
    ("target", "hidden"),
    [
        (b"/", False),
        (b"/a", False),
        (b"/a.", False),
        (b"/a.b/c.d", False),
        (b"/.git/config", True),
        (b"/%2egit", True),
        (b"/a/.htpasswd", True),
        (b"/a/.b/c", True),
        (b"/...", True),
        (b"/./a/../b", False),
        (b"/.a/../b", False),
        (b"/.well-known/security.txt", False),
        (b"/.well-known/", False),
        (b"/a/.well-known/b", True),
        (b"/.well-known/.b", True),
        (b"/.well-known/.well-known", True),
        (b"/.well-known/../.git", True),
        (b"/.well-known2/a", True),
        (b"/.Well-Known/a", True),
    ],
)
def test_names_that_begin_with_a_dot_are_hidden(target: bytes, hidden: bool) -> None:
    assert parse_target(target).hidden() is hidden


@pytest.mark.parametrize(
    ("target", "location"),
    [
        (b"/a", "/a/"),
        (b"/a/b", "/a/b/"),
        (b"/a?q=1&r", "/a/?q=1&r"),
        (b"/a?", "/a/?"),
        (b"//evil.example", "/evil.example/"),
        (b"///evil.example/%2e", "/evil.example/"),
        (b"/%5cevil.example", "/%5Cevil.example/"),
        (b"/\\evil.example", "/%5Cevil.example/"),
        (b"https://evil.example/a", "/a/"),
        (b"/https:evil.example", "/https:evil.example/"),
        (b"/a%0d%0aSet-Cookie:b", "/a%0D%0ASet-Cookie:b/"),
        (b"/%252e%252e", "/%252e%252e/"),
        (b"/%c3%a9 \xff", "/%C3%A9%20%FF/"),
        (b"/a%3fb%23c", "/a%3Fb%23c/"),
        (b"/~u/a+b;c,d@e", "/~u/a+b;c,d@e/"),
    ],
)
def test_a_location_stays_on_this_host(target: bytes, location: str) -> None:
    assert parse_target(target).directory_location() == location


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://example.com/a", "example.com"),
        (b"https://example.com", "example.com"),
        (b"https://example.com?q", "example.com"),
        (b"https://Example.COM./a", "Example.COM."),
        (b"https://example.com:8443/a", "example.com"),
        (b"https://example.com:/a", "example.com"),
        (b"https://127.0.0.1:8443/", "127.0.0.1"),
        (b"https://[::1]/a", "[::1]"),
        (b"https://[::1]:8443/a", "[::1]"),
        (b"HTTPS://[2001:DB8::1]/", "[2001:DB8::1]"),
        (b"https://under_score.example/", "under_score.example"),
        (b"https://caf%C3%A9.example/", "caf%C3%A9.example"),
        (b"https://a!$&'()*+,;=~-/", "a!$&'()*+,;=~-"),
        (b"https://[v1.a:b]:8443?q", "[v1.a:b]"),
        # Only of an absolute form.
        (b"/a", None),
        (b"//example.com/a", None),
        (b"/http://example.com/a", None),
        (b"/a?http://example.com/", None),
    ],
)
def test_the_host_of_an_absolute_form(target: bytes, host: str | None) -> None:
    """Which stands before the Host field (RFC 9112 section 3.2.2)."""
    assert parse_target(target).host == host


@pytest.mark.parametrize(
    "authority",
    [b"", b":80", b"[1]", b"[:::]", b"[1::2::3]", b"[1.2.3.4]", b"[v]", b"[.]", b"[]", b"a%", b"a%zz", b"u@a", b"\xfc"],
)
@pytest.mark.parametrize("path", [b"", b"/", b"/a", b"?q"])
def test_an_absolute_form_without_a_valid_host_is_refused(authority: bytes, path: bytes) -> None:
    with pytest.raises(BadTarget, match="names no host"):
        parse_target(b"https://" + authority + path)


# --- as rules see it


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", "/"),
        (b"/a", "/a"),
        (b"/a/", "/a/"),
        (b"/a/.", "/a/"),
        (b"/a/b/..", "/a/"),
        (b"/a/..", "/"),
        (b"//a//b", "/a/b"),
        (b"/./a/../b", "/b"),
        (b"/a?b/c/", "/a"),
        (b"/a/?b", "/a/"),
        (b"/%61%20b%25", "/a b%"),
        (b"/a%3fb%23c", "/a?b#c"),
        (b"/%c3%a9", "/é"),
        (b"/\xc3\xa9", "/é"),
        (b"/%ff", "/\udcff"),
        (b"/%0a", "/\n"),
        (b"https://example.com", "/"),
        (b"https://example.com/a/", "/a/"),
    ],
)
def test_the_decoded_path(target: bytes, path: str) -> None:
    assert parse_target(target).path() == path


@settings(deadline=None)
@given(targets())
def test_a_path_leads_back_to_the_same_names(target: bytes) -> None:
    result = parsed(target)
    path = result.path()
    assert path.startswith("/")
    assert "//" not in path
    assert os.fsencode(path).strip(b"/") == (b"" if result.file_path() == b"." else result.file_path())
    # The root is a folder, however it was asked for.
    assert path.endswith("/") == (result.directory or not result.names)
    assert target_of_path(path) == Target(result.names, result.directory)


@pytest.mark.parametrize(
    ("path", "names", "directory"),
    [
        ("/", (), True),
        ("", (), True),
        ("/a", (b"a",), False),
        ("a", (b"a",), False),
        ("/a/", (b"a",), True),
        ("/a/b.html", (b"a", b"b.html"), False),
        ("//a///b", (b"a", b"b"), False),
        ("/./a/.", (b"a",), True),
        ("/a/../b", (b"b",), False),
        ("/a/..", (), True),
        ("/a/b/..", (b"a",), True),
        # Decoded already: nothing in it is an escape or a query.
        ("/%2e%2e/a%20b", (b"%2e%2e", b"a%20b"), False),
        ("/a?b#c", (b"a?b#c",), False),
        ("/é", (b"\xc3\xa9",), False),
        ("/\udcff", (b"\xff",), False),
        ("/...", (b"...",), False),
        ("/.hidden", (b".hidden",), False),
    ],
)
def test_the_target_of_a_decoded_path(path: str, names: tuple[bytes, ...], directory: bool) -> None:
    assert target_of_path(path) == Target(names, directory)


@pytest.mark.parametrize("path", ["..", "/..", "/../a", "/a/../..", "/a/../../a", "//../a", "/./.."])
def test_no_decoded_path_leads_above_the_root(path: str) -> None:
    assert target_of_path(path) is None


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", ".c", "%2e"]), max_size=8).map("/".join))
def test_a_decoded_path_is_read_as_a_target_is(path: str) -> None:
    escaped = ("/" + path.replace("%", "%25")).encode()
    try:
        expected = parse_target(escaped)
    except BadTarget:
        assert target_of_path(path) is None
    else:
        assert target_of_path(path) == expected


# --- locations


@pytest.mark.parametrize(
    ("target", "location"),
    [
        (b"/", "/"),
        (b"/?q", "/?q"),
        (b"/?", "/?"),
        (b"/a", "/a"),
        (b"/a/", "/a/"),
        (b"/a/b", "/a/b"),
        (b"/a?q=1&r", "/a?q=1&r"),
        (b"/a/?q", "/a/?q"),
        (b"/a?", "/a?"),
        (b"/a?b/?c", "/a?b/?c"),
        (b"/a?/?c", "/a?/?c"),
        (b"/a??", "/a??"),
        (b"/a%3f/%3fb?c", "/a%3F/%3Fb?c"),
        (b"//evil.example/a", "/evil.example/a"),
        (b"/a/../b/./c", "/b/c"),
        (b"/a/b/..", "/a/"),
        (b"/..a", "/..a"),
        (b"/\\evil.example", "/%5Cevil.example"),
        (b"https://evil.example", "/"),
        (b"https://evil.example/a?b", "/a?b"),
        (b"/a%0d%0aSet-Cookie:b", "/a%0D%0ASet-Cookie:b"),
        (b"/%252e%252e", "/%252e%252e"),
        (b"/%c3%a9 \xff", "/%C3%A9%20%FF"),
        (b"/a?b%zz", "/a?b%zz"),
    ],
)
def test_the_location_of_a_target(target: bytes, location: str) -> None:
    assert parse_target(target).location() == location


@settings(deadline=None)
@given(targets(only_vchar=True))
def test_the_location_of_a_target_is_the_same_target(target: bytes) -> None:
    result = parsed(target)
    location = result.location()
    assert vchar(location.encode("ascii"))
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))
    again = parse_target(location.encode("ascii"))
    assert (again.names, again.directory, again.query) == (
        result.names,
        result.directory or not result.names,
        result.query,
    )
    assert again.location() == location


@settings(deadline=None)
@given(targets(only_vchar=True))
def test_a_location_is_printable_and_leads_back_to_the_folder(target: bytes) -> None:
    result = parsed(target)
    location = result.directory_location()
    assert vchar(location.encode("ascii"))
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))
    assert parse_target(location.encode("ascii")) == Target(result.names, True, result.query)


@pytest.mark.parametrize("query", [b"?\r\nSet-Cookie: a=b", b"?\0", b"?a b", b"?\x7f", b"?\xc3\xa9"])
def test_a_location_is_printable_whatever_the_query(query: bytes) -> None:
    """No URI has these (RFC 3986 section 3.4): refused or escaped, but not echoed."""
    try:
        target = parse_target(b"/a" + query)
    except BadTarget:
        return
    for location in (target.directory_location(), target.location()):
        assert location.isascii()
        assert vchar(location.encode())


@settings(deadline=None)
@given(targets())
def test_h11_lets_only_printable_targets_through(target: bytes) -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        assert not vchar(target)
        return
    assert isinstance(event, h11.Request)
    assert vchar(event.target)
