"""What goes wrong with data sets."""

from __future__ import annotations


class DataError(ValueError):
    """A data set that is missing, damaged or inconsistent; the message is one sentence."""
