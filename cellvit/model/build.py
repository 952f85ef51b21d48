"""How the parts of a model are checked and fed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellvit.encoders.base import Encoder
from cellvit.errors import ConfigError
from cellvit.heads.base import HEADS, Head
from cellvit.plugins.components import ComponentSpec, normalise_spec, resolve
from cellvit.postprocess.base import Postprocessor
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import EMBEDDING_MAP, NUCLEI_TYPE_MAP, Batch, NucleiPrediction


def licence_of_weights(encoder: Encoder) -> dict[str, Any]:
    """Return what a model says of its licence whose encoder started from weights of others; empty if it did not."""
    stated = encoder.weights_licence
    return {"licence": f"{stated}: that of the weights its encoder started from"} if stated else {}


def true_nuclei(batch: Batch) -> list[NucleiPrediction]:
    """Return the true nuclei of every image of a batch, those of few pixels too.

    Args:
        batch: ``instance_map`` and ``nuclei_type_map`` are read.

    Returns:
        Map and table of each image; row ``i`` is label ``i + 1``, type -1 marks a nucleus of unknown type. Single
        pixels and lines are kept: the published panoptic quality counts them, and detection leaves them out itself.
    """
    result = []
    for instances, types in zip(
        batch["instance_map"].cpu().numpy(), batch["nuclei_type_map"].cpu().numpy(), strict=True
    ):
        truth = nuclei_from_instances(instances, min_contour_points=1)
        known = np.zeros(truth.instance_map.max(initial=0) + 1, np.int32)
        known[truth.instance_map] = types
        result.append(replace(truth, nuclei=replace(truth.nuclei, type=known[truth.nuclei.label])))
    return result


def number_valid(batch: Batch) -> int:
    """Return the number of items of a batch that count; the others only fill up a process's share."""
    valid = batch.get("valid")
    return len(batch["image"]) if valid is None else int(valid.sum())


def select_valid(outputs: Mapping[str, Tensor], batch: Batch) -> tuple[Mapping[str, Tensor], Batch]:
    """Return the outputs and the entries of the items that count.

    A batch without any is returned whole: its losses are defined then, and weigh nothing.

    Args:
        outputs: Outputs of the network, each ``(B, ...)``.
        batch: The batch they belong to.
    """
    valid = batch.get("valid")
    if valid is None or valid.all() or not valid.any():
        return outputs, batch
    names = [name for name, counts in zip(batch["name"], valid.tolist(), strict=True) if counts]
    kept = {key: value[valid] for key, value in batch.items() if isinstance(value, Tensor)}
    return {key: value[valid] for key, value in outputs.items()}, cast(Batch, {**kept, "name": names})


def image_arrays(maps: Mapping[str, Tensor], postprocessor: Postprocessor | None) -> list[dict[str, NDArray[Any]]]:
    """Return the maps of each image of a batch as arrays without batch axis, as a post-processor takes them.

    Args:
        maps: Activated maps ``(B, C, H, W)``; entries of other dimensions are left out.
        postprocessor: Who will read them; None gives every map as it is.
    """
    return start_transfer(maps, postprocessor)()


def start_transfer(
    maps: Mapping[str, Tensor], postprocessor: Postprocessor | None
) -> Callable[[], list[dict[str, NDArray[Any]]]]:
    """Start to bring the maps of a batch to the host, and return what waits for them and gives :func:`image_arrays`.

    Maps that the post-processor does not read stay where they are. Where it needs no more than the most probable class,
    that is found on the device: a fraction of the bytes have to leave it. Without a type map it needs the probabilities
    themselves, and of those that it only averages half floats, which change ``type_prob`` by less than 0.001. On a CUDA
    device the copy goes to pinned memory and runs beside what is launched next.

    Args:
        maps: Activated maps ``(B, C, H, W)``; entries of other dimensions are left out.
        postprocessor: Who will read them; None gives every map as it is.
    """
    dense = {name: value for name, value in maps.items() if value.ndim == 4}
    if postprocessor is not None:
        dense = {name: dense[name] for name in dense if name in postprocessor.needs | postprocessor.takes}
        dense = dict(postprocessor.on_device(dense))
    if postprocessor is not None and NUCLEI_TYPE_MAP in dense:
        dense |= {name: most_probable(dense[name]) for name in postprocessor.takes_labels & set(dense)}
    halves = frozenset() if postprocessor is None else postprocessor.takes_half
    kinds = {name: torch.float16 if name in halves else torch.float32 for name in dense}
    floats = {k: v.to(kinds[k]) if v.is_floating_point() else v for k, v in dense.items()}
    on_host = {name: _to_host(value) for name, value in floats.items()}
    gpu = next((value.device for value in floats.values() if value.is_cuda), None)
    copied = None if gpu is None else torch.cuda.Event()  # type: ignore[no-untyped-call]
    if copied is not None:
        copied.record(torch.cuda.current_stream(gpu))  # not the stream of the current device, which may be another

    def arrays() -> list[dict[str, NDArray[Any]]]:
        if copied is not None:
            copied.synchronize()
        count = min((len(value) for value in on_host.values()), default=0)
        return [{name: value[i].numpy() for name, value in on_host.items()} for i in range(count)]

    return arrays


def _to_host(value: Tensor) -> Tensor:
    """Return a copy on the host that is begun, on a CUDA device into pinned memory, without which it is waited for."""
    if not value.is_cuda:
        return value.cpu()
    return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)


def most_probable(probabilities: Tensor) -> Tensor:
    """Return the class of the largest value of every pixel, the first of equal ones.

    ``argmax`` over the classes does the same; on a CPU it takes eight times as long, for they lie far apart in memory.

    Args:
        probabilities: ``(B, C, H, W)``.

    Returns:
        ``(B, H, W)`` uint8, or int16 for more than 256 classes.
    """
    best = probabilities[:, 0].clone()
    dtype = torch.uint8 if probabilities.shape[1] <= 256 else torch.int16
    labels = torch.zeros(best.shape, dtype=dtype, device=best.device)
    for index in range(1, probabilities.shape[1]):
        values = probabilities[:, index]
        labels.masked_fill_(values > best, index)
        torch.maximum(best, values, out=best)
    return labels


def head_class(branch: str, spec: ComponentSpec) -> type[Head]:
    """Return the class of a head.

    Args:
        branch: The branch it is listed under.
        spec: Name, dotted path, ``{"class_path", "init_args"}`` or class of the head.

    Raises:
        ConfigError: If the head makes another branch, or one that no head can make.
    """
    if "." in branch or branch == EMBEDDING_MAP:
        raise ConfigError(f"{branch!r} cannot be a branch: its name has no dot and is not {EMBEDDING_MAP!r}; rename it")
    cls = resolve(HEADS, normalise_spec(spec, what="head")["class_path"])
    if cls.branch != branch:
        raise ConfigError(
            f"head {cls.__name__} makes {cls.branch!r} but is listed as {branch!r}; list it under its own name"
        )
    return cls


def check_branches(heads: Mapping[str, ComponentSpec], needs: frozenset[str], postprocessor: ComponentSpec) -> None:
    """Raise ConfigError unless the heads make every map that the postprocessor needs."""
    missing = sorted(needs - set(heads))
    if missing:
        raise ConfigError(
            f"postprocessor {postprocessor!r} needs {missing}, but the heads are {sorted(heads)}; add the heads"
        )
