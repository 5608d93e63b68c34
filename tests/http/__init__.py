"""Tests of the semantics of HTTP, without sockets and files: a matter of seconds."""
