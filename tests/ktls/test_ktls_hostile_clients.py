"""The tests of test_hostile.py that kTLS could change, on a kernel with it."""

import pytest

from tests.wire.test_hostile import (  # noqa: F401
    _nothing_is_left,
    contents,
    root,
    server,
    test_a_client_hello_cut_at_any_byte,
    test_a_flood_of_key_updates,
    test_a_storm_of_resets,
    test_alien_records_in_a_download_spoil_their_own_connection_alone,
    test_half_open_handshakes_hold_up_nobody,
    test_readers_that_stop_cost_a_bounded_memory,
    test_renegotiation_is_refused,
    test_slow_requests_hold_up_nobody,
)

pytestmark = pytest.mark.ktls(machine="debian13")
