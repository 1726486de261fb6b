from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pytest

from privbench.benchmarks.build import RUNTIME, ConfigError, build, canonical, conform, require, resolve, settings

HERE = "privbench_test_components"


class Sized(Protocol):
    size: int

    def grow(self) -> int: ...


@dataclass(frozen=True)
class Leaf:
    size: int = 1
    rate: float = 0.5
    kind: Literal["a", "b", 3] = "a"
    shape: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)
    either: float | Literal["auto"] = 1.0
    name: str | None = None
    flag: bool = False
    workers: int | None = field(default=None, metadata=RUNTIME)

    def __post_init__(self) -> None:
        require(self.size > 0, "size", self.size, "at least 1")

    def grow(self) -> int:
        return self.size + 1


@dataclass(frozen=True)
class Branch:
    leaf: Sized
    leaves: tuple[Leaf, ...] = ()
    table: Mapping[str, float] = field(default_factory=dict)
    function: Callable[..., Any] | None = None
    needed: int = field(kw_only=True)


def shout(word: str, times: int = 1) -> str:
    return word.upper() * times


def anything(**named: Any) -> dict[str, Any]:
    return named


@pytest.fixture(autouse=True)
def _components(monkeypatch):
    """These components, importable as a package that is not privbench's."""
    import sys
    import types

    module = types.ModuleType(HERE)
    for thing in (Leaf, Branch, shout, anything):
        setattr(module, thing.__name__, thing)
    module.constant = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, HERE, module)


def make(target: str, **fields: Any) -> Any:
    return build({"_target_": f"{HERE}.{target}", **fields}, trusted=[HERE])


def refused(call: Callable[[], Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def test_plain_containers_stay():
    assert build({"a": [1, {"b": None}], "c": "x"}) == {"a": [1, {"b": None}], "c": "x"}
    assert build(()) == []
    assert build(None) is None


def test_values_are_conformed():
    leaf = make("Leaf", rate=2, shape=[3, 4], pair=[1, 2], either="auto", kind=3)
    assert leaf == Leaf(rate=2.0, shape=(3, 4), pair=(1, 2.0), either="auto", kind=3)
    assert isinstance(leaf.rate, float)
    assert isinstance(leaf.pair[1], float)
    assert isinstance(make("Leaf", either=2).either, float)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 1.0},
        {"size": True},
        {"size": "1"},
        {"size": None},
        {"rate": "0.5"},
        {"rate": True},
        {"kind": "c"},
        {"kind": True},
        {"kind": "3"},
        {"shape": 3},
        {"shape": "12"},
        {"shape": [1, 2.5]},
        {"pair": [1]},
        {"pair": [1, 2, 3]},
        {"either": "manual"},
        {"name": 3},
        {"flag": 1},
        {"flag": "true"},
        {"workers": 1.5},
        {"shape": {"a": 1}},
    ],
)
def test_a_wrong_type_is_refused_by_name(fields):
    error = refused(lambda: make("Leaf", **fields))
    assert error.field == next(iter(fields))
    assert error.expected.startswith("expected ")


@pytest.mark.parametrize(
    "fields", [{"rate": float("nan")}, {"pair": [1, float("nan")]}, {"either": float("nan")}, {"shape": float("nan")}]
)
def test_nan_is_no_number(fields):
    error = refused(lambda: make("Leaf", **fields))
    assert (error.field, error.expected) == (next(iter(fields)), "expected a number")


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        (tuple[int, ...], "x", "expected a list of int, got str"),
        (tuple[int, ...], 3, "expected a list such as [3], got int"),
        (tuple[int, float], [1], "expected a list of 2 (int, float), got list"),
        (list[str] | None, 3, "expected a list of str or null, got int"),
        (Sequence[Literal["a", "b"]], "c", "expected a list of one of a, b, got str"),
        (Mapping[str, float], 3, "expected a mapping to float, got int"),
        (Callable[..., Any], 3, "expected a function, got int"),
    ],
)
def test_types_are_said_in_words(hint, value, said):
    assert refused(lambda: conform(value, hint, "x")).expected == said


def test_hints_that_cannot_be_read_are_not_checked_and_no_signature_is_bad_input():
    class Net:
        def __init__(self, thing: "Nowhere" = None) -> None:  # type: ignore[name-defined]  # noqa: F821
            self.thing = thing

    import sys

    sys.modules[HERE].Net = Net  # type: ignore[attr-defined]
    assert make("Net", thing=3).thing == 3
    error = refused(lambda: build({"a": {"_target_": "collections.OrderedDict"}}, trusted=["collections"]))
    assert error.field == "a._target_"


def test_what_would_be_right_is_said():
    assert "one of a, b, 3" in str(refused(lambda: make("Leaf", kind="z")))
    assert str(refused(lambda: make("Leaf", either="z"))) == "either=z: expected float or one of auto, got str"
    assert "str or null" in str(refused(lambda: make("Leaf", name=1)))
    assert str(refused(lambda: make("Leaf", size=0))) == "size=0: at least 1"


def test_unknown_and_missing_fields():
    error = refused(lambda: make("Leaf", sise=3))
    assert error.field == "sise"
    assert "size, rate, kind" in error.expected
    error = refused(lambda: make("Branch", leaf={"_target_": f"{HERE}.Leaf"}))
    assert error.field == "needed"
    error = refused(lambda: build({"b": {"_target_": f"{HERE}.Branch", "needed": 1}}, trusted=[HERE]))
    assert error.field == "b.leaf"


@pytest.mark.parametrize(
    ("config", "field_"),
    [
        ({"leaf": {"_target_": f"{HERE}.Leaf", "size": 0}}, "root.leaf.size"),
        ({"leaf": {"_target_": f"{HERE}.Leaf", "size": "x"}}, "root.leaf.size"),
        ({"leaf": {"_target_": f"{HERE}.Leaf", "no": 1}}, "root.leaf.no"),
        ({"leaf": {"_target_": f"{HERE}.Nothing"}}, "root.leaf._target_"),
        ({"leaf": 3}, "root.leaf"),
        ({"leaf": {"size": 1}}, "root.leaf"),
        ({"leaves": [{"_target_": f"{HERE}.Leaf"}, {"_target_": f"{HERE}.Leaf", "size": -1}]}, "root.leaves[1].size"),
        ({"leaves": [{"_target_": f"{HERE}.shout", "word": "x"}]}, "root.leaves"),
        ({"table": {"a": "x"}}, "root.table"),
        ({"table": [1]}, "root.table"),
        ({"function": 3}, "root.function"),
    ],
)
def test_messages_name_the_whole_path(config, field_):
    whole = {"_target_": f"{HERE}.Branch", "leaf": {"_target_": f"{HERE}.Leaf"}, "needed": 1, **config}
    error = refused(lambda: build({"root": whole}, trusted=[HERE]))
    assert error.field == field_


def test_nesting_protocols_and_functions():
    branch = make(
        "Branch",
        leaf={"_target_": f"{HERE}.Leaf", "size": 2},
        leaves=[{"_target_": f"{HERE}.Leaf"}],
        table={"a": 1},
        function={"_target_": f"{HERE}.shout", "_partial_": True, "times": 2},
        needed=1,
    )
    assert branch.leaf.grow() == 3
    assert branch.leaves == (Leaf(),)
    assert branch.table == {"a": 1.0}
    assert branch.function("a") == "AA"
    assert branch.function("a", times=1) == "A"
    assert make("shout", word="hi") == "HI"
    assert refused(lambda: make("shout", word=3)).field == "word"
    assert refused(lambda: make("shout", words="a")).field == "words"
    assert make("anything", a=1, b=[2]) == {"a": 1, "b": [2]}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("os.system", "trusted_targets"),
        ("builtins.eval", "trusted_targets"),
        (f"{HERE}x.Leaf", "trusted_targets"),
        ("privbenchmark.Leaf", "trusted_targets"),
        ("privbench.nowhere.Leaf", "importable"),
        ("privbench.benchmarks.build.Nothing", "importable"),
        ("privbench.benchmarks.build.RUNTIME", "a class or a function"),
        ("privbench.benchmarks.build.resolve", "not the builder"),
        ("privbench.benchmarks.conform.conform", "not the builder"),
        ("privbench.benchmarks.results.record.Path", "privbench's own"),
        ("privbench.benchmarks.build.dataclasses.replace", "importable"),
        (f"{HERE}_broken.Leaf", "division by zero"),
        (f"{HERE}.constant", "a class or a function"),
        ("Leaf", "dotted path"),
        (3, "dotted path"),
        (None, "dotted path"),
    ],
)
def test_targets(target, said, tmp_path, monkeypatch):
    (tmp_path / f"{HERE}_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    error = refused(lambda: build({"x": {"_target_": target}}, trusted=[HERE, f"{HERE}_broken"]))
    assert error.field == "x._target_"
    assert said in str(error)


def test_a_trusted_package_is_not_trusted_elsewhere():
    assert resolve(f"{HERE}.Leaf", [HERE]) is Leaf
    assert "trusted_targets" in str(refused(lambda: resolve(f"{HERE}.Leaf")))


def test_conform_keeps_sequences_apart_from_strings():
    assert conform([1, 2], Sequence[int], "x") == (1, 2)
    assert conform((1,), list[int], "x") == [1]
    assert refused(lambda: conform("ab", Sequence[str], "x")).field == "x"


def test_settings_leave_out_defaults_and_runtime():
    config = {
        "_target_": f"{HERE}.Leaf",
        "size": 1,
        "rate": 0.25,
        "shape": [1, 2],
        "workers": 7,
        "name": None,
        "flag": False,
        "either": 1,
    }
    assert settings(config, [HERE]) == {"_target_": f"{HERE}.Leaf", "rate": 0.25}
    assert settings({**config, "shape": [2, 1]}, [HERE])["shape"] == [2, 1]
    assert settings({**config, "flag": True}, [HERE])["flag"] is True
    nested = settings({"a": [config], "seed": 0}, [HERE])
    assert nested == {"a": [{"_target_": f"{HERE}.Leaf", "rate": 0.25}], "seed": 0}


def test_zero_is_not_false_and_one_is_not_true():
    found = settings({"_target_": f"{HERE}.Leaf", "flag": 0, "size": True}, [HERE])
    assert found == {"_target_": f"{HERE}.Leaf", "flag": 0, "size": True}


def test_canonical():
    assert canonical({"b": 5.0, "a": (1, 2)}) == canonical({"a": [1, 2.0], "b": 5}) == '{"a":[1,2],"b":5}'
    assert canonical({"a": 0.1}) != canonical({"a": 0.10000001})
    assert canonical(True) == "true"
    assert canonical({"a": 1}) != canonical({"a": "1"})
    assert canonical(1e-3) == canonical(0.001)
    assert canonical(1e300) == canonical(1e300)
