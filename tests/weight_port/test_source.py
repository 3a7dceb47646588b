"""Checkpoints of every kind are read, and nothing in them is ever run."""

import pickle

import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from weight_port import source
from weight_port.formats import checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
save_file = pytest.importorskip("safetensors.torch").save_file

NAME = "tf_efficientnet_b0.ns_jft_in1k"
TENSORS = {
    "conv_stem.weight": torch.arange(54.0).reshape(2, 3, 3, 3),
    "bn1.num_batches_tracked": torch.tensor(7),
}


def write(path, content):
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_plain_state_dicts(tmp_path, suffix):
    found = source.from_file(write(tmp_path / f"x{suffix}", TENSORS), NAME, licence="mit")
    assert found.arrays.keys() == TENSORS.keys()
    np.testing.assert_array_equal(found.arrays["conv_stem.weight"], TENSORS["conv_stem.weight"])
    origin = dict(found.origin)
    assert len(origin.pop("sha256")) == 64
    assert origin == {
        "source": "file",
        "id": NAME,
        "url": None,
        "file": f"x{suffix}",
        "licence": "mit",
    }


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        *((key, "") for key in (None, *checkpoint.NESTED_UNDER)),
        *((None, prefix) for prefix in ("module.", "_orig_mod.", "net.encoder.")),
        ("state_dict", "model.backbone."),
    ],
)
def test_wrapped_state_dicts(tmp_path, key, prefix):
    content = {prefix + name: tensor for name, tensor in TENSORS.items()}
    path = write(tmp_path / "x.pth", {key: content, "epoch": 3} if key else content)
    found = source.from_file(path, NAME)
    assert found.arrays.keys() == TENSORS.keys() and found.origin.get("prefix", "") == prefix


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_half_precision_is_read(tmp_path, suffix):
    content = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(3, dtype=torch.float16)}
    arrays = checkpoint.read(write(tmp_path / f"x{suffix}", content))
    assert all((array.astype(np.float32) == 1).all() for array in arrays.values())


class Evil:
    """Pickles into a call that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("legacy", [False, True], ids=["torch", "bare pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, legacy):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {**TENSORS, "evil": Evil(trace)}
    if legacy:
        path.write_bytes(pickle.dumps({"evil": Evil(trace)}, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match="evil.pth: holds .* _io.open; nothing in it was run"):
        source.from_file(path, NAME)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_files_are_named(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match=f"x{suffix}: .*cut short"):
        source.from_file(path, NAME)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": "b"}}], ids=str)
def test_other_contents_are_refused(tmp_path, content):
    with pytest.raises(WeightsError, match="x.pth: found .*expected a state dict"):
        source.from_file(write(tmp_path / "x.pth", content), NAME)


def test_missing_files_and_strange_suffixes(tmp_path):
    with pytest.raises(WeightsError, match="gone.pth: no such"):
        source.from_file(tmp_path / "gone.pth", NAME)
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match="'.onnx', expected .safetensors"):
        source.from_file(tmp_path / "x.onnx", NAME)


def test_random_weights_follow_their_seed():
    first, again, other = (source.random(NAME, seed=s) for s in (1, 1, 2))
    stem = "conv_stem.weight"
    np.testing.assert_array_equal(first.arrays[stem], again.arrays[stem])
    assert not np.array_equal(first.arrays[stem], other.arrays[stem])
    assert first.origin["source"] == "random" and first.origin["sha256"] is None


def fake_hub(monkeypatch, download):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)


def test_by_name_through_the_hub(tmp_path, monkeypatch):
    """safetensors is asked for first; the record holds address, hash and licence."""
    path = write(tmp_path / "model.safetensors", TENSORS)
    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        return str(path)

    fake_hub(monkeypatch, download)
    found = source.from_timm(NAME)
    assert asked == [(f"timm/{NAME}", "model.safetensors", None)]
    assert found.origin["source"] == "timm" and found.origin["id"] == NAME
    assert found.origin["url"].endswith(f"timm/{NAME}/resolve/main/model.safetensors")
    assert found.origin["sha256"] == source.sha256(path)
    assert found.origin["licence"] == "apache-2.0"
    # Without a tag, timm's default; the record says which.
    assert source.from_timm("tf_efficientnet_b0").origin["id"] == NAME


def test_a_hub_without_safetensors_gives_tensors_only(tmp_path, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    torch.save({"evil": Evil(trace)}, path)

    def download(repository, file, revision=None):
        if file.endswith(".safetensors"):
            raise EntryNotFoundError("404")
        return str(path)

    fake_hub(monkeypatch, download)
    with pytest.raises(WeightsError, match="nothing in it was run"):
        source.from_timm(NAME)
    assert not trace.exists()


def test_without_a_network_the_way_out_is_named(monkeypatch):
    def download(*_, **__):
        raise ConnectionError("no route to host")

    fake_hub(monkeypatch, download)
    with pytest.raises(WeightsError, match=r"no route to host.*fetch https.*--checkpoint=FILE"):
        source.from_timm(NAME)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("tf_efficientnet_b0.nonsense", "timm has: .*tf_efficientnet_b0.ns_jft_in1k"),
        ("efficientnet_b8", "timm has none for this architecture"),
    ],
)
def test_unknown_tags_list_the_known(name, match):
    with pytest.raises(WeightsError, match=match):
        source.from_timm(name)


def test_without_torch_files_are_read_and_the_rest_says_what_to_install(monkeypatch, tmp_path):
    path = write(tmp_path / "x.pth", TENSORS)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert source.from_file(path, NAME).arrays.keys() == TENSORS.keys()
    with pytest.raises(WeightsError, match=r"torch is not installed.*crossdim_jax\[port\]"):
        source.random(NAME)
