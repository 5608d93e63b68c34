"""The tests of test_wire.py that are about connections, bodies and the ends of both, on a kernel with kTLS."""

import pytest

from tests.wire.test_wire import (  # noqa: F401
    server,
    site,
    test_a_chunked_request_body_is_skipped,
    test_a_connection_ends_with_close_notify,
    test_a_large_request_body_ends_the_connection_after_the_answer,
    test_a_range_is_that_part_of_the_file,
    test_a_small_request_body_is_skipped,
    test_files_of_every_size_arrive_whole,
    test_get_sends_the_file_with_its_metadata,
    test_head_has_the_fields_of_get,
    test_http_1_0_is_answered_and_closed,
    test_keep_alive_and_pipelining_answer_in_order,
    test_malformed_requests_are_refused_and_the_connection_closed,
    test_old_tls_is_refused,
    test_plain_http_is_told_so,
    test_sessions_resume,
    test_what_cannot_be_served_gets_a_short_answer_and_a_logged_reason,
)

pytestmark = pytest.mark.ktls
