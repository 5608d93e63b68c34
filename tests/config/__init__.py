"""Tests of options and of their file."""
