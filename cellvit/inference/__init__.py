"""Whole slides, from reading to files: a stream through reading, network, post-processing, seams and writers."""
