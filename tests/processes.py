"""Scripts in processes of their own, where the package cannot be imported unless they do not ask for that."""

import json

from fork_server import python

BLOCK = """
import json, sys

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_multitask":
            raise ModuleNotFoundError(name)

assert "hf_multitask" not in sys.modules
sys.meta_path.insert(0, NoPackage())
"""

REFUSED = (
    BLOCK
    + """
from transformers import AutoModel
try:
    AutoModel.from_pretrained(sys.argv[1], trust_remote_code=False)
except ValueError as problem:
    print(json.dumps(str(problem)))
"""
)


def run(script: str, *arguments: str, **environment: str):
    """What the last line says that a script prints."""
    result = python(script, *arguments, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])
