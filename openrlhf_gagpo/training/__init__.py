"""Training: rows, mini-batch plan, losses and the iteration loop. What both backends need exists here, once."""
