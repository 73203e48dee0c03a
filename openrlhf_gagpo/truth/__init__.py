"""True values and advantages of the policy that played recorded steps, for ``gagpo credit --truth``."""
