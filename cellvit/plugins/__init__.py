"""Plug-ins: the registries and how a component is named in a configuration, built, and written back."""
