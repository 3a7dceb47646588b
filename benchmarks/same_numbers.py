"""Two runs of one config by two versions of the code, compared bit by bit.

    python -m benchmarks.same_numbers OLD_WORKDIR NEW_WORKDIR

Compared are the lines of the metrics file but for times, every array of every checkpoint, the
voxels of every prediction and the scores of every case. Status 1, and the differences, if there
are any.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import orbax.checkpoint as ocp

TIMES = ("seconds", "images_per_s")


def contents(workdir: Path) -> Iterator[tuple[str, object]]:
    """Name and value of everything in a run folder that does not depend on time or place."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        row = json.loads(line)
        yield f"metrics.jsonl:{number}", {k: v for k, v in row.items() if k not in TIMES}
    for item in sorted((workdir / "checkpoints").glob("**/_METADATA")):
        tree = _arrays(item.parent.absolute())
        for path, array in jax.tree_util.tree_leaves_with_path(tree):
            name = f"{item.parent.relative_to(workdir)}{jax.tree_util.keystr(path)}"
            yield name, np.asarray(array)
    for path in sorted(workdir.glob("predictions/**/*.nii.gz")):
        image = nib.load(path)
        name = str(path.relative_to(workdir))  # folders of predictions hold equal names
        yield name, np.asarray(image.dataobj)
        yield f"{name} grid", image.affine
    yield "cases.csv", (workdir / "evaluation" / "cases.csv").read_text(encoding="utf-8")


def _arrays(folder: Path) -> object:
    """The tree of a checkpoint's item as NumPy arrays, whatever devices they were on."""
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(handler.metadata(folder).tree)
    )
    return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def differences(old: Path, new: Path) -> tuple[int, list[str]]:
    """Number of things compared, and the names of those that differ."""
    before, after = dict(contents(old)), dict(contents(new))
    names = sorted(before.keys() | after.keys())
    return len(names), [name for name in names if not _equal(before.get(name), after.get(name))]


def _equal(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and (
            one.tobytes() == other.tobytes()
        )
    return type(one) is type(other) and one == other


def main(old: str, new: str) -> int:
    """Prints what differs; returns the exit status."""
    count, found = differences(Path(old), Path(new))
    for name in found:
        print(f"differs: {name}")
    print(f"{count} compared, {len(found)} differ: {old}, {new}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
