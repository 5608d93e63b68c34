"""Tests of packages, systemd, proxies, documents, the fuzzer and the benchmark."""
