"""Work on types in a process of its own, which gives its memory back: training, applying, choosing what to label next.

The process is ``python -m cellvit.viewer.tasks``. It reads one line of JSON, and writes lines of JSON: how far
it is, and last what came of it. It ends with the viewer that has started it, however that may be.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from cellvit.errors import CellViTError, DataError, ImageError, OutputError
from cellvit.io.format import plain_data

Say = Callable[[str], None]
"""Takes how far a task is."""


def run_apart(task: str, say: Say, **settings: Any) -> Any:
    """Return what comes of a task in a process of its own.

    Args:
        task: Key of :data:`TASKS`.
        say: Takes how far it is.
        **settings: Of the task, plain data and paths.

    Raises:
        DataError: What the task raises as an error of ours.
        OutputError: If the process is killed, as for lack of memory.
    """
    command = [sys.executable, "-m", "cellvit.viewer.tasks"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl+C is for the viewer, which waits
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"task": task, "settings": settings}, default=str) + "\n")
            process.stdin.flush()
        except BrokenPipeError:  # it has ended already, which is told below
            with suppress(BrokenPipeError):
                process.stdin.close()
        for line in process.stdout:
            (kind, value), *_ = json.loads(line).items()
            if kind == "done":
                return value
            if kind == "error":
                raise DataError(value)
            say(value)
        code = process.wait()
        errors.seek(0)
        last = (errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    raise OutputError(f"the process of {task!r} ended with code {code} ({last}); is there enough memory?")


def train(say: Say, *, sources: list[str], out: str, slides: str | None, colors: Mapping[str, Any]) -> str:
    """Train a classifier; see :func:`cellvit.classification.train_classifier`."""
    from cellvit.classification.train import train_classifier

    say("learning from labels")
    shown = {name: (int(red), int(green), int(blue)) for name, (red, green, blue) in colors.items()}
    found = train_classifier(sources, out, slides=slides, colors=shown)
    scores = [f"{one.name} {one.f1:.2f} ({one.labels:,} labels)" for one in found.validation.types]
    text = f"macro F1 {found.validation.macro_f1:.2f} on labels held out: {', '.join(scores)}"
    return ". ".join([text, *found.notes])


def apply(say: Say, *, classifier: str, folders: list[str], slides: str | None, pictures: bool) -> str:
    """Give nuclei the types of a classifier; see :func:`cellvit.classification.apply_types`."""
    from cellvit.classification.apply import apply_types, update_cohorts

    counts, notes = dict[str, int](), list[str]()
    for number, folder in enumerate(folders, start=1):

        def progress(done: int, total: int, name: str = f"{Path(folder).name} ({number} of {len(folders)})") -> None:
            say(f"{name}: {done:,} of {total:,} nuclei")

        try:
            found = apply_types(classifier, folder, slides=slides, pictures=pictures, progress=progress)
        except ImageError as error:
            command = f"cellvit classify apply {shlex.quote(classifier)} {shlex.quote(folder)} --no-pictures"
            raise ImageError(f"{error}; in a terminal: {command}") from error
        notes += found.notes
        counts = {name: counts.get(name, 0) + found.counts.get(name, 0) for name in {**counts, **found.counts}}
    update_cohorts([folder for folder in folders if Path(folder).is_dir()])
    return ". ".join([", ".join(f"{count:,} {name}" for name, count in counts.items()), *notes])


def suggest(say: Say, *, table: str, classifier: str | None, count: int) -> list[dict[str, Any]]:
    """Choose nuclei to label next; see :func:`cellvit.classification.suggest.choose_nuclei`."""
    from cellvit.classification.suggest import choose_nuclei

    found = choose_nuclei(Path(table), count=count, classifier=classifier)
    columns = (found.nucleus.tolist(), found.nuclei.centroid.tolist(), found.guess, found.probability.tolist())
    return [
        {"row": row, "x": x, "y": y, "why": f"{guess} {probability:.2f}" if guess else "unlike those labelled"}
        for row, (x, y), guess, probability in zip(*columns, strict=True)
    ]


TASKS: Mapping[str, Callable[..., Any]] = {"train": train, "apply": apply, "suggest": suggest}
"""What can be done, by name."""


def main() -> int:
    """Do the task that standard input names, and return the exit code."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer

        def answer(kind: str, value: Any) -> None:
            answers.write(json.dumps({kind: plain_data(value)}) + "\n")
            answers.flush()

        given = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_viewer, daemon=True).start()
        _import_skops()
        try:
            answer("done", TASKS[given["task"]](lambda text: answer("say", text), **given["settings"]))
        except CellViTError as error:
            answer("error", str(error))
    return 0


def _import_skops() -> None:
    """Import skops without torch.

    It looks through all modules of scikit-learn, one of which imports torch where that is installed: seconds, and half
    a gigabyte, that nothing here needs.
    """
    sys.meta_path.insert(0, _NoTorch())
    with suppress(ImportError):  # whoever needs it says so
        import skops.io  # noqa: F401
    del sys.meta_path[0]


class _NoTorch(MetaPathFinder):
    """Says that there is no torch."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Raise for torch; leave other modules to others."""
        if fullname == "torch":
            raise ModuleNotFoundError("torch is left out here", name=fullname)


def _end_with_viewer() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
