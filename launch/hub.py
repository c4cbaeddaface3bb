"""Checkpoints by their name on the Hugging Face Hub: fetched where the user asks for it, else a word on how to."""

import pathlib
import re

from absl import flags

from internvl_jax.errors import InputError

_DOWNLOAD = flags.DEFINE_boolean("download", False, "fetch a checkpoint that is named as on the Hub, ORGANISATION/NAME")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def directory(name: str) -> pathlib.Path:
    """The directory of a checkpoint, which may be named as on the Hub.

    Raises:
      InputError: it isn't here, and --download isn't given or can't be done.
    """
    path = pathlib.Path(name)
    if path.exists() or path.parent.exists() or not _NAME.fullmatch(name):
        return path  # whoever reads it says what is missing
    command = f"hf download {name} --local-dir={path.name}"
    if not _DOWNLOAD.value:
        raise InputError(f"there is no directory {name}; fetch it with `{command}`, or add --download")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise InputError("--download needs the library huggingface_hub: pip install 'internvl_jax[hub]'") from None
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(f"{name} could not be fetched ({error}); see whether `{command}` does it") from error
