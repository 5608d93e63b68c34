"""Tests of lookup, rules and listings below a root."""
