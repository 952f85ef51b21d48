"""Formats of nuclei, a module for each, and the registry of them: :data:`cellvit.io.formats.base.FORMATS`."""
