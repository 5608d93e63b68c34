"""The tests of test_content_wire.py whose bodies go out in ways of their own, on a kernel with kTLS.

What is decided before a byte is sent (types, tags, conditions, redirects, error pages) is the same on every kernel.
"""

import pytest

from tests.wire.test_content_wire import (  # noqa: F401
    place,
    started,
    test_a_listing_as_a_page_is_chunked_and_safe,
    test_a_listing_keeps_the_connection,
    test_a_range_is_one_of_the_coded_bytes,
    test_http_1_0_gets_a_listing_up_to_the_end_of_the_connection,
    test_parts_of_a_coded_file_are_coded,
    test_parts_of_text_keep_their_line_ends,
    test_random_sets_of_ranges_come_as_what_the_file_has_there,
    test_several_ranges_come_as_parts,
)

pytestmark = pytest.mark.ktls(machine="debian13")
