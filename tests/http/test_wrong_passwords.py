"""The limit of wrong passwords, and the rank of client networks."""

from __future__ import annotations

import pytest

from ktlsd.config.limits import network_of
from ktlsd.config.networks import address_of
from ktlsd.config.options import LimitOptions
from ktlsd.http.wrong_passwords import FORGOTTEN_SECONDS, WrongPasswords

LIMITS = LimitOptions()


def network(address: str) -> int:
    return network_of(address_of(address), LIMITS)


def test_the_limit_by_minute() -> None:
    wrong, one = WrongPasswords(LimitOptions(client_wrong_passwords_per_minute=2)), network("192.0.2.1")
    for now in (0.0, 0.0):
        assert not wrong.wait(one, now)
        wrong.count(one, now)
    assert wrong.wait(one, 0.0) == pytest.approx(30)
    wrong.forgive(one)
    assert not wrong.wait(one, 0.0)
    unlimited = WrongPasswords(LimitOptions(client_wrong_passwords_per_minute=0))
    for _ in range(1000):
        unlimited.count(one, 0.0)
    assert not unlimited.wait(one, 0.0)


@pytest.mark.parametrize(
    ("attacker", "neighbour", "stranger"),
    [("192.0.2.1", "192.0.2.200", "192.0.3.1"), ("2001:db8::1", "2001:db8:0:5::1", "2001:db8:1::1")],
)
def test_a_rank_has_the_wrong_passwords_of_the_network_and_around_it(
    attacker: str, neighbour: str, stranger: str
) -> None:
    wrong = WrongPasswords(LIMITS)
    wrong.count(network(attacker), 0.0)
    wrong.count(network(attacker), 0.0)
    ranks = [wrong.rank(network(address), 0.0) for address in (attacker, neighbour, stranger)]
    assert ranks == pytest.approx([4, 2, 0])
    wrong.forgive(network(attacker))
    assert wrong.rank(network(attacker), 0.0) == pytest.approx(2)
    assert wrong.rank(network(attacker), FORGOTTEN_SECONDS / 2) == pytest.approx(0.5)
    assert wrong.rank(network(attacker), FORGOTTEN_SECONDS) == 0


def test_a_long_attack_is_forgotten_within_a_day() -> None:
    wrong, one = WrongPasswords(LIMITS), network("192.0.2.1")
    for second in range(0, 86_400, 6):
        wrong.count(one, float(second))
    assert wrong.rank(one, 2 * 86_400.0) == 0
