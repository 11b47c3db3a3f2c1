"""Preference texts written by language models, for the recommender to train on."""
