"""Plug-ins of my lab for cellvit."""
