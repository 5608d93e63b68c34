"""Tests of HTTP/2's engine, without sockets: a matter of seconds. h2 and hpack are the second implementations."""
