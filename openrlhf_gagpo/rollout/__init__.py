"""Playing episodes: prompt, policy, parsing, environment step, and the records of what was played."""
