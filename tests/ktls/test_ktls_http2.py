"""Everything of test_http2_wire.py once more, on a kernel with kTLS."""

import pytest

from tests.wire.test_http2_wire import *  # noqa: F403

pytestmark = pytest.mark.ktls(machine="debian12")
