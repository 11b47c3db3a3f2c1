"""Engines that sample completions, behind one Protocol."""
