"""Responses at a pace on a kernel with kTLS, which ends a record with each turn."""

import pytest

from tests.wire.test_rates import server, test_every_byte_arrives_over_tls  # noqa: F401

pytestmark = pytest.mark.ktls(machine="debian13")
