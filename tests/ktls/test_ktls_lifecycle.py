"""Everything of test_lifecycle.py once more, on a kernel with kTLS."""

import pytest

from tests.wire.test_lifecycle import *  # noqa: F403

pytestmark = pytest.mark.ktls(machine="debian12")
