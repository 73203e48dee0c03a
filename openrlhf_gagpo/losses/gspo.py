"""One importance ratio per action, the geometric mean of its tokens' ratios."""

NAME = "gspo"
