"""Parcels: texts of any length arrive whole."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from moiety.runtime.parcel import parcel, send_parcel
from moiety.runtime.world import hosted_store, listening


def test_texts_of_any_length_arrive_whole() -> None:
    store = hosted_store(listening("127.0.0.1", 0))
    for key, text in {"empty": "", "short": "é", "long": "é0123" * 3_000_000}.items():  # 18 MB
        send_parcel(store, key, text)
        assert parcel(store, key) == text
