"""Agents: policies that play the environment, their evaluation and training. Imports nothing heavy."""
