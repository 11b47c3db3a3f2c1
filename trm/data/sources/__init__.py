"""One reader a raw format; each gives a prepared data set."""
