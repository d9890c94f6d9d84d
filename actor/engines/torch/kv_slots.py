"""The KV cache of continuous batching, with one slot per running completion, filled from column 0.

Rows have different lengths and need no left padding: row r's token at position p is in column p, a token attends to the
columns ≤ its own position, and columns beyond a row's end hold old values that the mask hides until they are
overwritten. A pass covers neighbouring slots, so that the model reads slices instead of gathered copies.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """The cache of one attention layer, a view of the slots."""

    is_sliding = False

    def __init__(self, slots: Slots, index: int):
        super().__init__()
        self.slots, self.index, self.is_initialized = slots, index, True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do; the slots own the storage."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.slots.write(self.index, key_states, value_states)

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.width, 0

    def get_max_length(self) -> int:
        return -1


class Slots:
    """Keys and values of a transformers model with full attention, (slots, columns, heads, size) for each layer."""

    def __init__(self, layers: int, capacity: int, device: torch.device):
        self.cache = Cache(layers=[_Layer(self, index) for index in range(layers)])
        self.capacity, self.device = capacity, device
        self.keys: list[torch.Tensor] = [torch.empty(0)] * layers
        self.values: list[torch.Tensor] = [torch.empty(0)] * layers
        self.width = 0
        self._columns = 0
        self._rows = torch.arange(capacity, device=device)
        self._range = torch.arange(0, device=device)
        self._at: tuple[torch.Tensor, torch.Tensor] = (self._rows, self._rows)
        self._first = self._last = 0

    def aim(self, positions: torch.Tensor, query: int, width: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Prepare a pass of `query` tokens in each of the n slots `first` …, starting at `positions` (n,).

        `width`: the largest position of the pass + 1. Returns position ids (n, query) and the attention mask
        (n, 1, query, width), True where a token may attend."""
        self._reserve(width)
        self.width, self._first, self._last = width, first, first + positions.shape[0]
        columns = positions.unsqueeze(1)
        if query > 1:
            columns = columns + self._range[:query]
        self._at = (self._rows[first : self._last].unsqueeze(1), columns)
        return columns, (self._range[:width] <= columns.unsqueeze(2)).unsqueeze(1)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store (n, heads, query, size) where `aim` pointed; returns all keys and values, (n, heads, width, size)."""
        if not self.keys[layer].numel():
            self.keys[layer] = self._empty(keys)
            self.values[layer] = self._empty(values)
        stored, kept = self.keys[layer], self.values[layer]
        stored[self._at] = keys.transpose(1, 2)
        kept[self._at] = values.transpose(1, 2)
        first, last, width = self._first, self._last, self.width
        return stored[first:last, :width].transpose(1, 2), kept[first:last, :width].transpose(1, 2)

    def copy_from(self, other: Slots, source: torch.Tensor, first: int, width: int) -> None:
        """Fill slots `first` … with the first `width` columns of `other`'s slots `source` (k,), which may repeat."""
        self._reserve(width)
        last = first + source.shape[0]
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer, store in enumerate(theirs):
                if not mine[layer].numel():
                    mine[layer] = self._empty(store[:1].transpose(1, 2))
                mine[layer][first:last, :width] = store[source, :width]

    def move(self, source: torch.Tensor, target: torch.Tensor, width: int) -> None:
        """Copy slots `source` (k,) to slots `target` (k,); the two sets are disjoint."""
        for stores in (self.keys, self.values):
            for store in stores:
                store[target, :width] = store[source, :width]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, _, size = like.shape
        return torch.zeros(self.capacity, self._columns, heads, size, dtype=like.dtype, device=like.device)

    def _reserve(self, width: int) -> None:
        """Make room for `width` columns; the capacity doubles, so each column is copied a constant number of times."""
        if width <= self._columns:
            return
        self._columns = max(32, 1 << (width - 1).bit_length())
        self._range = torch.arange(self._columns, device=self.device)
        for stores in (self.keys, self.values):
            for layer, store in enumerate(stores):
                if store.numel():
                    grown = store.new_zeros(store.shape[0], self._columns, *store.shape[2:])
                    grown[:, : store.shape[1]] = store
                    stores[layer] = grown
