"""What entries of OpenSSL's error queue mean: pure."""

from __future__ import annotations

import errno
import os

import pytest

from ktlsd.openssl.error_queue import connection_error, file_reason, in_words
from ktlsd.openssl.errors import ConnectionLost, PlainHTTP, TLSError

# ERR_PACK(lib, 0, reason) of err.h in OpenSSL 3; lib 20 is libssl, 11 X.509, and system errors have the highest bit.
LIBSSL = 20 << 23
X509 = 11 << 23
SYSTEM = 1 << 31


def never() -> str:
    raise AssertionError("only a failed verification is asked for")


def test_reasons_come_in_one_line() -> None:
    assert in_words([(LIBSSL | 156, "http request"), (X509 | 1, "other")]) == "http request; other"
    assert in_words([]) == "no reason given"


def test_the_first_reason_says_why_a_file_is_no_good() -> None:
    queue = [(SYSTEM | errno.ENOENT, "No such file or directory"), (LIBSSL | 2, "system lib")]
    assert file_reason(queue, "a.pem") == "No such file or directory"
    assert file_reason([], "a.pem") == "no reason given"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_lack_of_descriptors_or_memory_is_not_the_files_fault(number: int) -> None:
    queue = [(LIBSSL | 2, "system lib"), (SYSTEM | number, os.strerror(number))]
    with pytest.raises(OSError, match=r"a\.pem") as raised:
        file_reason(queue, "a.pem")
    assert raised.value.errno == number


@pytest.mark.parametrize(
    ("packed", "kind", "message"),
    [
        (LIBSSL | 156, PlainHTTP, "reason"),
        (LIBSSL | 294, ConnectionLost, "reason"),
        (LIBSSL | 322, TLSError, "the peer updated its keys, which kTLS RX cannot follow (reason)"),
        (LIBSSL | 193, TLSError, "reason"),
        # The same numbers mean other things in other libraries.
        (X509 | 156, TLSError, "reason"),
        (X509 | 294, TLSError, "reason"),
        (X509 | 134, TLSError, "reason"),
    ],
)
def test_libssls_reason_says_what_ended_a_connection(packed: int, kind: type[TLSError], message: str) -> None:
    error = connection_error([(packed, "reason")], never)
    assert type(error) is kind
    assert str(error) == message


def test_a_failed_verification_says_what_is_wrong_with_the_certificate() -> None:
    error = connection_error([(LIBSSL | 134, "certificate verify failed")], lambda: "certificate has expired")
    assert type(error) is TLSError
    assert str(error) == "certificate verify failed: certificate has expired"


def test_an_empty_queue_has_an_error_too() -> None:
    assert str(connection_error([], never)) == "no reason given"
