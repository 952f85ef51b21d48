"""Pre-trained weights for an encoder, from the files that others publish. Nothing in a file is run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from cellvit.encoders.base import Encoder
from cellvit.errors import WeightsError
from cellvit.weights.catalogue import announce_file, published_files
from cellvit.weights.safe_loading import open_safely
from cellvit.weights.state_dict import misfits


def load_encoder_weights(encoder: Encoder, path: str | Path) -> None:
    """Fill an encoder with the weights of a file; every tensor must find its place.

    Args:
        encoder: Names in the file are translated by its :meth:`Encoder.weights_from`.
        path: ``.safetensors``, or else a file of ``torch.save`` such as ``.pth`` and ``.pt``.

    Raises:
        WeightsError: If the file cannot be read safely, or a tensor is missing, unknown or of another shape; the
            encoder is then unchanged.
    """
    path = Path(path)
    try:
        state = encoder.weights_from(read_weights(path))
    except WeightsError as error:
        raise WeightsError(f"weights {str(path)!r}: {error}") from error
    problems = misfits(encoder.state_dict(), state)
    if problems:
        raise WeightsError(
            f"weights {str(path)!r} do not fit encoder {type(encoder).__name__}; {'; '.join(problems)}; "
            f"choose the encoder they were made for{f' ({published_files()})' if encoder.has_published_files else ''}"
        )
    encoder.load_state_dict(state)
    announce_file(path)


def read_weights(path: Path) -> Mapping[str, Any]:
    """Return the content of a weight file, on the CPU.

    Args:
        path: ``.safetensors``, or else a file of ``torch.save``.

    Raises:
        WeightsError: If there is no such file, it is damaged, holds more than plain data, or no names.
    """
    if not path.is_file():
        raise WeightsError(f"no such file; fetch it or correct the path ({published_files()})")
    if path.suffix != ".safetensors":
        content = open_safely(path)
    else:
        try:
            content = load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"not a weight file or damaged ({error}); fetch it again") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"holds a {type(content).__name__} instead of named tensors; give a file of weights")
    return content


def rename(content: Mapping[str, Any], rule: Callable[[str], str | None]) -> dict[str, Any]:
    """Return tensors under the names that a rule gives.

    Args:
        content: Tensors by their name in the file.
        rule: New name of a name, None to leave the tensor out.

    Raises:
        WeightsError: If two tensors get the same name.
    """
    renamed: dict[str, Any] = {}
    for name, tensor in content.items():
        new = rule(str(name))
        if new is None:
            continue
        if new in renamed:
            raise WeightsError(f"two tensors are both called {new!r}, one of them {name!r}; give a file of one network")
        renamed[new] = tensor
    return renamed
