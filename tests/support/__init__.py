"""Helpers that several test files share: tiny models, made-up episodes, misbehaving environments."""
