"""Playing of episodes: prompt, policy, parsing, environment step, and the records of played episodes."""
