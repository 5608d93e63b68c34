"""Tests of sockets and transports, over loopback."""
