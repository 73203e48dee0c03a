"""PPO's loss with one importance ratio per token."""

NAME = "ppo"
