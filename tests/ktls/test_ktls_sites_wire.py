"""The tests of test_sites_wire.py that are about handshakes and sessions, on a kernel with kTLS."""

import pytest

from tests.wire.test_sites_wire import (  # noqa: F401
    place,
    test_a_client_gets_the_key_type_that_its_ciphers_are_for,
    test_a_client_that_can_verify_no_key_of_a_site_is_refused,
    test_a_client_without_a_server_name_may_ask_for_any_site,
    test_a_host_of_another_site_than_the_handshakes_is_misdirected,
    test_a_name_gets_its_certificate_and_its_folder,
    test_a_resumed_session_is_for_its_own_site_alone,
    test_a_session_of_a_shared_certificate_follows_the_name_of_the_new_handshake,
    test_a_session_of_one_site_is_not_resumed_by_another,
    test_a_tls_1_3_client_gets_the_key_type_that_it_can_verify,
    test_other_names_get_the_nearest_wildcard_or_the_default,
)

pytestmark = pytest.mark.ktls(machine="debian13")
