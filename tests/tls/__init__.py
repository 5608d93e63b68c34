"""Tests of TLS below HTTP."""
