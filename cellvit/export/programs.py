"""The network alone as ONNX or as a program of ``torch.export``; nuclei are made of its maps by who runs it."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import torch

from cellvit.errors import ConfigError, PluginError
from cellvit.export.facts import facts_of
from cellvit.export.graph import INPUT, Graph, Size, check, trace
from cellvit.io.atomic import atomic_folder
from cellvit.io.provenance import content_of, write_record
from cellvit.model.network import CellViTNetwork
from cellvit.types import EMBEDDING_MAP

OPSET = 18
ONNX, PROGRAM, FACTS = "model.onnx", "model.pt2", "model.json"
PROPERTY = "cellvit"
"""Name under which the facts stand in the metadata of an ONNX file, and in the extra files of a torch program."""


def export_onnx(model: CellViTNetwork, out: str | Path, *, size: Size = None, verify: bool = True) -> Sequence[str]:
    """Write the network as ``model.onnx`` with ``model.json``, which says what goes in and what comes out.

    Into the file go bytes, ``(B, 3, H, W)`` uint8 RGB at the model's resolution; out come the activated maps under the
    names of :mod:`cellvit.types`. Normalisation, padding to multiples of 16 and cropping are in it. Post-processing is
    not: ``model.json`` names it with its settings.

    Args:
        model: It stays as it is.
        out: The folder, which must not exist.
        size: Height and width of all images; None leaves height, width and batch open, which encoders without windows
            of their own or a grid of positions can do.
        verify: Open the file with ONNX Runtime, if that is installed, and compare its maps with the model's.

    Returns:
        Remarks: who could not be asked.

    Raises:
        ConfigError: If the encoder can do one size only, the network cannot be exported, or the file differs.
        PluginError: If onnx or onnxscript is missing.
        OutputError: If the folder exists or cannot be written.
    """
    with atomic_folder(out) as folder:
        _need_onnx()
        graph = trace(model, size)
        facts = facts_of(graph)
        path = folder / ONNX
        _write_onnx(graph, path, facts)
        remarks = _verify_onnx(graph, path) if verify else []
        write_record(folder / FACTS, {**facts, "file": {"name": ONNX, **content_of(path)}, "opset": OPSET})
    return remarks


def export_torch(model: CellViTNetwork, out: str | Path, *, size: Size = None, verify: bool = True) -> Sequence[str]:
    """Write the network as ``model.pt2`` with ``model.json``; as :func:`export_onnx` in all else.

    ``torch.export.load("model.pt2").module()(image)`` returns the maps by name, without this package.

    Args:
        model: It stays as it is.
        out: The folder, which must not exist.
        size: Height and width of all images; None leaves height, width and batch open.
        verify: Open the file, and compare its maps with the model's.

    Returns:
        No remarks.

    Raises:
        ConfigError: If the encoder can do one size only, the network cannot be exported, or the file differs.
        OutputError: If the folder exists or cannot be written.
    """
    with atomic_folder(out) as folder:
        graph = trace(model, size)
        facts = facts_of(graph)
        path = folder / PROGRAM
        written = BytesIO()  # torch itself ends the process on a full disk
        torch.export.save(graph.program, written, extra_files={PROPERTY: json.dumps(facts)})
        path.write_bytes(written.getvalue())
        if verify:
            with torch.no_grad():
                check(graph, torch.export.load(path).module()(graph.trial[0]), PROGRAM)
        made = {"torch": torch.__version__}
        write_record(folder / FACTS, {**facts, "file": {"name": PROGRAM, **content_of(path)}, "made_with": made})
    return []


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise PluginError(
            f"export to ONNX needs the packages onnx and onnxscript ({error}); from a checkout: pip install '.[export]'"
        ) from error


def _write_onnx(graph: Graph, path: Path, facts: Mapping[str, Any]) -> None:
    try:
        with _quiet():
            written = torch.onnx.export(
                graph.program,
                input_names=[INPUT],
                output_names=list(graph.outputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # operators that ONNX lacks fail in any way
        reason = (str(error.__cause__ or error).splitlines() or [""])[0][:300]
        raise ConfigError(
            f"the network cannot be written as ONNX ({reason}); give size=512 if it was to take any size, or export to "
            "'torch-export'"
        ) from error
    assert written is not None
    model: Any = written.model
    _name_dimensions(model, graph)
    model.metadata_props.update({PROPERTY: json.dumps(facts), **{name: json.dumps(facts[name]) for name in facts}})
    model.producer_name, model.producer_version = "cellvit", facts["cellvit_version"]
    written.save(str(path))


def _name_dimensions(model: Any, graph: Graph) -> None:
    """Let the open axes of input and outputs be called what they are; torch numbers them."""
    if graph.size is not None:
        return
    import onnx_ir  # a part of onnxscript

    (image,) = model.graph.inputs
    image.shape = onnx_ir.Shape(["batch", 3, "height", "width"])
    for value in model.graph.outputs:
        sides = ["tokens_down", "tokens_across"] if value.name == EMBEDDING_MAP else ["height", "width"]
        value.shape = onnx_ir.Shape(["batch", value.shape[1], *sides][: len(value.shape)])


def _verify_onnx(graph: Graph, path: Path) -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return [f"{ONNX} was not compared with the model: onnxruntime is not installed; pip install onnxruntime"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    maps = session.run(list(graph.outputs), {INPUT: graph.trial[0].numpy()})
    check(graph, {name: torch.from_numpy(m) for name, m in zip(graph.outputs, maps, strict=True)}, ONNX)
    return []


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says of its own work from the user, who can change nothing about it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
