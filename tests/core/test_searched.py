import json

import pytest
import torch
from support import random_family

from elvi.core.searched import searched
from elvi.errors import FitError


@pytest.fixture
def table(tmp_path):
    return tmp_path / "table.json"


def read(table, shape=(1, 2)):
    return searched(table, random_family("llama"), shape, "things", object())


def test_table_of_the_model_is_read_beside_others(table):
    table.write_text(json.dumps({"other": [[1, 2, 3]], "random-llama": [[0.25, 4]]}))
    assert torch.equal(read(table), torch.tensor([[0.25, 4.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"random-llama": "two"}', '{"random-llama": [[1, null]]}', "{", '{"a": [[NaN]]}']
)
def test_file_without_a_table_is_refused_in_a_sentence(table, text):
    table.write_text(text)
    with pytest.raises(FitError, match="elvi search things"):
        read(table)


def test_missing_file_is_refused_in_a_sentence(table):
    with pytest.raises(FitError, match="holds none"):
        read(table)


def test_other_models_and_shapes_are_refused_by_name(table):
    table.write_text(json.dumps({"other": [[1, 2]]}))
    with pytest.raises(FitError, match="knows other only: run `elvi search things --model random-llama`"):
        read(table)
    table.write_text(json.dumps({"random-llama": [[1, 2, 3]]}))
    with pytest.raises(FitError, match=r"1 x 2 numbers.*1 x 3"):
        read(table)
