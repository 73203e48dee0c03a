"""Recorded episodes in formats that other programs read: one file each in ``export.formats``, registered by name."""
