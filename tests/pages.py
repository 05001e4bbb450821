"""The complete files that the documentation shows, and the cells of notebooks."""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = DOCS.parent / "examples" / "notebooks"


def files_of(page: str) -> dict[str, str]:
    """Text by name of the Python blocks of a page that begin with the name of their file."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, flags=re.DOTALL))


def cells_of(path: Path, kind: str) -> list[str]:
    """The texts of the cells of a notebook, ``code`` or ``markdown``, without commands of the shell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]
    return [re.sub(r"^!.*$", "pass", text, flags=re.MULTILINE) if kind == "code" else text for text in texts]
