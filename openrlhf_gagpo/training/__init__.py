"""Training: rows, mini-batch plan, losses and the iteration loop. Code that both backends need exists here once."""
