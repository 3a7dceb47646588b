"""The same formats, with files that a coverage-guided fuzzer (atheris) makes.

    python -m tests.fuzz.guided tests.fuzz.test_volumes nifti FOLDER -atheris_runs=100000

What fails is kept in the folder, and so is the corpus. Further arguments are libFuzzer's.
"""

import importlib
import logging
import sys
from pathlib import Path

import atheris

from tests.fuzz import harness


def main(module: str, name: str, folder: str, *options: str) -> None:
    """Reads files until one is neither read nor refused by name; never returns."""
    with atheris.instrument_imports(include=["crossdim_jax", "nibabel", "pydicom"]):
        (row,) = (row for row in importlib.import_module(module).FORMATS if row.name == name)
    logging.disable(logging.CRITICAL)
    place = Path(folder)
    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    (place / "seeds").mkdir(exist_ok=True)
    for number, content in enumerate(row.seeds(place / "seeds")):
        (corpus / f"seed_{number}").write_bytes(content)
    path = place / f"changed{row.suffix}"

    def one(content: bytes) -> None:
        if fault := harness.check(row.read, path, row.wrap(content), folder=row.folder):
            raise AssertionError(fault)

    limits = ("-rss_limit_mb=2048", "-malloc_limit_mb=256", "-timeout=5", "-max_len=8192")
    kept = f"-artifact_prefix={place}/fault_"
    atheris.Setup([sys.argv[0], kept, *limits, *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
