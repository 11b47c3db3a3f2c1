"""Policies of Stable-Baselines3 on the numeric views: settings, training environment, checkpoints, trainer."""
