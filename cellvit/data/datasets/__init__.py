"""Other data sets as they are distributed."""
