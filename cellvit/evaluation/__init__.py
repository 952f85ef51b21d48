"""Evaluation of trained models: scores of a test set, and the report of a cross-validation."""
