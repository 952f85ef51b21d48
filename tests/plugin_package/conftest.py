"""Keeps this project's own test run out of the package.

tests/cli/test_plugins.py installs it into a folder and runs its tests there. Here its names would lead nowhere, and
importing its modules would hide whether an installed package works.
"""

collect_ignore = ["src", "tests"]
