"""A sheet is its batch on a device, and may cross to another process."""

from __future__ import annotations

import pickle

import numpy as np
import torch

from lateinteraction.adapters.encoding.batches import Batch
from lateinteraction.adapters.encoding.learning import placed_sheet_of, sheet_of

IDS, ATTENDED, KEPT, PLACES = [5, 6, 7, 8, 9, 0], [3, 2], [0, 2, 4], [10, 11, 12]
BATCH = Batch(2, 3, np.array(IDS + ATTENDED + KEPT + PLACES, dtype=np.int64), full=False)
CPU = torch.device("cpu")


def test_a_sheet_is_the_parts_of_its_batch() -> None:
    sheet, places = placed_sheet_of(BATCH, CPU)
    assert torch.equal(sheet.ids, torch.tensor(IDS).view(2, 3))
    assert torch.equal(sheet.attended, torch.tensor(ATTENDED))
    assert torch.equal(sheet.kept, torch.tensor(KEPT))
    assert torch.equal(places, torch.tensor(PLACES))
    assert {each.dtype for each in (sheet.ids, sheet.attended, sheet.kept, places)} == {torch.int64}
    assert sheet.full is False


def test_a_sheet_is_the_same_after_pickling() -> None:
    sheet = sheet_of(BATCH, CPU)
    again = pickle.loads(pickle.dumps(sheet))
    for name in ("ids", "attended", "kept"):
        assert torch.equal(getattr(again, name), getattr(sheet, name))
    assert again.full is sheet.full
