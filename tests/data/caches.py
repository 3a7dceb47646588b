from crossdim_jax.data import cache


def build(challenge, root, cache_root, **kwargs):
    files = challenge.cases(root, labelled=True)
    return cache.build(challenge, files, cache_root, progress=False, **kwargs)


def folders(root):
    return [path for path in root.iterdir() if path.is_dir()]
