"""Tests of the protocols of HTTP, without a server."""
