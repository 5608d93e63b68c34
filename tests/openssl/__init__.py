"""Tests of OpenSSL's inputs and outputs, without C pointers."""
