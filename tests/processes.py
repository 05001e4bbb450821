"""Scripts in processes of their own, where the package cannot be imported unless they do not ask for that."""

import json
import os
import subprocess
import sys

BLOCK = """
import json, sys

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_multitask":
            raise ModuleNotFoundError(name)

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
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])
