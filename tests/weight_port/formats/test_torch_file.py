"""Checkpoints of PyTorch that people hold: plain tensors are read, the rest is refused by name."""

import collections
import io
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from weight_port.formats import checkpoint, torch_pickle

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of sparse and quantized

ONE = torch.ones(3)
ROOT = Path(__file__).resolve().parents[3]


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "bool"])
def test_plain_tensors_are_read(dtype, legacy, tmp_path):
    content = {"a": torch.ones(2, 3, dtype=getattr(torch, dtype)), "t": torch.ones(2, 3).T}
    path = saved(tmp_path / "x.pth", content, _use_new_zipfile_serialization=not legacy)
    found = checkpoint.read(path)
    assert found["a"].shape == (2, 3) and (found["a"] == 1).all() and found["t"].shape == (3, 2)


def test_weights_that_share_their_numbers_are_read(tmp_path):
    big = torch.arange(12.0)
    content = collections.OrderedDict(a=big, b=big, c=big[2:5], d=torch.nn.Parameter(big))
    found = checkpoint.read(saved(tmp_path / "x.pth", content))
    np.testing.assert_array_equal(found["c"], [2, 3, 4])


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: {1: ONE}, "found \\{1: Tensor}, expected a state dict"),
        (lambda: {("a", 1): ONE}, "found {a tuple: Tensor}"),
        (lambda: {"model": {1: ONE}}, "found \\{1: Tensor}"),
        (lambda: {"layers": [ONE]}, "found {'layers': list}"),
        (lambda: {"layers": {"a": {"b": ONE}}}, "found {'layers': dict}"),
        (lambda: [ONE], "found a list"),
        (lambda: ONE, "found a Tensor"),
        (lambda: {"a": ONE.to_sparse()}, "'a' is not dense"),
        (lambda: {"a": torch.eye(3).to_sparse_csr()}, "'a' is not dense"),
        (lambda: {"a": torch.empty(3, device="meta")}, "'a' has a shape and no numbers"),
        (lambda: {"a": torch.quantize_per_tensor(ONE, 0.1, 0, torch.qint8)}, "torch.qint8"),
        (lambda: {"a": ONE.to(torch.complex64)}, "'a' is of type torch.complex64"),
        (lambda: {"a": ONE.to(torch.float8_e4m3fn)}, "'a' is of type torch.float8_e4m3fn"),
        (lambda: {"a": ONE[:1].expand(10**12)}, "1000000000000.* numbers, 4000000000000 bytes"),
        (lambda: {"a": ONE[:1].half().expand(10**6, 10**6)}, "made of 2 in the file"),
        (lambda: {"b": ONE, "c": "text"}, "'c': str"),
    ],
)
def test_what_are_no_plain_tensors_is_refused_by_name(make, says, tmp_path):
    path = saved(tmp_path / "x.pth", make())
    with pytest.raises(WeightsError) as caught:
        checkpoint.read(path)
    assert str(path) in str(caught.value)
    assert re.search(says, str(caught.value)), str(caught.value)


def test_one_storage_many_times_is_more_than_the_file_holds(tmp_path):
    big = torch.zeros(100_000)
    path = saved(tmp_path / "x.pth", {f"layer{i}": big for i in range(40)})
    with pytest.raises(WeightsError, match="x.pth: its tensors take 16000000 bytes"):
        checkpoint.read(path)


def repacked(path, change, compression=zipfile.ZIP_STORED):
    """A saved checkpoint whose entries are changed: (name, content) -> content."""
    saved(path, {"a": torch.zeros(1000)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))
    return path


def test_an_archive_that_unpacks_to_more_than_it_is_refused(tmp_path):
    def bomb(name, content):
        return bytes(10**7) if name.endswith("data/0") else content

    path = repacked(tmp_path / "bomb.pth", bomb, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match=r"bomb.pth: promises 1\d{7} bytes and has \d{4,5};"):
        checkpoint.read(path)


def test_a_tensor_that_claims_more_than_its_numbers_is_refused(tmp_path):
    def claim(name, content):
        return content.replace(b"M\xe8\x03", b"J\x00\xca\x9a\x3b") if "pkl" in name else content

    with pytest.raises(WeightsError, match="claim.pth: (cannot be read|its tensors take)"):
        checkpoint.read(repacked(tmp_path / "claim.pth", claim))


@pytest.mark.parametrize("keep", [0, 1, 10, 100, 600, -1, -30])
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files_are_named(keep, legacy, tmp_path):
    content = {"a": torch.zeros(100)}
    path = saved(tmp_path / "x.pth", content, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"x.pth: (cannot be read|holds something other)"):
        checkpoint.read(path)


class Evil:
    """Pickles into a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("inside", ["key", "value", "nested"])
@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_is_run_wherever_it_is(inside, legacy, tmp_path):
    evil = Evil(tmp_path / "trace")
    content = {"key": {evil: ONE}, "value": {"a": evil}, "nested": {"model": {"a": [evil]}}}
    path = tmp_path / "x.pth"
    saved(path, content[inside], _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="x.pth: holds .* posix.mkdir; nothing in it was run"):
        checkpoint.read(path)
    assert not (tmp_path / "trace").exists()
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "trace").exists()  # it would have


@pytest.mark.parametrize(
    "content",
    [
        b"cposix\nmkdir\n(S'TRACE'\ntR.",  # a call by name
        b"(S'TRACE'\niposix\nmkdir\n.",  # an instance
        b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93.",  # a name from the stack
        b"\x80\x02\x82\x01.",  # a registered extension
        b"ctorch._utils\n_rebuild_tensor_v2\n}b.",  # attributes of a function
        b"ccollections\nOrderedDict\n(ctorch.Size\nctorch.Size\ntR.",  # a call of what is none
    ],
)
def test_instructions_that_could_do_something_are_refused(content, tmp_path):
    made = content.replace(b"TRACE", str(tmp_path / "trace").encode())
    with pytest.raises((torch_pickle.Refused, TypeError, ValueError)):
        torch_pickle.read(io.BytesIO(made))
    (tmp_path / "x.pth").write_bytes(made)
    with pytest.raises(WeightsError, match="x.pth: (holds something other|cannot be read)"):
        checkpoint.read(tmp_path / "x.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_arrays_are_what_torch_reads(legacy, tmp_path, rng):
    """Strides, offsets, shared storages, parameters, half precision; and no torch is imported."""
    base = torch.tensor(rng.normal(size=(4, 5, 6)))
    content = {
        "turned": base.permute(2, 0, 1)[1:, ::2],
        "shared": base[2],
        "half": base.half(),
        "brain": base.bfloat16(),
        "parameter": torch.nn.Parameter(base.float()),
        "none": torch.zeros(0, 3),
    }
    state = torch.nn.BatchNorm1d(3).state_dict()  # an OrderedDict with attributes
    state.update(content)
    path, whole = tmp_path / "x.bin", {"model_state_dict": state, "epoch": 3}
    torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; import numpy as np\n"
        "from weight_port.formats import checkpoint\n"
        "np.savez(sys.argv[2], **checkpoint.read(Path(sys.argv[1])))"
    )
    subprocess.run([sys.executable, "-c", code, path, tmp_path / "y.npz"], check=True, cwd=ROOT)
    found = np.load(tmp_path / "y.npz")
    assert set(found) == state.keys()
    for name, tensor in state.items():
        expected = (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        np.testing.assert_array_equal(found[name], expected)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    for name, kind in (("pipe", "a named pipe"), ("folder", "a folder")):
        with pytest.raises(WeightsError, match=f"{name}.pth: is {kind}"):
            checkpoint.read(tmp_path / f"{name}.pth")


def test_few_bytes_make_no_large_text_and_no_large_number():
    """Each call's result is both arguments of the next: as text it would double 60 times."""
    call = b"ctorch\ndevice\nh\x00h\x00\x86Rq\x00"
    bomb = b"\x80\x02X\x04\x00\x00\x00cuda" + b"q\x00" + 60 * call + b"."
    assert torch_pickle.read(io.BytesIO(bomb)) == "device"
    large = b"\x80\x02\x8a\x11" + 17 * b"\x7f" + b"."
    with pytest.raises(torch_pickle.Refused, match="128 bits"):
        torch_pickle.read(io.BytesIO(large))
    entries = b"\x80\x02(" + 1000 * b"K\x01" + b"tq\x00"
    with pytest.raises(torch_pickle.Refused, match="more entries"):
        torch_pickle.read(io.BytesIO(entries + 10_001 * b"ctorch\nSize\nh\x00\x85R0" + b"."))
