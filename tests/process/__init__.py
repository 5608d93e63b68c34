"""Tests of the life of the service: start, workers, reload, privileges."""
