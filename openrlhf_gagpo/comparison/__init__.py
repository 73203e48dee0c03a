"""Credit of several estimators on the same recorded steps, for ``gagpo credit``."""
