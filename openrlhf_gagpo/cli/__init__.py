"""The ``gagpo`` command."""
