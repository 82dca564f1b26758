"""Gather rows of different tenants into batches of one bank, in the order in which they come."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from prometheus_client import Gauge, Histogram
from transformers import PreTrainedTokenizerBase

from lsr import AdapterBank

WAITING = Gauge("lsr_waiting_rows", "Rows that wait for a batch")
BATCHES = Histogram("lsr_batch_rows", "Rows of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))

Inputs = dict[str, list[int]]  # of a text: input_ids and what else the tokenizer gives
Said = dict[str, Any]  # of a text: a label and the probability of each, or a number


class FullError(Exception):
    """More rows wait than there is room for."""


class GoneError(Exception):
    """An adapter left the bank while a row waited for it."""


class Row(NamedTuple):
    """A text on its way through the bank."""

    adapter: str
    inputs: Inputs
    said: "asyncio.Future[Said]"


class Batches:
    """A bank and the rows that wait for it.

    All that reads or changes the bank's tensors runs in one thread, so an adapter comes, goes or is replaced between
    two batches and never within one.
    """

    def __init__(
        self, bank: AdapterBank, tokenizer: PreTrainedTokenizerBase, *, rows: int, room: int, wait: float
    ) -> None:
        self.bank = bank
        self._tokenizer, self._rows, self._room, self._wait = tokenizer, rows, room, wait
        self._waiting: asyncio.Queue[Row] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        WAITING.set_function(self._waiting.qsize)

    async def predict(self, adapter: str, texts: Sequence[Inputs]) -> list[Said]:
        """Return what an adapter says of each text.

        Raises:
            FullError: if there is no room for all of them; none of them waits then.
            GoneError: if the adapter has left the bank.
        """
        if self._waiting.qsize() + len(texts) > self._room:
            raise FullError
        loop = asyncio.get_running_loop()
        rows = [Row(adapter, inputs, loop.create_future()) for inputs in texts]
        for row in rows:
            self._waiting.put_nowait(row)
        return await asyncio.gather(*(row.said for row in rows))

    async def in_turn(self, call: Callable[[], Any]) -> Any:
        """Return what a call returns that reads or changes the bank, made between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def run(self) -> None:
        """Pass batch after batch through the bank, until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            if self._waiting.qsize() < self._rows - 1:
                await asyncio.sleep(self._wait)
            while len(batch) < self._rows and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            BATCHES.observe(len(batch))
            try:
                results: Sequence[Said | Exception] = await self.in_turn(lambda rows=batch: self._say(rows))
            except Exception as error:  # such as no memory for this batch: the next may be smaller
                results = [error] * len(batch)
            for row, result in zip(batch, results, strict=True):
                if row.said.done():  # cancelled
                    continue
                if isinstance(result, Exception):
                    row.said.set_exception(result)
                else:
                    row.said.set_result(result)

    def _say(self, batch: Sequence[Row]) -> list[Said | Exception]:
        there = {at: row for at, row in enumerate(batch) if row.adapter in self.bank.notes}
        results: list[Said | Exception] = [GoneError() for _ in batch]
        if there:
            inputs = self._tokenizer.pad([row.inputs for row in there.values()], return_tensors="pt")
            names = [row.adapter for row in there.values()]
            with torch.no_grad():
                logits = self.bank(**inputs, adapter_names=names).logits
            for at, answer in zip(there, self.bank.answers(logits, names), strict=True):
                results[at] = _said(answer.probabilities, answer.logits)
        return results


def _said(probabilities: Mapping[str, float], logits: torch.Tensor) -> Said:
    if not probabilities:
        return {"number": float(logits[0])}
    return {"label": max(probabilities, key=lambda label: probabilities[label]), "probabilities": {**probabilities}}
