"""HTTP/2 frames of a file over kTLS: the ways that bench/frame_ways.py compares, by the records that arrive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from bench.frame_ways import CHECKED, HEADER, RECORD, WAYS, Measurement

pytestmark = pytest.mark.ktls

ALERT = 2
"""Bytes of the close_notify at the end."""


@pytest.fixture(scope="module")
def measurement(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurement]:
    measurement = Measurement(tmp_path_factory.mktemp("frames") / "site", CHECKED)
    yield measurement
    measurement.close()


@pytest.mark.parametrize("way", ["pairs", "copied", "mapped", "copied of 64 KiB", "mapped of 64 KiB"])
def test_frames_fill_tls_records_and_the_bytes_are_those_of_the_file(measurement: Measurement, way: str) -> None:
    found = measurement.check(way)
    assert found.body == measurement.path.read_bytes()[:CHECKED]
    frames = found.frames.total()
    full, last = divmod(CHECKED + frames * HEADER.size, RECORD)
    assert found.records == Counter({RECORD: full}) + Counter([last, ALERT])


def test_frames_of_half_a_record_make_records_of_half_the_size(measurement: Measurement) -> None:
    found = measurement.check("pairs of 8 KiB")
    assert found.records[RECORD // 2] == CHECKED // (RECORD // 2 - HEADER.size)
    assert RECORD not in found.records


def test_a_sample_has_user_and_system_time_and_calls(measurement: Measurement) -> None:
    assert measurement.sample("copied").calls < measurement.sample("pairs").calls
    assert measurement.sample("copied").system > 0
    assert set(WAYS) > {"http/1.1", "pairs", "copied", "mapped"}
