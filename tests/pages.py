"""The complete files that the documentation shows."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def files_of(page: str) -> dict[str, str]:
    """Text by name of the Python blocks of a page that begin with the name of their file."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, flags=re.DOTALL))
