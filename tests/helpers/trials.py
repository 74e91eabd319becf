"""What the storage of a sweep holds."""

import optuna

from experiments.launchers.storage import Storage


def recorded(url: str) -> list[tuple[str, str, float | None]]:
    """State, point and value of all trials of a storage with one study."""
    storage = Storage(url).optuna
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    return [(t.state.name, t.user_attrs["point"], t.value) for t in study.trials]
