"""Tests of test_http2_limits.py that send large files once more, on a kernel with kTLS."""

import pytest

from tests.wire.test_http2_limits import (
    root,
    test_closed_windows_of_a_busy_connection,
    test_more_streams_than_descriptors,
    test_ping_does_not_extend_the_idle_time,
)

__all__ = [
    "root",
    "test_closed_windows_of_a_busy_connection",
    "test_more_streams_than_descriptors",
    "test_ping_does_not_extend_the_idle_time",
]

pytestmark = pytest.mark.ktls(machine="debian12")
