"""The training loop: from a config and a folder to a trained model and its records."""

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

import optlab
from experiments.config import UserError
from experiments.tasks import TASKS
from experiments.trainer import optimizer as optimizers
from experiments.trainer.checkpoints import Checkpoints
from experiments.trainer.metrics import MetricsWriter, finite_or_none
from experiments.trainer.progress import Progress
from experiments.trainer.state import init_state, leaf_names, tree_bytes
from experiments.trainer.step import batches_per_step, make_train_step
from experiments.trainer.workdir import Workdir, provenance

_STATUS = {"completed": 0, "diverged": 3, "interrupted": 130, "preempted": 143}
_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "preempted"}


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    overrides: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> int:
    """Trains, goes on where the folder's run stopped, or finds it completed.

    Args:
      config: from `experiments.config.load`.
      workdir: the run's folder.
      overrides: fields that the command line set, for the record.
      overwrite: remove what an earlier run left there.

    Returns:
      The exit status: 0 completed, 3 diverged, 130 and 143 stopped by a signal.

    Raises:
      UserError: if the config cannot be trained or the folder not be used (nothing has
        been compiled then, and the folder is as it was), or the disk is full.
    """
    run = _Run(config)
    folder = Workdir(workdir, config, run.task.digest, overwrite=overwrite)
    try:
        if folder.result is not None:
            print(f"{workdir} is complete: val_loss {folder.result['val_loss']:.4f}")
            return 0
        folder.write_json(
            "config.json",
            {
                "config": config.to_dict(),
                "overrides": overrides or {},
                "data_digest": run.task.digest,
                **provenance(),
            },
        )
        with _stop_requests() as stop:
            result = run.execute(folder, stop)
        return _STATUS[result["reason"]]
    except OSError as error:
        where = error.filename or workdir
        reason = error.strerror or type(error).__name__
        raise UserError(f"--workdir: {where}: {reason}") from error
    finally:
        folder.close()


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[str]]:
    """Gathers the reasons of SIGINT and SIGTERM, for the loop to see between steps."""
    reasons: list[str] = []

    def remember(number, frame):
        del frame
        reasons.append(_SIGNALS[signal.Signals(number)])
        # A second signal of the kind ends the process at once.
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, remember) for number in _SIGNALS}
    try:
        yield reasons
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    """One training run; building it checks the config, and compiles nothing."""

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        try:
            self.task = TASKS[config.task.name](config)
            self.tx, self.peaks = optimizers.make_optimizer(config, self.task.roles)
            schedule = optimizers.make_schedule(config)
            kwargs = dict(config.optimizer.kwargs)
            needs = optlab.registry.get(config.optimizer.name).needs_for(kwargs)
            self.batches_per_step = batches_per_step(needs)
            self.step = make_train_step(
                self.task,
                self.tx,
                schedule,
                needs=needs,
                hessian_interval=kwargs.get("hessian_interval", 1),
                accumulate=config.train.accumulate,
                clip_norm=config.train.clip_norm,
            )
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            self.abstract = jax.tree.map(
                lambda leaf: leaf.update(sharding=device),
                jax.eval_shape(self._init, np.uint32(0)),
            )
        except (ValueError, TypeError) as error:
            raise UserError(f"--config: {str(error).splitlines()[0]}") from error
        few = config.train.steps < 1000
        self.tokens_per_step = self.batches_per_step * self.task.tokens_per_batch
        self.log_every = config.train.log_every or (1 if few else 10)

    def _init(self, seed):
        return init_state(self.task, self.tx, seed)

    def execute(self, folder: Workdir, stop: list[str]) -> dict[str, Any]:
        """Trains until the last step, a signal, or too many bad steps."""
        started = time.perf_counter()
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(
                contextlib.closing(Progress(folder.path, self.config.train.steps))
            )
            checkpoints = Checkpoints(folder.path / "checkpoints", progress.line)
            stack.enter_context(contextlib.closing(checkpoints))
            begun = checkpoints.restore(self.abstract)
            after = int(begun[0].step) if begun else 0
            metrics = stack.enter_context(
                contextlib.closing(MetricsWriter(folder.path, after))
            )
            result = self._result_so_far(metrics.kept)
            try:
                self._train(
                    progress=progress,
                    metrics=metrics,
                    checkpoints=checkpoints,
                    begun=begun,
                    result=result,
                    stop=stop,
                )
            except BaseException as error:
                # A full disk takes no word about itself either.
                with contextlib.suppress(OSError):
                    progress.line(f"failed: {type(error).__name__}: {error}")
                raise
            finally:
                result["total_seconds"] = time.perf_counter() - started
                with contextlib.suppress(OSError):
                    folder.write_json("result.json", finite_or_none(result))
        return result

    def _result_so_far(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """What an earlier part of the run has come to."""
        result = {
            "val_loss": None,
            "best_val_loss": None,
            "steps": records[-1]["step"] if records else 0,
            "seconds": records[-1]["seconds"] if records else 0.0,
            "peak_memory_bytes": None,
            "optimizer_state_bytes": tree_bytes(self.abstract.opt_state.inner_state),
            "reason": "failed",
        }
        for record in records:
            if record.get("val_loss") is not None:
                _note(result, record["val_loss"])
        return result

    def _train(self, *, progress, metrics, checkpoints, begun, result, stop) -> None:
        train = self.config.train
        for field in optimizers.unused_fields(self.config):
            progress.line(f"{field} is set, {self.config.optimizer.name} has none")
        roles = self.task.roles
        table = optlab.describe(
            self.abstract.params,
            roles,
            self.tx,
            decay_mask=optimizers.decay_mask(roles),
        )
        progress.line(str(table))
        peaks = {name: np.float32(value) for name, value in self.peaks.items()}
        batches = self.task.train_iterator(self.config.seed)

        def read() -> tuple:
            return tuple(next(batches) for _ in range(self.batches_per_step))

        evaluation = [jax.device_put(batch) for batch in self.task.eval_batches()]
        state, position = begun or (
            jax.jit(self._init)(np.uint32(self.config.seed)),
            batches.get_state(),
        )
        first = int(state.step) + 1
        if first > 1:
            progress.line(f"goes on after step {first - 1}")
        compiled = (
            jax.jit(self.step, donate_argnums=0)
            .lower(self.abstract, read(), peaks)
            .compile()
        )
        batches.set_state(position)
        eval_loss = jax.jit(self.task.eval_loss)
        eval_loss(state.params, evaluation[0]).block_until_ready()
        leaves = leaf_names(self.abstract.params)

        def evaluate() -> float:
            losses = [eval_loss(state.params, batch) for batch in evaluation]
            return float(np.mean(jax.device_get(losses)))

        def emit(done: int, values: dict[str, Any], **more: float) -> None:
            """Fetches a step's metrics, which waits for the device, and writes them."""
            nonlocal mark
            values = jax.tree.map(lambda x: x.item(), jax.device_get(values))
            now = time.perf_counter()
            elapsed, mark = now - mark, now
            steps = done - result["steps"]
            result["seconds"] += elapsed
            result["steps"] = done
            bad_steps, leaf = values.pop("bad_steps"), values.pop("bad_leaf")
            record = {
                "step": done,
                **values,
                "tokens": done * self.tokens_per_step,
                "step_seconds": elapsed / steps,
                "tokens_per_second": steps * self.tokens_per_step / elapsed,
                "seconds": result["seconds"],
            }
            if bad_steps:
                where = f"the gradient of {leaves[leaf]}" if leaf >= 0 else "the loss"
                record["bad_steps"] = bad_steps
                progress.line(
                    f"step {done}: {where} is not finite, skipped "
                    f"({bad_steps} in a row)"
                )
            if done in due:
                record["val_loss"] = evaluate()
                _note(result, record["val_loss"])
                mark = time.perf_counter()
            metrics.write(record)
            progress.update(record)
            if bad_steps >= train.max_bad_steps:
                result["reason"] = "diverged"

        due = {*range(train.eval_every, train.steps, train.eval_every), train.steps}
        every = train.checkpoint_every
        saves = {*range(every, train.steps, every), train.steps} if every else set()
        pending = None
        progress.start()
        mark = time.perf_counter()
        for done in range(first, train.steps + 1):
            state, values = compiled(state, read(), peaks)
            # One step late: the device has the next step to work on meanwhile.
            if pending:
                emit(*pending)
                pending = None
            save = done in saves or stop
            if result["reason"] != "diverged":
                if done in due or save:
                    emit(done, values)
                elif done % self.log_every == 0:
                    pending = (done, values)
            if result["reason"] == "diverged":
                break
            if save:
                # The records first: a checkpoint stands for all of them.
                metrics.flush()
                checkpoints.save(state, batches.get_state())
                mark = time.perf_counter()
            if stop:
                break
        checkpoints.wait()
        result["peak_memory_bytes"] = _peak_memory(compiled)
        if result["steps"] < train.steps and stop:
            result["reason"] = stop[0]
        elif result["reason"] != "diverged":
            good = math.isfinite(result["val_loss"])
            result["reason"] = "completed" if good else "diverged"
        progress.line(f"{result['reason']} after {result['steps']} steps")


def _note(result: dict[str, Any], val_loss: float) -> None:
    best = result["best_val_loss"]
    result["val_loss"] = val_loss
    if math.isfinite(val_loss) and (best is None or val_loss < best):
        result["best_val_loss"] = val_loss


def _peak_memory(compiled) -> int:
    """The device's own peak, or what the compiled step holds where it keeps none."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    plan = compiled.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )
