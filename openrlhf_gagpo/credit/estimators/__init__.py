"""One file per advantage estimator; every module in this package is imported with ``openrlhf_gagpo.credit``."""
