"""What tests of several folders share: drawn images and slides, tiny networks, stand-ins for models.

``tests/conftest.py`` puts ``tests/`` on the path, so a test writes ``from support.tiny import VIT``. A helper of one
folder stays in that folder; once a second folder needs it, it moves here.
"""
