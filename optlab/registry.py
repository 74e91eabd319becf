"""Optimizers by name, each with the extra arguments that its `update` needs.

A factory is `factory(learning_rate, **its keyword arguments)`. A training loop asks an
entry which arguments its method takes and what it has to compute for it, so that it
never asks for a name.
"""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import optax

from optlab import checks
from optlab.optimizers import root as _root
from optlab.optimizers import spam as _spam
from optlab.optimizers.adahessian import adahessian
from optlab.optimizers.baselines import adamw, sgd
from optlab.optimizers.cosmos import cosmos
from optlab.optimizers.hyperballs import adam_h, cosmos_h, muon_h, soap_h
from optlab.optimizers.lanton import lanton
from optlab.optimizers.lion import lion
from optlab.optimizers.muon import muon
from optlab.optimizers.normuon import normuon
from optlab.optimizers.scion import scion
from optlab.optimizers.soap import soap
from optlab.optimizers.stable_spam import stable_spam
from optlab.options import Rate
from optlab.origins import refuse_other
from optlab.signatures import own_names, takes
from optlab.state import Diagnose
from optlab.wrappers import noise as _noise

Needs = Callable[[Mapping[str, Any]], tuple[str, ...]]


class Entry(NamedTuple):
    """An optimizer of the registry.

    Attributes:
      name: what it is called.
      factory: `factory(learning_rate, **kwargs)` to an optax transformation.
      needs: extra arguments of `update` that the caller must supply, such as
        `("hessian_diag",)`, where the factory has its defaults.
      needs_for: the same as a function of a mapping of the factory's keyword arguments.
      diagnose: what :func:`optlab.diagnostics.layer_diagnostics` calls for a state of
        that class.
    """

    name: str
    factory: Callable[..., optax.GradientTransformation]
    needs: tuple[str, ...]
    needs_for: Needs
    diagnose: Mapping[type, Diagnose]

    def takes(self, argument: str) -> bool:
        """Whether the factory has an argument of that name."""
        return takes(self.factory, argument)

    def taken(self, offered: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the arguments that the factory has, under its own names.

        Raises:
          ValueError: an argument is offered under two names.
        """
        named = own_names(self.factory, offered)
        return {name: x for name, x in named.items() if self.takes(name)}

    def build(
        self, learning_rate: Rate, **offered: Any
    ) -> optax.GradientTransformation:
        """The optimizer, from what a caller has for every method alike.

        Args:
          learning_rate: a number, a schedule or None.
          **offered: arguments by name. The factory gets those that it has; the others
            are for other methods.

        Returns:
          The transformation.
        """
        return self.factory(learning_rate, **self.taken(offered))


_ENTRIES: dict[str, Entry] = {}


def register(
    name: str,
    factory: Callable,
    needs: tuple[str, ...] | Needs = (),
    *,
    diagnose: Mapping[type, Diagnose] | None = None,
) -> None:
    """Adds an optimizer from outside, for the runner and the sweeps to use.

    Args:
      name: to call it by.
      factory: `factory(learning_rate, **kwargs)` to an optax transformation.
      needs: names of the extra arguments that `update` must get, or a function of the
        keyword arguments, as a mapping, that gives them.
      diagnose: numbers of each layer that the method adds to
        :func:`optlab.diagnostics.layer_diagnostics`. By the class of a state, that of
        a transform which the method is made of: a function of an
        :class:`optlab.state.Observed` to trees by name, with one number a layer.

    Raises:
      ValueError: the name is taken by another factory; both files are named. The same
        function of the same file is no other one: a config file that is read again has
        made it again. Or `needs` is a string and no tuple of names.
    """
    if not callable(needs):
        checks.names(needs=needs)
    refuse_other(name, _ENTRIES[name].factory if name in _ENTRIES else None, factory)
    needs_for = needs if callable(needs) else partial(_always, tuple(needs))
    _ENTRIES[name] = Entry(name, factory, needs_for({}), needs_for, diagnose or {})


def _always(needs: tuple[str, ...], _: Mapping[str, Any]) -> tuple[str, ...]:
    return needs


def diagnosed() -> list[tuple[type, Diagnose]]:
    """The classes of states that some method diagnoses, each with its function."""
    pairs = (pair for entry in _ENTRIES.values() for pair in entry.diagnose.items())
    return list(dict.fromkeys(pairs))


def names() -> list[str]:
    """The names of all optimizers, sorted."""
    return sorted(_ENTRIES)


def get(name: str) -> Entry:
    """The entry of that name.

    Raises:
      ValueError: there is none; the message holds the nearest name and all others.
    """
    if name not in _ENTRIES:
        near = difflib.get_close_matches(name, _ENTRIES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"unknown optimizer {name!r}: {hint}there are {', '.join(names())}"
        )
    return _ENTRIES[name]


def _lanton_needs(kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    return ("other_grads",) if kwargs.get("noise") == "paired" else ()


register("adahessian", adahessian, needs=("hessian_diag",))
register("adam_h", adam_h)
register("adamw", adamw)
register("cosmos", cosmos)
register("cosmos_h", cosmos_h)
register(
    "lanton",
    lanton,
    needs=_lanton_needs,
    diagnose={_noise.NoiseAdaptiveState: _noise.diagnose},
)
register("lion", lion)
register("muon", muon)
register("muon_h", muon_h)
register("normuon", normuon)
register("scion", scion)
register("root", _root.root, diagnose={_root.ScaleByRootState: _root.diagnose})
register("sgd", sgd)
register("soap", soap)
register("soap_h", soap_h)
register("spam", _spam.spam, diagnose={_spam.ScaleBySpamState: _spam.diagnose})
register("stable_spam", stable_spam)
