"""What parameters a model, or a vision tower alone, has."""

from flax import nnx

from internvl_jax.models import PARTS, InternViT, InternVLConfig, Runtime, VisionConfig
from internvl_jax.sharding import ParamSpec, structure


def structure_of(config: InternVLConfig | VisionConfig, runtime: Runtime) -> tuple[nnx.GraphDef, dict[str, ParamSpec]]:
    """See `sharding.structure`."""
    return structure(InternViT if isinstance(config, VisionConfig) else PARTS["all"], config, runtime)


def specs_of(config: InternVLConfig | VisionConfig) -> dict[str, ParamSpec]:
    """The parameters of a model, or of a vision tower alone."""
    return structure_of(config, Runtime())[1]
