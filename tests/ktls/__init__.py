"""Tests of the kernel's TLS."""
