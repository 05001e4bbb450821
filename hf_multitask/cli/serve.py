"""``hf-multitask serve MODEL``: a server that answers requests with the tasks of a saved model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..modeling.aliases import Open
from ..serving import Settings, check_extra, serve
from .saved import load_saved, processor_of


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("serve", description=(__doc__ or "").replace("``", ""))
    parser.add_argument("model", help="folder or Hub id of a multi-task model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 for a free one (default: 8000)")
    parser.add_argument(
        "--max_batch_size", type=int, default=32, help="inputs of all clients in one pass of the model (default: 32)"
    )
    parser.add_argument(
        "--max_wait_ms",
        type=float,
        default=5.0,
        help="milliseconds that an input waits for others to join its pass (default: 5)",
    )
    parser.add_argument(
        "--max_queue", type=int, default=1024, help="inputs that wait, above which clients get a 429 (default: 1024)"
    )
    parser.add_argument("--tasks", nargs="+", help="names of the tasks to serve (default: all)")
    parser.add_argument("--onnx", action="store_true", help="run the model with ONNX Runtime")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with the model (default: 1)")
    parser.add_argument("--token_file", help="a file with a token, which clients then have to send")


def run(namespace: argparse.Namespace, words: Sequence[str]) -> None:
    """Serve until a signal ends the server.

    Raises:
        ImportError: the extra ``serve`` is not installed.
        OSError: the address or the file of the token cannot be used.
        ValueError: an argument or the model cannot be used.
    """
    if words:
        raise ValueError(f"serve does not accept the argument '{words[0]}'. Remove it.")
    check_extra()
    numbers = {name: getattr(namespace, name) for name in ("max_batch_size", "max_wait_ms", "max_queue", "workers")}
    settings = Settings(
        model=namespace.model,
        host=namespace.host,
        port=namespace.port,
        token=None if namespace.token_file is None else read_token(Path(namespace.token_file)),
        **numbers,
    )
    serve(settings, partial(load, namespace.model, namespace.tasks, namespace.onnx))


def read_token(path: Path) -> str:
    """The token in a file, without the white space around it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no token.
    """
    try:
        token = path.expanduser().read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        token = ""
    except OSError as problem:
        raise OSError(
            f"The file '{path}' of --token_file cannot be read ({problem.strerror}). Name a file with one token."
        ) from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"The file '{path}' of --token_file should hold one token: letters, digits and signs in ASCII."
        )
    return token


def load(name: str, tasks: Sequence[str] | None, onnx: bool) -> Open:
    """The pipeline of a saved model.

    Raises:
        ValueError: a task is unknown, or the model cannot be served.
    """
    from ..serving.served import ServedPipeline

    model, given = load_saved(name)
    asked = {} if tasks is None else {"tasks": list(dict.fromkeys(tasks))}
    pipeline = ServedPipeline(model=model.eval(), **processor_of(given), **asked)
    if onnx:
        from ..serving.graph import run_by_graph

        run_by_graph(pipeline)
    return pipeline
