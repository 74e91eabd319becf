"""More steps for a run that has been: what may change, and what is recorded of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments import schedules
from experiments.errors import UserError

# What may differ from the run that goes on: its length, and the schedule's future.
FIELDS = ("train.steps", "schedule.", "schedule_digest")


def extension(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    done: int,
    *,
    change_schedule: bool,
) -> dict[str, Any]:
    """What config.json and result.json have of an extension.

    Args:
      before: fields of the run's config by dotted path.
      now: those that are asked for.
      done: steps that the run has made.
      change_schedule: take a schedule whose past would have been another one.

    Raises:
      UserError: if there are no more steps, or the past of the schedule changes.
    """
    old, new = before["train.steps"], now["train.steps"]
    if new <= old:
        raise UserError(
            f"--extend: train.steps={new}, allowed more than the {old} of the run"
        )
    change = _first_change(before, now, done)
    if change and not change_schedule:
        step, was, would_be = change
        raise UserError(
            f"--extend: with train.steps={new} step {step} would have {would_be:.6g} "
            f"of the peak rate, and had {was:.6g}; {_advice(before, now, done)}"
        )
    fields = sorted(x for x in before.keys() | now.keys() if x.startswith("schedule."))
    return {
        "from_steps": old,
        "to_steps": new,
        "same_past": not change,
        "changed": {
            x: [before.get(x), now.get(x)]
            for x in fields
            if before.get(x) != now.get(x)
        },
    }


def all_of(folder: Any, after: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The extensions of a run, the one that begins now among them.

    Args:
      folder: a `Workdir` or a `Follower`.
      after: the step that the run goes on from.
      say: takes a line for the user.
    """
    new = folder.extension
    if new is None:
        return list(folder.extensions)
    past = "the same" if new["same_past"] else "another"
    say(
        f"extended after step {after}, from {new['from_steps']} to {new['to_steps']} "
        f"steps; the schedule has {past} past"
    )
    return [*folder.extensions, {"after_step": after} | new]


def told(extensions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What config.json and result.json have of them, {} of none."""
    return {"extensions": list(extensions)} if extensions else {}


def mark(
    extensions: Sequence[Mapping[str, Any]], before: int, done: int
) -> dict[str, int]:
    """What the first record after an extension has, {} in all others.

    Args:
      extensions: of the run.
      before: step of the record before.
      done: step of this one.
    """
    ends = [x["after_step"] for x in extensions if before <= x["after_step"] < done]
    return {"extended_after": ends[-1]} if ends else {}


def _first_change(
    before: Mapping[str, Any], now: Mapping[str, Any], done: int
) -> tuple[int, float, float] | None:
    try:
        return schedules.first_change(before, now, done)
    except ValueError as error:
        raise UserError(f"--extend: {error}") from error


def _advice(before: Mapping[str, Any], now: Mapping[str, Any], done: int) -> str:
    """What keeps the past, or how to give it up."""
    anyway = f"--change_schedule to take the new schedule from step {done + 1} on"
    warmup = schedules.warmup_steps(before)
    field = "schedule.warmup_fraction"
    same = dict(now) | {field: warmup / now["train.steps"]}
    if warmup != schedules.warmup_steps(now) and not _first_change(before, same, done):
        return (
            f"pass --config.{field}={same[field]!r} to keep the {warmup} steps of the "
            f"warm-up, or {anyway}"
        )
    return f"pass {anyway}, or choose a schedule with the same past"
