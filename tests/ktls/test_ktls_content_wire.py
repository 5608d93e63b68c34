"""The tests of test_content_wire.py that kTLS could change, bodies of all kinds, on a kernel with it.

A response that is decided before a byte is sent (types, redirects, header rules, CORS) is the same on every kernel.
"""

import pytest

from tests.wire.test_content_wire import (  # noqa: F401
    place,
    started,
    test_a_client_that_leaves_in_the_middle_of_a_listing_leaves_nothing_behind,
    test_a_listing_as_a_page_is_chunked_and_safe,
    test_a_listing_as_json_names_what_can_be_asked_for,
    test_a_listing_keeps_the_connection,
    test_a_range_is_one_of_the_coded_bytes,
    test_a_range_of_an_empty_file_is_ignored,
    test_a_set_that_is_none_brings_the_whole,
    test_an_error_has_the_page_that_was_made_for_it,
    test_each_coding_has_a_tag_of_its_own_that_brings_304,
    test_files_without_a_date_have_tags_that_differ_and_no_last_modified,
    test_head_and_if_range_with_several_ranges,
    test_head_of_a_listing_has_its_fields,
    test_http_1_0_gets_a_listing_up_to_the_end_of_the_connection,
    test_more_ranges_than_anyone_needs_bring_the_whole,
    test_no_set_of_ranges_costs_more_than_the_file,
    test_parts_of_a_coded_file_are_coded,
    test_parts_of_text_keep_their_line_ends,
    test_random_sets_of_ranges_come_as_what_the_file_has_there,
    test_rewrites_send_another_file,
    test_several_ranges_come_as_parts,
    test_siblings_come_and_go_while_running,
    test_tags_change_with_what_they_are_made_of,
    test_two_versions_are_never_joined_by_if_range,
)

pytestmark = pytest.mark.ktls(machine="debian13")
