"""Plan of what to port, to where: said by hand, or read from an experiment's config."""

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from crossdim_jax.errors import ConfigError, WeightsError
from crossdim_jax.run import auto_fields, config_gate, from_config
from crossdim_jax.run import config as config_lib
from crossdim_jax.weights import norms
from crossdim_jax.weights.file import Weights, load_weights
from crossdim_jax.weights.merge import encoder_path, merge, requirements
from crossdim_jax.weights.paths import ENCODER
from crossdim_jax.weights.recipe import Recipe, for_network, kernel_modes, target_shapes
from crossdim_jax.weights.record import check_fit, describe
from weight_port.source import parse_name

REQUIRED_FIELDS = (
    *("model.name", "data.patch"),
    *("weights.source", "weights.inflate", "weights.stem", "weights.file"),
    *("weights.skip", "weights.ignore"),
)
DATA_ROOT = "--config.data.root=/path/to/cases"  # in commands to paste: the user's to fill in


@dataclasses.dataclass(frozen=True)
class Plan:
    """One port.

    Attributes:
      name: the timm name.
      recipe: how it is converted.
      out: the file to write.
      config: the flags with which launch.py loads the result; None if said by hand.
      variables: of the config's network, abstract; None if said by hand.
      expected: what that network needs and its config says, see `requirements`.
      ignore: fields of `expected` that may differ.
      skip: patterns for `merge`.
      reestimate: patches on which training will measure running statistics anew.
      encoder: where the network keeps its encoder, see `merge`.
    """

    name: str
    recipe: Recipe
    out: Path
    config: str | None = None
    variables: Any = None
    expected: dict[str, Any] | None = None
    ignore: Sequence[str] = ()
    skip: Sequence[str] = ()
    reestimate: int = 0
    encoder: str = ENCODER

    def check_recipe(self) -> None:
        """Raises WeightsError if the encoder or a kernel cannot be made so; needs no weights."""
        architecture = parse_name(self.name).architecture
        norms.check_source(self.recipe.norm, architecture, self.recipe.statistics)
        kernel_modes(self.recipe, target_shapes(architecture, self.recipe))

    def check(self, weights: Weights) -> None:
        """Does what training will do with the weights; raises WeightsError if it would fail."""
        if self.expected is not None:
            name = f"{self.name} (config.weights.source)"
            self._compare(weights.metadata, name)
            merge(self.variables, weights, skip=self.skip, encoder=self.encoder)

    def _compare(self, record: Mapping[str, Any], name: str) -> None:
        check_fit(record, self.expected, name=name, ignore=self.ignore, reestimate=self.reestimate)

    def refuse_existing(self) -> None:
        """Raises WeightsError if the file is there, saying what it holds."""
        if not self.out.exists():
            return
        try:
            held = load_weights(self.out)
        except WeightsError as error:
            raise WeightsError(
                f"{self.out} exists and is not a weight file that can be read; replace it with "
                f"--overwrite, or choose another name.\n  {error}"
            ) from error
        lines = [f"{self.out} exists and holds", f"  {describe(held.metadata)}"]
        if held.metadata.get("ndim") == 2 and self.recipe.ndim == 3:
            lines.append("Training inflates such a file when it starts: there is nothing to port.")
        if self.expected is None:
            lines.append("Replace it with --overwrite, or choose --out=PATH.")
            raise WeightsError("\n".join(lines))
        try:
            self._compare(held.metadata, "It")
            lines.append("That is what the config asks for. To make it again: --overwrite.")
        except WeightsError as error:
            other = by_hand(self.name, self.recipe, str(self.out.parent)).out
            lines += str(error).splitlines()[:-1]  # the last says to port, which is being done
            if other != self.out:
                lines.append("To keep both, port and train with another file:")
                lines.append(f"  --config.weights.file={shlex.quote(str(other))}")
            lines.append("To replace it: --overwrite.")
        raise WeightsError("\n".join(lines))


def by_hand(name: str, recipe: Recipe, out: str, *, random: bool = False) -> Plan:
    """A plan from flags.

    Args:
      name: the timm name.
      recipe: how it is converted.
      out: a .safetensors file, or a folder in which the file is named after its content.
      random: whether the weights will be random numbers, so that the name can say so.
    """
    path = Path(out)
    if path.suffix != ".safetensors":
        path /= file_name(f"{parse_name(name).model}.random" if random else name, recipe)
    return Plan(name, recipe, path)


def file_name(source: str, recipe: Recipe) -> str:
    """A file's name after its content: another recipe has another name."""
    parts = [source, f"{recipe.ndim}d"]
    if recipe.inflate:
        parts.append(recipe.inflate)
    if recipe.inflate_at:  # any text: too long for a name, so a few digits of its hash
        digits = hashlib.sha256("\n".join(recipe.inflate_at).encode()).hexdigest()[:6]
        parts.append(f"mixed{digits}")
    if recipe.depth_kernels:
        taps = recipe.depth_kernels
        parts.append("d" + ".".join(map(str, taps if isinstance(taps, tuple) else (taps,))))
    if recipe.factorised:
        parts.append("factorised")
    parts += [f"{recipe.in_channels}ch", recipe.stem, recipe.norm]
    if recipe.statistics != "carry":
        parts.append("stale")
    if recipe.ndim == 2 and not recipe.head:
        parts.append("headless")
    return "-".join(parts) + ".safetensors"


def of_config(
    path: str,
    overrides: Sequence[str] = (),
    *,
    out: str | None = None,
    seed: int = 0,
    random: bool = False,
    head: bool = True,
) -> Plan:
    """The plan for exactly what an experiment will load.

    What the network's section says of the encoder, and the section `weights`.

    Args:
      path: of the config file, with ":argument" if it takes one.
      overrides: "--config.model.norm=group" and the like, as launch.py takes them.
      out: another file or folder than `config.weights.file`.
      seed: of a stem that is drawn anew.
      random: whether the weights will be random numbers.
      head: whether 2D weights keep the classifier's head.

    Raises:
      ConfigError: naming the config and the field.
    """
    config = _read(path, overrides)
    weights = from_config.weights(config)
    name = weights.claims["source"]
    if not name or not (weights.file or out):
        raise ConfigError(
            f"{path}: config.weights.source={name!r} and .file={weights.file!r}; this "
            "experiment starts from random weights, so there is nothing to port."
        )
    model, variables = _network(config, path)
    needs = requirements(model, variables)
    recipe = for_network(
        model.encoder,
        needs,
        weights.claims,
        reestimate=bool(weights.reestimate),
        seed=seed,
        head=head,
    )
    target = by_hand(name, recipe, out or weights.file, random=random).out
    flags = [f"--config={path}", *overrides]
    if target != Path(weights.file or ""):
        flags.append(f"--config.weights.file={target}")
    if not from_config.root(config):
        flags.append(DATA_ROOT)
    return Plan(
        name,
        recipe,
        target,
        config=shlex.join(flags),
        variables=variables,
        expected=needs | weights.claims,
        ignore=tuple(weights.ignore or ()),
        skip=tuple(weights.skip or ()),
        reestimate=weights.reestimate,
        encoder=encoder_path(model),
    )


def _network(config: ConfigDict, path: str) -> tuple[Any, Any]:
    """The config's network, and its variables as shapes; ConfigError if it cannot be built."""
    model = from_config.model(config, out_channels=1, depth_shards=1)
    # The number of image channels does not reach the encoder.
    image = jax.ShapeDtypeStruct((1, *from_config.patch(config), 1), jnp.float32)
    try:
        return model, jax.eval_shape(model.init, jax.random.key(0), image)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: config.model: {error}") from error


def _read(path: str, overrides: Sequence[str]) -> ConfigDict:
    """The whole config. Raises ConfigError: it lacks what porting needs, or a value is wrong."""
    config = auto_fields.without_plan(config_lib.read(path, overrides))
    for field in REQUIRED_FIELDS:
        section, key = field.split(".")
        if section not in config or key not in config[section]:
            raise ConfigError(f"{path}: found no field config.{field}, which porting needs.")
    try:
        config_gate.check_fields(config.to_dict())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config_lib.complete(config)
