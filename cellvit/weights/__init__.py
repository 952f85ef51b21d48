"""Weights: what is known of them, where they lie, their licences, and how they are read safely."""
