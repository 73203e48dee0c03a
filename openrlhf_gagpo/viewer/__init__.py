"""Run folders, evaluation results and plain JSON lines as pages in a browser, for ``gagpo view``.

``sources`` finds what can be shown; ``records`` and ``stepfile`` read episodes, of which ``store`` keeps facts in
memory and beside the records; ``selection``, ``curves``, ``graph``, ``tokens`` and ``estimates`` prepare what a page
shows; ``pages`` renders it, and ``app`` serves the pages.
"""
