"""Readers of whole slides, one file per family of formats."""
