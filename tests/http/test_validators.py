"""Entity tags, dates and preconditions (RFC 9110 sections 5.6.7, 8.8 and 13)."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import signal
from collections.abc import Iterator
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlsd.http.validators import (
    Verdict,
    coded_tag,
    content_tag,
    entity_tag,
    http_date,
    is_dated,
    last_modified,
    parse_http_date,
    range_applies,
    size_mtime_tag,
    verdict,
)

TAG = '"1234-5-6-789"'
MODIFIED = 784111777
MODIFIED_NS = MODIFIED * 1_000_000_000 + 999_999_999
"""Nanoseconds below the second: no date has them."""
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"

# What etagc allows (section 8.8.3).
OPAQUE = st.text([chr(code) for code in (0x21, *range(0x23, 0x7F), *range(0x80, 0x100))], max_size=4)
DATE_PIECES = [
    "Sun",
    "Sun,",
    ",",
    "06",
    "06-Nov-94",
    "Nov",
    "1994",
    "08:49:37",
    "8:9",
    ":",
    "-",
    "+",
    ".",
    "GMT",
    "+99",
]
DATE_PIECES += ["\xb2", "9" * 5000]
SEPARATOR = st.sampled_from([",", ", ", " ,\t", ",,", " , ,, "])


def judge(fields: dict[str, str], tag: str = TAG) -> Verdict:
    return verdict(fields, tag, MODIFIED_NS)


@contextlib.contextmanager
def processor_seconds(limit: float) -> Iterator[None]:
    """Raise TimeoutError once the body has used so much processor time, even within a regular expression."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {limit} s of processor time")

    before = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


# --- entity tags (section 8.8.3)


def test_an_entity_tag_is_strong_and_quoted() -> None:
    assert entity_tag(0x1234, 5, 6, 0x789) == TAG


NUMBERS = st.tuples(*[st.integers(-(2**63), 2**64)] * 4)


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
def test_two_versions_have_two_entity_tags(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> None:
    assert (entity_tag(*one) == entity_tag(*other)) == (one == other)


def test_a_change_that_only_ctime_shows_changes_the_tag() -> None:
    """Fixed mtimes, the same size, and the inode number of the file that was removed a moment ago."""
    assert entity_tag(1_000_000_000, 10, 12, 1) != entity_tag(1_000_000_000, 10, 12, 2)


@settings(deadline=None)
@given(NUMBERS)
def test_an_entity_tag_matches_itself_as_a_client_sends_it_back(numbers: tuple[int, int, int, int]) -> None:
    tag = entity_tag(*numbers)
    assert judge({"if-none-match": tag}, tag) is Verdict.NOT_MODIFIED
    assert judge({"if-match": tag}, tag) is Verdict.PROCEED


def test_copies_with_one_mtime_share_a_size_mtime_tag() -> None:
    assert size_mtime_tag(0x1234, 0xABC) == '"1234-abc"'


def test_a_content_tag_is_the_digest() -> None:
    assert content_tag(b"\x00\xff\x22") == '"00ff22"'


@pytest.mark.parametrize("tag", [entity_tag(0x1234, 5, 6, 7), size_mtime_tag(0x1234, 5), content_tag(b"\x12")])
def test_each_coding_has_a_tag_of_its_own(tag: str) -> None:
    tags = {tag, *(coded_tag(tag, coding) for coding in ("zstd", "br", "gzip"))}
    assert len(tags) == 4
    assert f'{tag[:-1]}-br"' in tags
    for mine in tags:
        assert judge({"if-none-match": ", ".join(tags - {mine})}, mine) is Verdict.PROCEED
        assert judge({"if-none-match": f"W/{mine}"}, mine) is Verdict.NOT_MODIFIED
        assert judge({"if-match": mine}, mine) is Verdict.PROCEED


@settings(deadline=None)
@given(*[st.tuples(st.integers(0, 2**64), st.integers(0, 2**63), st.sampled_from(["", "zstd", "br", "gzip"]))] * 2)
def test_two_coded_versions_have_two_tags(one: tuple[int, int, str], other: tuple[int, int, str]) -> None:
    def tag(mtime_ns: int, size: int, coding: str) -> str:
        plain = size_mtime_tag(mtime_ns, size)
        return coded_tag(plain, coding) if coding else plain

    assert (tag(*one) == tag(*other)) == (one == other)


@pytest.mark.parametrize(
    ("value", "strong", "weak"),
    [
        (TAG, True, True),
        (f"W/{TAG}", False, True),
        ("*", True, True),
        (" * ", True, True),
        (f'"a", {TAG}', True, True),
        (f'{TAG}, "a"', True, True),
        (f'"a", W/{TAG}, "b"', False, True),
        (f"W/{TAG},{TAG}", True, True),
        (f'W/"a",{TAG}', True, True),
        # Empty list elements are to be taken (section 5.6.1.2).
        (f",, {TAG} ,\t,", True, True),
        (f'"a",,,{TAG}', True, True),
        # A comma or a W/ within the quotes is part of the tag.
        (f'"a,{TAG[1:]}', False, False),
        ('"W/1234-5-6-789"', False, False),
        ('"1234-5-6-789 "', False, False),
        ('""', False, False),
        ("", False, False),
        (",", False, False),
        # Not lists of entity tags.
        ("1234-5-6-789", False, False),
        ('"1234-5-6-789', False, False),
        (f"w/{TAG}", False, False),
        (f"W/ {TAG}", False, False),
        (f'"a" {TAG}', False, False),
        (f"{TAG}{TAG}", False, False),
        (f"{TAG}, x", False, False),
        (f"*, {TAG}", False, False),
        ("*, *", False, False),
        ("\xa0*", False, False),
        (f"'{TAG}'", False, False),
        (f"{TAG}\n", False, False),
    ],
)
def test_comparison_of_entity_tags(value: str, strong: bool, weak: bool) -> None:
    """If-Match compares strongly, If-None-Match weakly (section 8.8.3.2)."""
    assert judge({"if-match": value}) is (Verdict.PROCEED if strong else Verdict.PRECONDITION_FAILED)
    assert judge({"if-none-match": value}) is (Verdict.NOT_MODIFIED if weak else Verdict.PROCEED)


@settings(deadline=None)
@given(OPAQUE, st.lists(st.tuples(st.booleans(), OPAQUE), min_size=1, max_size=5), st.data())
def test_a_list_matches_when_one_of_its_tags_does(mine: str, tags: list[tuple[bool, str]], data: st.DataObject) -> None:
    tag = f'"{mine}"'
    value = data.draw(st.just("") | SEPARATOR)
    for weakness, opaque in tags:
        value += ("W/" if weakness else "") + f'"{opaque}"' + data.draw(SEPARATOR)
    strong = (False, mine) in tags
    assert judge({"if-match": value}, tag) is (Verdict.PROCEED if strong else Verdict.PRECONDITION_FAILED)
    weak = strong or (True, mine) in tags
    assert judge({"if-none-match": value}, tag) is (Verdict.NOT_MODIFIED if weak else Verdict.PROCEED)


@pytest.mark.parametrize("field", ["if-match", "if-none-match"])
@pytest.mark.parametrize(
    "value",
    [
        '"a"' + "," * 30_000 + "x",
        '"a"' + ", " * 15_000 + "x",
        "," * 30_000 + "x",
        '"a"' + " " * 30_000 + "x",
        '"a",' * 7_000 + "x",
        '"' * 30_001,
        'W/"' * 10_000,
    ],
    ids=["commas", "commas and spaces", "leading commas", "spaces", "tags", "quotes", "weak quotes"],
)
def test_a_list_costs_time_in_proportion_to_its_length(field: str, value: str) -> None:
    with processor_seconds(0.2):
        outcome = judge({field: value})
    assert outcome is (Verdict.PRECONDITION_FAILED if field == "if-match" else Verdict.PROCEED)


# --- dates (section 5.6.7)


@pytest.mark.parametrize("value", [DATE, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"])
def test_all_three_forms_of_a_date_are_read(value: str) -> None:
    assert parse_http_date(value) == MODIFIED


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Wed, 31 Dec 1969 23:59:59 GMT", -1),
        ("Thu, 29 Feb 2024 23:59:59 GMT", 1709251199),
        ("Tue, 19 Jan 2038 03:14:08 GMT", 2**31),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1483228800),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253402300799),
        ("Thu Nov 16 08:49:37 2023", 1700124577),
    ],
)
def test_a_date_is_read_to_the_second(value: str, seconds: int) -> None:
    assert parse_http_date(value) == seconds


@settings(deadline=None)
# From the year 1000 to the year 9999.
@given(st.integers(-30610224000, 253402300799))
def test_a_written_date_is_read_back(seconds: int) -> None:
    text = http_date(seconds)
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    assert text == moment.strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert parse_http_date(text) == seconds


def test_a_date_is_cut_to_the_second() -> None:
    assert http_date(MODIFIED + 0.999) == DATE


@pytest.mark.parametrize("years", [-40, -10, 0, 10, 40, 48])
def test_a_two_digit_year_is_within_fifty_years(years: int) -> None:
    """More than 50 years ahead means the past century (section 5.6.7): nothing nearer does."""
    moment = datetime.datetime(datetime.datetime.now().year + years, 7, 1, tzinfo=datetime.UTC)
    assert parse_http_date(moment.strftime("%A, %d-%b-%y %H:%M:%S GMT")) == moment.timestamp()


def test_a_two_digit_year_over_fifty_years_ahead_is_past() -> None:
    moment = datetime.datetime(datetime.datetime.now().year + 52 - 100, 7, 1, tzinfo=datetime.UTC)
    assert parse_http_date(moment.strftime("%A, %d-%b-%y %H:%M:%S GMT")) == moment.timestamp()


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "*",
        "0",
        "-1",
        "784111777",
        "yesterday",
        TAG,
        "Sun, 06 Foo 1994 08:49:37 GMT",
        "Sun, 06 Nov 10000 08:49:37 GMT",
        "1994-11-06T08:49:37Z",
        f"{DATE}, {DATE}",
        f"{DATE}, {LATER}",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 +0200",
        "Sun, 06 Nov 1994 08:49:37 EST",
        "Sun, 06 Nov 1994 08:49 GMT",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:61:61 GMT",
        "Sun, 99 Nov 1994 08:49:37 GMT",
        "Thu, 31 Feb 2024 00:00:00 GMT",
        "Sun, " + "9" * 4000 + " Nov 1994 08:49:37 GMT",
    ],
    ids=lambda value: repr(value[:72]),
)
def test_what_is_not_an_http_date_is_none(value: str) -> None:
    assert parse_http_date(value) is None


@pytest.mark.parametrize("field", ["if-modified-since", "if-unmodified-since"])
@pytest.mark.parametrize("date", [EARLIER, DATE, LATER])
def test_a_list_of_dates_is_no_condition(field: str, date: str) -> None:
    """Sections 13.1.3 and 13.1.4: MUST be ignored. A field that came twice looks like this."""
    assert judge({field: f"{date}, {date}"}) is Verdict.PROCEED


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from(DATE_PIECES), max_size=7).map(" ".join))
def test_no_text_breaks_the_reading_of_dates(value: str) -> None:
    seconds = parse_http_date(value)
    assert seconds is None or judge({"if-modified-since": value}) in (Verdict.PROCEED, Verdict.NOT_MODIFIED)


# --- preconditions (section 13)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Verdict.PROCEED),
        ({"if-unmodified-since": EARLIER}, Verdict.PRECONDITION_FAILED),
        ({"if-unmodified-since": DATE}, Verdict.PROCEED),
        ({"if-unmodified-since": LATER}, Verdict.PROCEED),
        ({"if-unmodified-since": "never"}, Verdict.PROCEED),
        ({"if-modified-since": EARLIER}, Verdict.PROCEED),
        ({"if-modified-since": DATE}, Verdict.NOT_MODIFIED),
        ({"if-modified-since": LATER}, Verdict.NOT_MODIFIED),
        ({"if-modified-since": "never"}, Verdict.PROCEED),
        ({"if-modified-since": "Sunday, 06-Nov-94 08:49:37 GMT"}, Verdict.NOT_MODIFIED),
        ({"if-unmodified-since": "Sun Nov  6 08:49:36 1994"}, Verdict.PRECONDITION_FAILED),
        # An entity tag takes the word from a date, even one that cannot be read.
        ({"if-none-match": "?", "if-modified-since": DATE}, Verdict.PROCEED),
        ({"if-match": "?", "if-unmodified-since": DATE}, Verdict.PRECONDITION_FAILED),
        ({"range": "bytes=0-0", "if-range": '"other"'}, Verdict.PROCEED),
    ],
)
def test_one_precondition(fields: dict[str, str], expected: Verdict) -> None:
    assert judge(fields) is expected


VALUES: dict[str, dict[bool | None, str | None]] = {
    "if-match": {None: None, True: TAG, False: '"other"'},
    "if-unmodified-since": {None: None, True: DATE, False: EARLIER},
    "if-none-match": {None: None, True: '"other"', False: TAG},
    "if-modified-since": {None: None, True: EARLIER, False: DATE},
}
"""Each field's value for a condition that is absent, true or false."""


@pytest.mark.parametrize("conditions", list(itertools.product((None, True, False), repeat=4)), ids=repr)
def test_precedence_is_that_of_section_13_2_2(conditions: tuple[bool | None, ...]) -> None:
    if_match, if_unmodified_since, if_none_match, if_modified_since = conditions
    fields = {
        name: text for name, state in zip(VALUES, conditions, strict=True) if (text := VALUES[name][state]) is not None
    }
    expected = Verdict.PROCEED
    first = if_match if if_match is not None else if_unmodified_since
    second = if_none_match if if_none_match is not None else if_modified_since
    if first is False:
        expected = Verdict.PRECONDITION_FAILED
    elif second is False:
        expected = Verdict.NOT_MODIFIED
    assert judge(fields) is expected


@pytest.mark.parametrize(
    ("if_range", "applies"),
    [
        (None, True),
        (TAG, True),
        (DATE, True),
        # Only the strong comparison, and only the exact date (section 13.1.5).
        (f"W/{TAG}", False),
        ('"other"', False),
        (EARLIER, False),
        (LATER, False),
        ("Sunday, 06-Nov-94 08:49:37 GMT", False),
        (f'{TAG}, "other"', False),
        ("*", False),
        ("", False),
        (TAG.strip('"'), False),
    ],
)
def test_if_range_must_name_this_very_representation(if_range: str | None, applies: bool) -> None:
    assert range_applies(if_range, TAG, MODIFIED_NS, MODIFIED + 3600) is applies


@pytest.mark.parametrize(
    ("age", "applies"),
    [(-3600, False), (-0.1, False), (0, False), (0.9, False), (1.0, False), (1.05, False), (1.2, True), (60, True)],
)
def test_a_date_counts_only_once_its_second_is_over(age: float, applies: bool) -> None:
    """Within it the file can change again and have the same Last-Modified (section 8.8.2.2)."""
    now = MODIFIED + age
    assert range_applies(DATE, TAG, MODIFIED_NS, now) is applies
    assert range_applies(TAG, TAG, MODIFIED_NS, now)


@pytest.mark.parametrize(
    ("age", "sent"),
    # What the nanoseconds say beyond the second is not to be seen; the second that is not over yet is.
    [(-1e9, -1e9), (-3600, -3600), (-1, -1), (-0.1, -1), (0, 0), (0.9, 0), (1.0, 0), (60, 0), (1e9, 0)],
)
def test_last_modified_is_that_of_the_file_or_now(age: float, sent: float) -> None:
    """No later than Date (section 8.8.2.1)."""
    assert last_modified(MODIFIED_NS, MODIFIED + age) == http_date(MODIFIED + sent)


@pytest.mark.parametrize(
    ("mtime_ns", "dated"),
    [
        (-1, True),
        (0, False),
        (999_999_999, False),
        (1_000_000_000, False),
        (1_999_999_999, False),
        (2_000_000_000, True),
        (315_532_800_000_000_000, True),
    ],
)
def test_second_0_and_second_1_are_no_dates(mtime_ns: int, dated: bool) -> None:
    """Nix and reproducible images give them to every file: no cache may conclude that it is 50 years old."""
    assert is_dated(mtime_ns) is dated
    seconds = mtime_ns // 10**9
    date = http_date(seconds)
    assert last_modified(mtime_ns, 1e9) == (date if dated else None)
    assert range_applies(date, TAG, mtime_ns, 1e9) is dated
    assert range_applies(TAG, TAG, mtime_ns, 1e9)
    assert verdict({"if-modified-since": date}, TAG, mtime_ns) is (Verdict.NOT_MODIFIED if dated else Verdict.PROCEED)
    assert verdict({"if-unmodified-since": http_date(seconds - 1)}, TAG, mtime_ns) is (
        Verdict.PRECONDITION_FAILED if dated else Verdict.PROCEED
    )
    assert verdict({"if-none-match": TAG}, TAG, mtime_ns) is Verdict.NOT_MODIFIED
    assert verdict({"if-match": '"x"'}, TAG, mtime_ns) is Verdict.PRECONDITION_FAILED


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.floats(0, 4e9))
def test_last_modified_is_never_later_than_now_or_the_file(mtime_ns: int, now: float) -> None:
    date = last_modified(mtime_ns, now)
    if date is None:
        assert 0 <= mtime_ns < 2 * 10**9
        return
    assert not 0 <= mtime_ns < 2 * 10**9
    sent = parse_http_date(date)
    assert sent == min(mtime_ns // 10**9, int(now))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["write", "get"]), st.floats(0.001, 0.8)), min_size=1, max_size=30),
    st.floats(0, 1),
    st.floats(0, 0.01),
)
def test_a_date_that_is_good_for_a_range_is_of_one_version_alone(
    steps: list[tuple[str, float]], start: float, tick: float
) -> None:
    """However a file is rewritten, and though its clock lags: all parts that a date gets are of one version.

    So is the representation that the date came with, where it was a second old as section 8.8.2.2 asks of clients.
    """
    now = MODIFIED + start
    version, mtime_ns = 0, int((now - tick) * 1e9)
    seen: dict[str, set[int]] = {}
    for step, pause in steps:
        now += pause
        if step == "write":
            version, mtime_ns = version + 1, int((now - tick) * 1e9)
            continue
        for date, versions in seen.items():
            if range_applies(date, TAG, mtime_ns, now):
                versions.add(version)
                assert versions == {version}
        sent = last_modified(mtime_ns, now)
        assert sent is not None
        modified = parse_http_date(sent) or 0
        assert modified <= now
        versions = seen.setdefault(sent, set())
        # The second, and one more for the clock's lag.
        if int(now) - modified > 1:
            versions.add(version)
