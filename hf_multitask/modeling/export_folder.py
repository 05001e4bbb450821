"""Folders of exported tasks: written whole or not at all, and uploaded as Transformers uploads what it saves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi

from .loading import pushing
from .saving import whole

CARD = "README.md"
# What an earlier export may have left beside weights that the new one has no counterpart of.
_STALE = (
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    "generation_config.json",
)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, whose files replace those in ``folder`` once all are written.

    Until then, and if writing fails, the old files stay as they are. An existing card stays.

    Raises:
        ValueError: ``folder`` is a file, or holds a multi-task model.
        OSError: the storage took no more.
    """
    _check_is_free(folder)
    with whole(folder) as new:
        yield new
        if (folder / CARD).exists():
            (new / CARD).unlink()
        stale = [folder / name for name in _STALE if not (new / name).exists()]
    for path in stale:
        path.unlink(missing_ok=True)


def _check_is_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file. Name a folder.")
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(found, dict) and found.get("model_type") == "multitask":
        raise ValueError(
            f"The folder '{folder}' holds a multi-task model, which an export would overwrite. Name another."
        )


def push_folder(
    folder: Path,
    repo_id: str,
    files: list[str],
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
) -> None:
    """Upload an exported task in one commit; the arguments beside its files are those of ``push_to_hub``.

    A card that the repository has stays, as ``push_to_hub`` leaves it.

    Raises:
        OSError: the Hub refuses, or is not there.
    """
    with pushing(repo_id):
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if api.file_exists(repo_id, CARD, revision=revision):
            files = [file for file in files if file != CARD]
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            create_pr=create_pr,
            allow_patterns=files,
        )
