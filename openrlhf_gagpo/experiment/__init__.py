"""``gagpo compare``: a matrix of algorithms, settings and seeds, run cell by cell, and its report with intervals."""
