"""Names for plain values, which JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

State = dict[str, Any]  # of a part in a checkpoint, or of a report: plain values by name
Saved = Mapping[str, Any]  # such a state, to be read
