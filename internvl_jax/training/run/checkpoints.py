"""Checkpoints of a run, written while it goes on.

`workdir/checkpoints/STEP` holds `params`, `optimizer` and `position` (step, data position). Orbax writes under a
temporary name and renames, so a step that is listed is whole. Everything here that knows orbax's v1 interface, which is
still called experimental, stands in this file.
"""

import contextlib
import logging
import pathlib
from typing import Any

import jax

from internvl_jax.errors import InputError
from internvl_jax.sharding import DAMAGE, ITEM, Params, checkpoint_path, damaged, saving_options, step_names
from internvl_jax.training.run.state import TrainState
from internvl_jax.validation import first_line

FOLDER = "checkpoints"
_ITEMS = (ITEM, "optimizer", "position")


class Checkpoints:
    """The checkpoints of a workdir; use as a context manager, which waits for the last save.

    Args:
      keep_last, keep_every: which ones stay: the last n, and each whose step this divides (0: none).
      held: the paths of the parameters that they hold; None: all.

    Raises:
      InputError: something else has the name of a step, or the workdir one that no checkpoint can have.
    """

    def __init__(self, workdir: pathlib.Path, keep_last: int, keep_every: int, held: frozenset[str] | None = None):
        import orbax.checkpoint.experimental.v1 as ocp  # here: it takes long, and `--help` needs none

        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(keep_last)]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        self._directory = checkpoint_path(workdir) / FOLDER
        _check_names(self._directory)
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            # When to save is the loop's decision.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        )
        self._saving: Any = None
        self._held = held

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            with contextlib.suppress(OSError, ValueError):  # a failed save, which wait() has told
                self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """The last whole step, or None."""
        return None if self._checkpointer.latest is None else self._checkpointer.latest.step

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Starts saving; an error of the save before (a full disk) is raised here.

        Args:
          step: the optimizer steps taken.
          state: what is saved; it may be donated once this returns.
          data: the position of the data, JSON-able.
        """
        self.wait()
        with saving_options():
            self._saving = self._checkpointer.save_checkpointables_async(
                step,
                dict(zip(_ITEMS, (self._kept(state.params), _optimizer(state), {"step": step, "data": data}))),
            )

    def wait(self) -> None:
        """Waits until the save under way is whole.

        Raises:
          InputError: it failed.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.result()
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            raise InputError(
                f"saving a checkpoint in {self._directory} failed ({first_line(error)}); earlier checkpoints "
                "are whole: make room and start the same command again"
            ) from error

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The latest state, with the parameters that are held, and data position.

        Args:
          abstract: the shapes, dtypes and shardings to restore to; the mesh may differ from the one that saved.
        """
        logging.getLogger(__name__).info("restoring step %s of %s", self.latest, self._directory)
        try:
            loaded = self._checkpointer.load_checkpointables(
                None,
                dict(zip(_ITEMS, (self._kept(abstract.params), _optimizer(abstract), None))),
            )
            data = loaded["position"]["data"]
        except DAMAGE as error:
            step = self._directory / str(self.latest)
            raise damaged(step, error, "remove that step to go on from the one before") from error
        optimizer = loaded["optimizer"]
        carry = optimizer.get("carry", {})
        return TrainState(optimizer["step"], loaded[ITEM], optimizer["state"], optimizer["nonfinite"], carry), data

    def _kept(self, params: Params) -> Params:
        return {path: value for path, value in params.items() if self._held is None or path in self._held}


def _check_names(directory: pathlib.Path) -> None:
    """Orbax takes for a step what has the name of one: it would restore it, and remove it when it is old."""
    for path in step_names(directory).values():
        if path.is_dir() and not any(path.iterdir()):
            with contextlib.suppress(OSError):  # another process of the run was faster
                path.rmdir()
        elif not any((path / item).is_dir() for item in _ITEMS):
            raise InputError(f"{path} has the name of a checkpoint and is none; move it away")


def _optimizer(state: TrainState) -> dict[str, Any]:
    """All of a state but the parameters; what objectives carry only where one does: orbax stores no empty dict."""
    carry = {"carry": state.carry} if state.carry else {}
    return {"state": state.opt_state, "nonfinite": state.nonfinite, "step": state.step, **carry}


def abstract_like(state: Any, where: Any) -> Any:
    """Shape structs with shardings, leaf by leaf."""
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, where)
