"""Recorded credit that anybody's implementation can be checked against.

``python -m openrlhf_gagpo.credit.conformance MODULE:FUNCTION`` calls a function for every recorded case of an estimator
and compares what it returns. ``cases.jsonl.gz`` holds steps with the numbers of an independent slow implementation;
``checks.json`` says which estimator and options each recorded key belongs to.
"""
