"""Attacks on a running server as repeatable programs, and the checks that each of them ends with."""
