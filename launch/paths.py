"""What is to be written is checked before anything slow begins."""

import pathlib

from internvl_jax.errors import InputError
from internvl_jax.files import check_writable


def check_new(path: str, flag: str) -> None:
    """Raises InputError if something is there already, but for an empty folder, or nothing can be written there."""
    target = pathlib.Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{path} already exists; remove it or give another --{flag}")
    check_folder(path, flag)


def check_folder(path: str, flag: str) -> None:
    """Raises InputError if nothing can be written beside the path; folders that are missing will be made."""
    try:
        check_writable(path)
    except InputError as error:
        raise InputError(f"--{flag}: {error}") from None
