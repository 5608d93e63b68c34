"""Tests of what OpenSSL is told and tells, without a C pointer."""
