"""curl over kTLS: the tests of test_clients.py that need no other client."""

import pytest

from tests.wire.test_clients import (  # noqa: F401
    root,
    server,
    test_curl_head,
    test_curl_keeps_its_connection,
    test_curl_resumes,
    test_curl_several_ranges,
)

pytestmark = pytest.mark.ktls(machine="debian12")
