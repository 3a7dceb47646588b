"""End of a run: its folder holds one set of weights, and nothing to go on training with."""

import os
import shutil
from pathlib import Path

from crossdim_jax.storage import checksums, run_folder
from crossdim_jax.storage.files import writing
from crossdim_jax.training import checkpoint


def drop_state(workdir: str | os.PathLike, *, best: bool) -> dict[str, object]:
    """Removes all of the checkpoints that evaluation does not need.

    The weights that are kept are read first. `finished.json` is there before anything is removed,
    so that no start takes what is left for a training to go on with; a call that was interrupted is
    made again. The last checkpoint keeps its record, and the weights if it is the one that counts.

    Args:
      workdir: the run folder.
      best: True keeps the best weights, or the last where there are none; False the last.

    Returns:
      the record in `finished.json`. Raises DataError if no weights can be read.
    """
    record = checkpoint.load_variables(workdir, best=best)[1]
    kept = {"weights": checkpoint.which(record), "step": record["step"]}
    run_folder.write_json(Path(workdir) / run_folder.FINISHED, kept)
    root = Path(workdir) / run_folder.CHECKPOINTS
    last = max((path for path in root.iterdir() if path.name.isdigit()), key=_step)
    is_best = kept["weights"] == checkpoint.BEST
    needed = {last, root / checkpoint.BEST / str(kept["step"])} if is_best else {last}
    with writing(root, "what a finished run keeps"):
        for path in [*root.iterdir(), *(root / checkpoint.BEST).iterdir()]:
            if path.name.isdigit() and path not in needed:
                shutil.rmtree(path)
        _reduce(last, ["training", "variables"] if is_best else ["training"])
    return kept


def _reduce(folder: Path, items: list[str]) -> None:
    """Removes items of a checkpoint, which is undamaged at any moment."""
    gone = [path for item in items for path in (folder / item).rglob("*")]
    checksums.write(
        folder, without=[*checkpoint.NOTES, *(str(p.relative_to(folder)) for p in gone)]
    )
    for item in items:
        shutil.rmtree(folder / item, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name)
