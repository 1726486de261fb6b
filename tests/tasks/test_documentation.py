"""docs/tasks.md says what is true."""

import re
from pathlib import Path

import pytest

from privbench.benchmarks.tasks import Classification

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("heading", "group"),
    [("Data sets", "task"), ("Partitions", "task/partition"), ("Features", "task/features"), ("Models", "model")],
)
def test_every_yaml_is_in_its_table(heading, group):
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def test_the_example_of_a_data_set_runs():
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    names: dict = {"__name__": "example"}
    exec(compile(example[1], str(PAGE), "exec"), names)
    task = Classification(names["Wine"](), trigger=None)
    task.check(5)
    assert (len(task.data.train), len(task.data.test)) == (144, 34)
