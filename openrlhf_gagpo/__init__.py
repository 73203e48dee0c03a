"""GAGPO and other step-level credit methods for LLM agents in text environments, on top of OpenRLHF.

Importing this package imports nothing else; every part loads what it needs.
"""

__version__ = "0.2.0.dev0"
"""The only place that names the version; setup.py reads this line."""
