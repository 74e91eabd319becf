"""The arguments that many methods take, written down and documented once.

A method is written as `method(learning_rate, *, its_own=..., **options:
Unpack[MatrixOptions])` under the decorator `takes(MatrixOptions)`. To callers, to
`help`, to the runner and to `inspect.signature` the signature is flat; type checkers
see the names through `Unpack`.
"""

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import (
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    TypedDict,
    TypeVar,
    get_type_hints,
)

import jax
import optax
from jax.typing import DTypeLike

from optlab.matrices.buckets import Distribute
from optlab.matrices.orthogonalize import Coefficients
from optlab.roles import Matrix, Role, Rule
from optlab.signatures import own_names

Number = float | jax.Array
Rate = optax.ScalarOrSchedule | None
DecayMask = Literal["matrices"] | Any | None
Roles = Rule | Role | Matrix | Mapping[str, Any] | Any | None


class DecayOptions(TypedDict, total=False):
    """Decoupled weight decay, by roles where the mask says so."""

    weight_decay: Number | optax.Schedule
    weight_decay_mask: DecayMask
    cautious_decay: bool
    roles: Roles


class StateOptions(TypedDict, total=False):
    """What a leaf is, and the precision of its momentum."""

    roles: Roles
    mu_dtype: DTypeLike | None


class SpreadOptions(StateOptions, total=False):
    """How matrix work is spread over devices, and how much of it is done at a time."""

    distribute: Distribute | None
    chunk_bytes: int | None


class LayerOptions(DecayOptions, SpreadOptions, total=False):
    """Of a method that acts on every leaf by its role."""


class LeafOptions(DecayOptions, StateOptions, total=False):
    """Of a method that acts on every leaf by itself."""


class MatrixOptions(LayerOptions, total=False):
    """Of a method for hidden matrices, with AdamW elsewhere."""

    adam_learning_rate: Rate
    adam_b1: Number
    adam_b2: Number
    adam_eps: Number
    adam_weight_decay: Number | optax.Schedule | None


class NewtonSchulzOptions(TypedDict, total=False):
    """Of the momentum of a matrix and of what makes it orthogonal."""

    nesterov: bool
    ns_steps: int
    ns_coeffs: Coefficients
    normalize: Literal["frobenius", "schatten4"]
    ns_dtype: DTypeLike | None


class OrthogonalOptions(NewtonSchulzOptions, SpreadOptions, total=False):
    """Of a transform whose directions are orthogonal matrices."""


class MuonOptions(NewtonSchulzOptions, MatrixOptions, total=False):
    """Of such a method, with AdamW elsewhere."""


_DEFAULTS: dict[str, Any] = {
    "nesterov": True,
    "ns_steps": 5,
    "ns_coeffs": "muon",
    "normalize": "frobenius",
    "ns_dtype": None,
    "weight_decay": 0.0,
    "weight_decay_mask": None,
    "cautious_decay": False,
    "roles": None,
    "mu_dtype": None,
    "distribute": None,
    "chunk_bytes": None,
    "adam_learning_rate": None,
    "adam_b1": 0.9,
    "adam_b2": 0.95,
    "adam_eps": 1e-8,
    "adam_weight_decay": None,
}

_MEANING = {
    "nesterov": "whether the momentum looks one gradient ahead.",
    "ns_steps": "Newton-Schulz steps.",
    "ns_coeffs": """a name in `optlab.matrices.coefficients.presets.PRESETS`, a triple,
        or `ns_steps` of them. "fitted": those of :func:`optlab.fit_coefficients` for
        each shape, a triple for each step.""",
    "normalize": """the norm that the matrix is divided by, "frobenius" or
        "schatten4".""",
    "ns_dtype": """of the Newton-Schulz products. None: float32 on CPUs, bfloat16 on
        GPUs and TPUs, float64 for such momenta, see
        :mod:`optlab.matrices.precision`.""",
    "weight_decay": """decoupled: a step takes `learning_rate * weight_decay * p` off. A
        number or a schedule. At the plain number 0 `update` needs no parameters.""",
    "weight_decay_mask": """which leaves decay. None: all, scales and biases too, as in
        optax and the authors' code. "matrices": hidden matrices, embeddings and heads,
        but no vectors. Or a tree of booleans, or a function of the parameters that
        gives one.""",
    "cautious_decay": """whether an entry of `p` decays only where the step does not
        work against that: where the direction and `p` have one sign, or the direction
        is 0.""",
    "roles": """which leaf is what: a rule (`optlab.default_roles(...)`), or a tree of
        `Matrix`, `Embedding`, `VECTOR`, `optax.contrib.MuonDimensionNumbers` and None,
        under which a leaf is a table or a vector, never a hidden matrix. Without
        roles: `default_roles()`.""",
    "mu_dtype": """dtype of the momentum. None: that of the parameters, and at least
        float32.""",
    "distribute": """how matrix work is spread, such as
        `optlab.sharding.over_mesh(mesh, "data")`. None: each device does all of it.""",
    "chunk_bytes": """of the stacked matrices that are worked on at a time; fewer bytes
        need less temporary memory, more fill a large device. At least one matrix is.
        None: 1 MiB on a CPU, whose products of stacks are slow, and 16 MiB
        elsewhere.""",
    "adam_learning_rate": """of the leaves that are no hidden matrix. None:
        `learning_rate`.""",
    "adam_b1": """decay of Adam's momentum on the leaves that are no hidden matrix, in
        [0, 1).""",
    "adam_b2": """decay of Adam's second moment on the leaves that are no hidden matrix,
        in [0, 1).""",
    "adam_eps": """added to the root of Adam's second moment on the leaves that are no
        hidden matrix.""",
    "adam_weight_decay": """of the leaves that are no hidden matrix. None:
        `weight_decay`.""",
}


def pick(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that a `TypedDict` of this file names."""
    return {name: options[name] for name in get_type_hints(kind) if name in options}


_Factory = TypeVar("_Factory", bound=Callable[..., Any])
_P = ParamSpec("_P")
_T = TypeVar("_T")

# In docstrings, the line that the arguments' meanings take the place of.
_PLACE = re.compile(r"^(?P<indent> *)\*\*options: .*\n", re.M)


def takes(
    options: type,
    *,
    without: tuple[str, ...] = (),
    one_momentum: bool = True,
    **defaults: Any,
) -> Callable[[_Factory], _Factory]:
    """Gives a factory with `**options` its flat signature and the text about them.

    The factory gets every option, with its default where the caller gave none. The
    line `**options: ...` of its docstring becomes their documentation.

    Args:
      options: a `TypedDict` of options, of this file.
      without: names of options that the factory does not take.
      one_momentum: whether its `b1` or `momentum` is the decay of the momentum, and may
        be given under either name.
      **defaults: where the factory's own differ.

    Returns:
      The decorator. Calls with unknown or doubled arguments raise `TypeError`, as
      Python's own do.
    """
    values = _DEFAULTS | defaults
    types = get_type_hints(options)
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=values[name],
            annotation=types[name],
        )
        for name in _DEFAULTS
        if name in types and name not in without
    ]

    def decorate(factory: _Factory) -> _Factory:
        signature = inspect.signature(factory)
        own = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        flat = signature.replace(parameters=[*own, *shared])
        called = _called_as(
            flat, factory, lambda indent: _documentation(shared, indent)
        )
        called.synonyms = _synonyms(flat) if one_momentum else {}
        return called

    return decorate


def takes_as(
    method: Callable[_P, _T], *, without: tuple[str, ...] = (), **defaults: Any
) -> Callable[[Callable[..., Any]], Callable[_P, _T]]:
    """Gives a factory with `**options` the signature of another one, and its text.

    Args:
      method: the other one.
      without: names of arguments that the factory does not take.
      **defaults: where the factory's own differ.

    Returns:
      The decorator, as that of :func:`takes`.
    """
    signature = inspect.signature(method)
    kept = [
        parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in signature.parameters.items()
        if name not in without
    ]
    flat = signature.replace(parameters=kept)

    def text(indent: str) -> str:
        return textwrap.indent(meanings(method.__doc__ or "", flat), indent)

    def decorate(factory: Callable[..., Any]) -> Callable[_P, _T]:
        called = _called_as(flat, factory, text)
        called.synonyms = getattr(method, "synonyms", {})
        return called

    return decorate


def _synonyms(flat: inspect.Signature) -> dict[str, str]:
    """Other names for arguments of a signature, each with the signature's own."""
    pairs = (("b1", "momentum"), ("momentum", "b1"))
    names = flat.parameters
    return {other: own for own, other in pairs if own in names and other not in names}


def meanings(text: str, signature: inspect.Signature) -> str:
    """The entries of a docstring for the arguments that a signature has."""
    kept = [
        entry.text
        for entry in entries(text)
        if signature.parameters.keys() & set(entry.names)
    ]
    return "\n".join(kept) + "\n"


class Entry(NamedTuple):
    """What a docstring says of one argument, or of several.

    Attributes:
      names: of the arguments.
      text: names and meaning, line by line as they are written.
      meaning: in one line.
    """

    names: tuple[str, ...]
    text: str
    meaning: str


def entries(text: str) -> list[Entry]:
    """The entries of a docstring below `Args:`, in their order.

    An entry is `name: meaning`, `name (type): meaning` or `name, other: meaning`;
    lines that are indented further go on with it.
    """
    inside = inspect.cleandoc(text).partition("\nArgs:\n")[2]
    block = textwrap.dedent(re.split(r"^\S", inside, maxsplit=1, flags=re.M)[0])
    parts = re.split(r"^([*\w][*\w, ]*)((?: \([^)\n]*\))?:)", block, flags=re.M)
    return [
        Entry(
            tuple(re.findall(r"\w+", names)),
            (names + kind + meaning).rstrip(),
            " ".join(meaning.split()),
        )
        for names, kind, meaning in zip(
            parts[1::3], parts[2::3], parts[3::3], strict=True
        )
    ]


def _called_as(
    flat: inspect.Signature, factory: Callable[..., Any], text: Callable[[str], str]
) -> Any:
    """The factory under a signature, its docstring filled in by `text(indent)`."""

    @functools.wraps(factory)
    def called(*args: Any, **kwargs: Any) -> Any:
        kwargs = own_names(called, kwargs)
        try:
            bound = flat.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{factory.__name__}() {error}") from None
        bound.apply_defaults()
        return factory(*bound.args, **bound.kwargs)

    called.__signature__ = flat  # type: ignore[attr-defined]
    called.__doc__ = _PLACE.sub(
        lambda place: text(place["indent"]), factory.__doc__ or ""
    )
    return called


def _documentation(shared: list[inspect.Parameter], indent: str) -> str:
    entries = []
    for parameter in shared:
        text = " ".join(_MEANING[parameter.name].split())
        entries.append(
            textwrap.fill(
                f"{parameter.name}: {text}",
                width=88,
                initial_indent=indent,
                subsequent_indent=indent + "  ",
            )
        )
    return "\n".join(entries) + "\n"
