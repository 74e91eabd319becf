"""Every method's direction: what it steps along, without rate, sign and decay.

For training loops that have their own schedule, decay and sign, as big_vision's
configs do. A direction ascends: scale it by minus the rate.

Example:
  >>> import optax, optlab
  >>> tx = optax.chain(
  ...     optlab.directions.cosmos(rank=8),
  ...     optax.add_decayed_weights(0.1),
  ...     optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, 100)),
  ...     optax.scale(-2e-3),
  ... )

The functions take the arguments of their namesakes, less `learning_rate` and those of
decay. Rates of other groups of leaves (`adam_learning_rate`) are factors beside 1.
"""

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import optax

from optlab.compose import with_sign
from optlab.optimizers import adahessian as _adahessian
from optlab.optimizers import baselines as _baselines
from optlab.optimizers import cosmos as _cosmos
from optlab.optimizers import lanton as _lanton
from optlab.optimizers import lion as _lion
from optlab.optimizers import muon as _muon
from optlab.optimizers import normuon as _normuon
from optlab.optimizers import root as _root
from optlab.optimizers import scion as _scion
from optlab.optimizers import soap as _soap
from optlab.optimizers import spam as _spam
from optlab.optimizers import stable_spam as _stable_spam
from optlab.options import meanings
from optlab.signatures import own_names

# What the loop does itself; Scion's constraint is its decay.
_LOOPS_OWN = (
    *("learning_rate", "weight_decay", "weight_decay_mask", "adam_weight_decay"),
    *("cautious_decay", "constrained"),
)


def _direction(
    alias: Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """The direction of an alias, made by the alias itself at a rate of one."""
    signature = inspect.signature(alias)
    kept = [p for p in signature.parameters.values() if p.name not in _LOOPS_OWN]
    flat = signature.replace(parameters=kept)
    plain = {"constrained": False} if "constrained" in signature.parameters else {}

    @functools.wraps(alias)
    def direction(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        name = f"directions.{alias.__name__}()"
        if args:
            raise TypeError(
                f"{name} takes keyword arguments only, and no learning rate"
            )
        kwargs = own_names(alias, kwargs)
        try:
            flat.bind(**kwargs)
        except TypeError as error:
            raise TypeError(f"{name} {error}") from None
        turned = optax.chain(alias(1.0, **plain, **kwargs), optax.scale(-1.0))
        return with_sign(turned, descends=False)

    direction.__signature__ = flat  # type: ignore[attr-defined]
    # Pickled by their place in this module, not in that of the alias.
    direction.__module__ = __name__
    direction.__doc__ = (
        f"The direction of :func:`optlab.{alias.__name__}`, of which the arguments are."
        f"\n\nArgs:\n{textwrap.indent(meanings(alias.__doc__ or '', flat), '  ')}"
    )
    return direction


adahessian = _direction(_adahessian.adahessian)
adamw = _direction(_baselines.adamw)
cosmos = _direction(_cosmos.cosmos)
lanton = _direction(_lanton.lanton)
lion = _direction(_lion.lion)
muon = _direction(_muon.muon)
normuon = _direction(_normuon.normuon)
root = _direction(_root.root)
scion = _direction(_scion.scion)
sgd = _direction(_baselines.sgd)
soap = _direction(_soap.soap)
spam = _direction(_spam.spam)
stable_spam = _direction(_stable_spam.stable_spam)
