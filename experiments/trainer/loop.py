"""The training loop: from a config and a folder to a trained model and its records."""

import contextlib
import json
import math
import pathlib
import time
from typing import Any

import jax
import ml_collections

from experiments import choices, records
from experiments.errors import UserError
from experiments.trainer import extension, identity, memory
from experiments.trainer import optimizer as optimizers
from experiments.trainer.checkpoints import Checkpoints
from experiments.trainer.metrics import MetricsWriter, check_wandb
from experiments.trainer.profiler import Profiler
from experiments.trainer.program import Program, make_program
from experiments.trainer.progress import Progress
from experiments.trainer.signals import STOPPED, StopRequests, stop_requests
from experiments.trainer.state import by_layer, leaf_names, tree_bytes
from experiments.trainer.workdir import (
    Follower,
    Workdir,
    open_workdir,
    provenance,
    said,
)

_STATUS = {"completed": 0, "diverged": 3, **STOPPED}


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    overrides: dict[str, Any] | None = None,
    overwrite: bool = False,
    reset_optimizer: bool = False,
    extend: bool = False,
    change_schedule: bool = False,
    profile: bool = False,
) -> int:
    """Trains, goes on where the folder's run stopped, or finds it completed.

    Args:
      config: from `experiments.config.load`.
      workdir: the run's folder.
      overrides: fields that the command line set, for the record.
      overwrite: remove what an earlier run left there.
      reset_optimizer: go on from the newest checkpoint with a new optimizer state;
        optimizer, schedule and number of steps may be others than before.
      extend: go on to more steps than before, if the schedule had given the steps that
        were made the same rates.
      change_schedule: with `extend`, or if it had not.
      profile: write a trace of a few steps to the folder.

    Returns:
      The exit status: 0 completed, 3 diverged, 129, 130 and 143 stopped by a signal.

    Raises:
      UserError: if the config cannot be trained or the folder not be used (nothing has
        been compiled then, and the folder is as it was), or the machine cannot read or
        write it.
    """
    program = make_program(config)
    check_wandb(config.train.wandb_project)
    folder = open_workdir(
        *(workdir, config, program.task.digest, program.task.files),
        overwrite=overwrite,
        new_optimizer=reset_optimizer,
        extend=extend,
        change_schedule=change_schedule,
    )
    try:
        if folder.result is not None:
            if "val_loss" in folder.result:
                loss = folder.result["val_loss"]
                print(f"{workdir} is complete: val_loss {loss:.4f}")
            return 0
        with stop_requests() as stop:
            run = _Run(program, folder, stop, overrides or {})
            result = run.execute(reset_optimizer=reset_optimizer, profile=profile)
        return _STATUS[result["reason"]]
    except OSError as error:
        raise said(error, workdir) from error
    finally:
        folder.close()


def evaluate(config: ml_collections.ConfigDict, workdir: str) -> int:
    """Prints the validation metrics of the newest checkpoint, as one JSON object.

    Only parameters are read, so the optimizer need not be the one that trained, and a
    run may be at work in the folder.

    Args:
      config: of the run; its task and model count.
      workdir: the run's folder.

    Raises:
      UserError: if the config makes no model, or there is no such checkpoint.
    """
    program = make_program(config, trace=False)
    folder = pathlib.Path(workdir) / "checkpoints"
    told: list[str] = []
    try:
        with contextlib.closing(Checkpoints(folder, told.append, read_only=True)) as x:
            found = x.restore(program.abstract, only=("params", "rest"))
    except OSError as error:
        raise said(error, workdir) from error
    if found is None:
        reason = f"; {told[0]}" if told else ""
        raise UserError(f"--workdir: {workdir} holds no checkpoint to read{reason}")
    state, _ = found
    values = program.evaluator(program.task.eval_batches())(state.params)
    if jax.process_index() == 0:
        print(json.dumps({"step": int(state.step), **records.finite_or_none(values)}))
    return 0


class _Run:
    """A program at work in a folder."""

    def __init__(
        self,
        program: Program,
        folder: Workdir | Follower,
        stop: StopRequests,
        overrides: dict[str, Any],
    ):
        self.program = program
        self.config = program.config
        self.folder = folder
        self.stop = stop
        self.overrides = overrides
        train = self.config.train
        few = train.steps < 1000
        self.log_every = train.log_every or (1 if few else 10)

    def execute(self, *, reset_optimizer: bool, profile: bool) -> dict[str, Any]:
        """Trains until the last step, a signal, or too many bad steps."""
        self.started = time.perf_counter()
        folder, steps = self.folder, self.config.train.steps
        with contextlib.ExitStack() as stack:
            quiet = isinstance(folder, Follower)
            self.progress = stack.enter_context(
                contextlib.closing(Progress(folder.path, steps, quiet=quiet))
            )
            self.checkpoints = Checkpoints(
                *(folder.checkpoints, self.progress.line),
                keep=self.config.train.keep_checkpoints,
            )
            stack.enter_context(contextlib.closing(self.checkpoints))
            chosen = {"only": ("params", "rest")} if reset_optimizer else {}
            begun = self.checkpoints.restore(self.program.abstract, **chosen)
            if begun and reset_optimizer:
                begun = self.program.fresh_optimizer(begun[0]), begun[1]
                self.progress.line("the optimizer starts afresh")
            after = int(begun[0].step) if begun else 0
            self._check_start(after)
            self.extensions = extension.all_of(folder, after, self.progress.line)
            self._write_config()
            project = None if quiet else self.config.train.wandb_project
            self.metrics = stack.enter_context(
                contextlib.closing(MetricsWriter(folder.path, after, project))
            )
            self.profiler = stack.enter_context(
                contextlib.closing(Profiler(folder.path, after if profile else None))
            )
            self._look_at_records(after)
            self.result = self._result_so_far(after)
            try:
                self._train(begun)
            except BaseException as error:
                # A full disk takes no word about itself either.
                with contextlib.suppress(OSError):
                    self.progress.line(f"failed: {type(error).__name__}: {error}")
                    self._write_result()
                raise
            self._write_result()
        return self.result

    def _write_config(self) -> None:
        told = {"config": self.config.to_dict(), "overrides": self.overrides}
        told |= identity.of_data(self.program.task.digest, self.program.task.files)
        told |= identity.of_schedule(self.config) | extension.told(self.extensions)
        told |= choices.own_files(self.config)
        self.folder.write_json("config.json", told | provenance())
        if self.folder.extension:  # the run has an end no more
            (self.folder.path / "result.json").unlink(missing_ok=True)

    def _write_result(self) -> None:
        self.result["total_seconds"] = time.perf_counter() - self.started
        self.folder.write_json("result.json", records.finite_or_none(self.result))

    def _check_start(self, after: int) -> None:
        """Refuses to begin at the first step where a run has been, or behind the last.

        Raises:
          UserError: what an earlier run left must be asked for before it is lost.
        """
        steps = self.config.train.steps
        if after > steps:
            raise UserError(
                f"--config.train.steps: {steps}, and {self.folder.checkpoints} is at "
                f"step {after} already"
            )
        if not after and (self.folder.resumes or self.checkpoints.steps()):
            raise UserError(
                f"--workdir: {self.folder.checkpoints} holds no checkpoint that can be "
                "read, so the run would begin with step 1; put one back or choose "
                "another folder, or pass --overwrite"
            )

    def _look_at_records(self, after: int) -> None:
        """Says which records are lost."""
        kept, say = self.metrics.kept, self.progress.line
        last = kept.last.get("step", 0)
        if kept.bad:
            few = ", ".join(map(str, kept.bad[:10]))
            more = f" and {len(kept.bad) - 10} more" if len(kept.bad) > 10 else ""
            say(f"{records.NAME}: no record can be read in line {few}{more}; left out")
        if last < after:
            say(f"{records.NAME}: the records after step {last} up to {after} are lost")

    def _result_so_far(self, after: int) -> dict[str, Any]:
        """What an earlier part of the run has come to."""
        kept = self.metrics.kept
        self.evaluated = kept.evaluated
        opt_state = self.program.abstract.opt_state
        return {
            "val_loss": kept.val_loss,
            "best_val_loss": kept.best_val_loss,
            "steps": after,
            "seconds": kept.last.get("seconds") or 0.0,
            "start_seconds": None,  # to the first step: restoring and compiling
            "peak_memory_bytes": None,
            "optimizer_state_bytes": tree_bytes(opt_state.inner_state),
            "reason": "failed",
            **extension.told(self.extensions),
        }

    def _train(self, begun) -> None:
        program, progress, result = self.program, self.progress, self.result
        train, stop = self.config.train, self.stop
        for field in optimizers.unused_fields(self.config):
            progress.line(f"{field} is set, {self.config.optimizer.name} has none")
        progress.line(program.table())
        layout = program.layout
        if layout.mesh.size > 1:
            progress.line(f"mesh: {dict(layout.mesh.shape)}, {self.config.mesh.mode}")
        batches = program.task.train_iterator(self.config.seed, layout.process)

        def read() -> tuple:
            drawn = tuple(next(batches) for _ in range(program.batches_per_step))
            return layout.put(drawn)

        state, position = begun or (program.first_state(), batches.get_state())
        first = int(state.step) + 1
        if first > 1:
            progress.line(f"goes on after step {first - 1}")
        peaks = program.peaks
        compiled = layout.compile_step(program.step, program.abstract, read(), peaks)
        progress.line(memory.report(program.abstract, compiled))
        diagnose = layout.compile(program.diagnose)
        batches.set_state(position)
        evaluate = program.evaluator(program.task.eval_batches())
        if first <= train.steps:  # after the last step there may be an evaluation
            evaluate(state.params, 1)  # compiles, so that no step's time holds it

        def evaluation(done: int) -> dict[str, float]:
            found = evaluate(state.params)
            if state.ema:
                averaged = evaluate(state.ema)
                found |= {f"{name}_ema": x for name, x in averaged.items()}
            self.evaluated = done
            _note(result, found["val_loss"])
            return found

        def emit(done: int, values: dict[str, Any]) -> None:
            """Writes a record of the step, with an evaluation where one is due."""
            record = self._record(done, values)
            if self._due(train.eval_every, done):
                record |= evaluation(done)
                self.mark = time.perf_counter()
            self.metrics.write(record)
            progress.update(record)

        pending = None
        progress.start()
        self.mark = time.perf_counter()
        result["start_seconds"] = self.mark - self.started
        for done in range(first, train.steps + 1):
            self.profiler.before(done)
            batch, layers = read(), {}
            if train.diagnostics_every and done % train.diagnostics_every == 0:
                layers = diagnose(state, batch, peaks)
            state, values = compiled(state, batch, peaks)
            self.profiler.after(done, values)
            # One step late: the device has the next step to work on meanwhile.
            if pending:
                emit(*pending)
                pending = None
            stops = stop.at(done)
            save = self._due(train.checkpoint_every, done) or stops
            if result["reason"] != "diverged":
                if self._due(train.eval_every, done) or save or layers:
                    emit(done, values | by_layer(layers))
                elif done % self.log_every == 0:
                    pending = (done, values)
            if result["reason"] == "diverged":
                break
            if save:
                # The records first: a checkpoint stands for all of them.
                self.metrics.flush()
                self.checkpoints.save(state, batches.get_state())
                self.mark = time.perf_counter()
            if stops:
                break
        self.checkpoints.wait()
        result["peak_memory_bytes"] = memory.peak(compiled)
        if result["steps"] < train.steps and stop.reasons:
            result["reason"] = stop.reasons[0]
        elif result["reason"] != "diverged":
            if self.evaluated != train.steps:  # its record is lost
                tokens = train.steps * program.tokens_per_step
                times = {"tokens": tokens, "seconds": result["seconds"]}
                found = evaluation(train.steps)
                self.metrics.write({"step": train.steps, **times, **found})
            # A loss of before a step that was skipped is no loss of all the steps.
            good = records.finite(result["val_loss"]) is not None
            made = not int(state.bad_steps)
            result["reason"] = "completed" if good and made else "diverged"
        progress.line(f"{result['reason']} after {result['steps']} steps")

    def _due(self, every: int, done: int) -> bool:
        """Whether something is, that comes every so many steps and after the last."""
        return done == self.config.train.steps or (every > 0 and done % every == 0)

    def _record(self, done: int, values: dict[str, Any]) -> dict[str, Any]:
        """Fetches a step's metrics, which waits for the device."""
        result, tokens = self.result, self.program.tokens_per_step
        values = jax.tree.map(lambda x: x.item(), jax.device_get(values))
        now = time.perf_counter()
        elapsed, self.mark = now - self.mark, now
        steps = done - result["steps"]
        result["seconds"] += elapsed
        mark = extension.mark(self.extensions, result["steps"], done)
        result["steps"] = done
        bad_steps = values.pop("bad_steps")
        gradient, update = values.pop("bad_leaf"), values.pop("bad_update")
        record = {
            "step": done,
            **values,
            "tokens": done * tokens,
            "step_seconds": elapsed / steps,
            "tokens_per_second": steps * tokens / elapsed,
            "seconds": result["seconds"],
            **mark,
        }
        if bad_steps:
            names = leaf_names(self.program.abstract.params)
            where = "the loss"
            if gradient >= 0:
                where = f"the gradient of {names[gradient]}"
            elif update >= 0:
                where = f"the optimizer's update of {names[update]}"
            record["bad_steps"] = bad_steps
            self.progress.line(
                f"step {done}: {where} is not finite, skipped ({bad_steps} in a row)"
            )
        if bad_steps >= self.config.train.max_bad_steps:
            result["reason"] = "diverged"
        return record


def _note(result: dict[str, Any], val_loss: float) -> None:
    best = result["best_val_loss"]
    result["val_loss"] = val_loss
    if math.isfinite(val_loss) and (best is None or val_loss < best):
        result["best_val_loss"] = val_loss
