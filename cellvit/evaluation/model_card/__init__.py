"""Model cards: what a model scores, measured and drawn."""
