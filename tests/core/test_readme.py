"""The Python in the README runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_every_block_runs_in_the_order_of_the_page(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(block, names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == names["clip"].expected
    sizes = [int(line.split()[0]) for line in lines[1:]]
    assert len(sizes) == -(-len(names["clip"]) // 8)
    assert names["stream"].kv_bytes == sizes[-1]
