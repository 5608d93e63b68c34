"""Everything of test_acme_wire.py once more, on a kernel with kTLS."""

import pytest

from tests.wire.test_acme_wire import *  # noqa: F403

pytestmark = pytest.mark.ktls(machine="debian13")
