"""Prepared arrays on disk: format, checks, reading and writing."""
