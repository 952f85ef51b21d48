"""A cache of the Hugging Face hub as its client writes it, for tests without a network."""

import hashlib
import io
import json
from pathlib import Path

import torch
from safetensors.torch import save


def write_repository(cache: Path, repo: str, files: dict[str, bytes], *, branch: str = "main") -> str:
    """Write the files of one commit and return its name."""
    root = cache / f"models--{repo.replace('/', '--')}"
    commit = hashlib.sha1(repr(sorted((name, digest(body)) for name, body in files.items())).encode()).hexdigest()
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / branch).write_text(commit)
    for name, body in files.items():
        blob, link = root / "blobs" / digest(body), root / "snapshots" / commit / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(body)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
    return commit


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def safetensors(state: dict[str, torch.Tensor]) -> bytes:
    return save({name: value.contiguous() for name, value in state.items()})


def pickled(state: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def configuration(**content: object) -> bytes:
    return json.dumps(content).encode()
