"""PanNuke: the folds as distributed, as stored by us, and the data module."""
