"""A real slide task for a cluster: a drawn slide with its stand-in model, killed once in the middle."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def segment_drawn(path, out, *, device="auto", progress=None, kill_at=None, **settings):
    """Segment a slide; the process kills itself when so many tiles are done, the first time it gets there."""
    from support.drawn_slides import DrawnModel

    from cellvit.inference.slide import segment_slide

    flag = out.with_suffix(".killed")

    def watch(done, total):
        if kill_at is not None and done >= kill_at and not flag.exists():
            flag.write_text(f"{done}")
            os.kill(os.getpid(), signal.SIGKILL)
        if progress is not None:
            progress(done, total)

    settings = {"tissue_filter": False, "formats": (), "tile_size": 256, "overlap": 48, **settings}
    return segment_slide(path, out, model=DrawnModel(), device="cpu", progress=watch, **settings)
