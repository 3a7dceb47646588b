"""What training would take: not here yet."""

from crossdim_jax.errors import ConfigError


def run(experiment, *, budget_gib=None):
    """Raises ConfigError: planning is not here yet."""
    raise ConfigError("--mode=plan is not here yet")
