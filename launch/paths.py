"""What is to be written is checked before anything slow begins."""

import os
import pathlib

from internvl_jax.errors import InputError


def check_new(path: str, flag: str) -> None:
    """Raises InputError if something is there already, but for an empty folder, or nothing can be written there."""
    target = pathlib.Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{path} already exists; remove it or give another --{flag}")
    check_folder(path, flag)


def check_folder(path: str, flag: str) -> None:
    """Raises InputError if nothing can be written beside the path; folders that are missing will be made."""
    folder = pathlib.Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"nothing can be written into {folder}; give another --{flag}")
