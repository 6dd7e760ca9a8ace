from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr00t_trt.data.parquet import Table, statistics_of_columns
from gr00t_trt.errors import DatasetError

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


def table(path, **columns) -> Table:
    pq.write_table(pa.table(columns), path / "a.parquet")
    return Table(path / "a.parquet")


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.list_(pa.float32(), 3),
        pa.large_list(pa.float32()),
        pa.list_(pa.float16()),
        *([pa.list_view(pa.float32()), pa.large_list_view(pa.float64())] if hasattr(pa, "list_view") else []),
    ],
    ids=str,
)
def test_every_kind_of_list_has_the_same_values(tmp_path, kind):
    rows = [[np.float16(v) for v in row] for row in VALUES] if "half" in str(kind) else VALUES.tolist()
    found = table(tmp_path, action=pa.array(rows, kind))
    np.testing.assert_array_equal(found.numbers("action"), VALUES)
    assert found.numeric_names == ["action"]
    statistics = statistics_of_columns([found], {"action": np.arange(3)})["action"]
    np.testing.assert_array_equal(statistics.max, [9, 10, 11])


def test_lists_of_lists_and_scalars(tmp_path):
    found = table(tmp_path, nested=pa.array(VALUES.reshape(4, 3, 1).tolist()), single=pa.array([1, 2, 3, 4], pa.int8()))
    np.testing.assert_array_equal(found.numbers("nested"), VALUES)
    assert found.numbers("single").shape == (4, 1)


def test_columns_that_nobody_asks_for_decide_nothing(tmp_path):
    found = table(
        tmp_path,
        action=VALUES.tolist(),
        ragged=[[1.0], [1.0, 2.0], [], None],
        gone=pa.nulls(4, pa.float32()),
        note=["a", None, "b", "c"],
    )
    np.testing.assert_array_equal(found.numbers("action"), VALUES)
    for name, words in {
        "ragged": "column 'ragged' holds null values, the first in row 3",
        "gone": "column 'gone' holds null values, the first in row 0",
        "absent": r"column 'absent' is missing\n  known: action, gone",
    }.items():
        with pytest.raises(DatasetError, match=words):
            found.numbers(name)
    with pytest.raises(DatasetError, match=r"differ in width: \[0, 1, 2\]"):
        table(tmp_path, ragged=[[1.0], [1.0, 2.0], []]).numbers("ragged")


def test_a_small_file_that_decodes_to_gigabytes_is_refused_unread(tmp_path):
    kind = pa.list_(pa.float32())
    offsets = pa.array([0, 3_000_000, 6_000_000], pa.int32())
    wide = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(6_000_000, np.float32)))
    found = table(tmp_path, action=wide.cast(kind))
    assert (tmp_path / "a.parquet").stat().st_size < 50_000
    with pytest.raises(DatasetError, match=r"'action' decodes to 6000000 values in 2 rows[\s\S]*at most 10000"):
        found.numbers("action")


def test_statistics_name_the_row_of_a_value_that_is_not_finite(tmp_path):
    values = VALUES.copy()
    values[2, 1] = np.inf
    found = table(tmp_path, action=values.tolist())
    with pytest.raises(DatasetError, match=r"a\.parquet: column 'action' holds inf in row 2, element 1"):
        statistics_of_columns([found], {"action": np.array([0, 1])})
    others = statistics_of_columns([found], {"action": np.array([0, 2])})["action"]
    assert others.max[2] == 11
    assert np.isinf(others.max[1])
