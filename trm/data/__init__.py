"""Items, interactions, splits and prepared data sets: numpy only."""
