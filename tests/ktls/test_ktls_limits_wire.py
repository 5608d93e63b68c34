"""Everything of test_limits_wire.py once more, on a kernel with kTLS."""

import pytest

from tests.wire.test_limits_wire import *  # noqa: F403

# Debian 12 adds nothing: it receives TLS 1.3 as a kernel without kTLS does, and sends as Debian 13 does.
pytestmark = pytest.mark.ktls(machine="debian13")
