"""Tests of counters and their text formats."""
