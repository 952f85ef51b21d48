"""Make the notebook of a page: text and Python in the order of the page. ``python docs/make_notebook.py`` writes it."""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGE = DOCS / "pages" / "how-to" / "slide-to-table.md"
NOTEBOOK = DOCS / "notebooks" / "slide-to-table.ipynb"

_CODE = re.compile(r"```python\n(.*?)```\n?", re.DOTALL)


def notebook(page: str) -> str:
    """Return the notebook, as JSON, of a page in Markdown."""
    cells = []
    for number, part in enumerate(_CODE.split(page)):  # text and code take turns
        if part.strip():
            cells.append(_cell(part.strip(), code=bool(number % 2), number=len(cells)))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cell(text: str, *, code: bool, number: int) -> dict[str, Any]:
    cell = {"id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
    more = {"cell_type": "code", "execution_count": None, "outputs": []} if code else {"cell_type": "markdown"}
    return cell | more


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
