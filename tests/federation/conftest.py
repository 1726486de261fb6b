"""Client functions that engines are tried with."""

from privbench.benchmarks.build import ConfigError


def fail_at_three(context, item):
    if item == 3:
        raise ZeroDivisionError("item three")
    return item


def refuse(context, item):
    raise ConfigError("alpha", item, "more than 0")
