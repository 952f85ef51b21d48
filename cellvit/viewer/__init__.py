"""A viewer of slides and their nuclei in the browser: a small server for one person on this machine, and its page.

The server is in :mod:`cellvit.viewer.app`; starlette and uvicorn, the extra ``view``, are imported when it is used.
``cellvit.view("results/slide1")`` shows it in a notebook: :func:`cellvit.viewer.notebook.view`.
"""
