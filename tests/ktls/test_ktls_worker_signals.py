"""Everything of test_worker_signals.py once more, on a kernel with kTLS. One OpenSSL is enough for signals."""

import pytest

from tests.wire.test_worker_signals import *  # noqa: F403

pytestmark = pytest.mark.ktls(machine="debian12")
