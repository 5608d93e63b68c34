"""Tests of logs, without a server."""
