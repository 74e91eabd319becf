"""A page for every method, from its file's docstring, its signature and these words."""

import inspect

import optlab
from docs.site import docstrings, numbers
from docs.site.words import METHODS
from optlab import registry


def default(value: object) -> str:
    """An argument's default as a table shows it."""
    if value is inspect.Parameter.empty:
        return "to be given"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def defaults_table(name: str) -> str:
    """Every argument with the values of the paper, the authors' code and ours."""
    theirs = METHODS[name].theirs
    ours = inspect.signature(registry.get(name).factory).parameters
    unknown = set(theirs) - set(ours)
    if unknown:
        raise ValueError(f"{name} has no argument {', '.join(sorted(unknown))}")
    body = [
        [f"`{argument}`", *theirs.get(argument, ("—", "—")), default(found.default)]
        for argument, found in ours.items()
        if argument in theirs
    ]
    return numbers.table(["argument", "paper", "authors' code", "optlab"], body)


def example(name: str) -> str:
    """The code of a method's page, as a doctest."""
    factory = registry.get(name).factory
    text = inspect.getdoc(factory) or ""
    lines = [line.strip() for line in text.splitlines()]
    start = lines.index("Example:") + 1
    return "\n".join(lines[start : lines.index("", start)])


def page(name: str) -> str:
    """A method's page, as Markdown."""
    words = METHODS[name]
    # What steps on a sphere has no direction by its name.
    names = [x for x in (name, f"scale_by_{name}") if hasattr(optlab, x)]
    functions = "\n\n".join(f"::: optlab.{x}" for x in names)
    parts = docstrings.of_method(registry.get(name).factory.__module__)
    return f"""# {words.title}

{words.line}

## The idea

{words.idea}

![A gradient, the update that {words.title} makes of it, and the singular values of \
both](../pictures/{name}.png)

Every method gets the same thirty gradients: a few strong directions, many weak ones,
and noise. The last gradient has two entries a hundred times larger than the others. The
maps show it and the update that follows, each in units of its median entry, and
the curves their singular values. `make pictures` draws them.

## Use it

```python
{example(name)}
```

In a sweep or a run of [the runner](../runner.md): `--config.optimizer.name={name}`.

## Rate, memory and cost

{numbers.of_method(name)}

What these numbers cover, and what not, is on [Which optimizer](../which.md).

**Tune next:** {words.tune}

**Take something else:** {words.skip}

## Equations

{parts.equations}
## Defaults

{defaults_table(name)}

"—" means that it is not said there, or that we do not know it.

## Where it differs from the authors' code

{parts.deviations}
## References

{parts.references}

## Arguments

{functions}
"""
