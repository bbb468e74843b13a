"""The attention core: one softmax over regions and words, by the plan.

Three backends that agree in outputs and gradients: the reference (a dense mask over all rows, as obvious as possible),
padded (CPU and any device: rows gathered into padded cores), and variable-length (CUDA).

Letters: N rows, S sequences, L longest length, H heads, E head width.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dimvl.model.plan import AttentionCall, AttentionPlan

SHORT = 192  # keys of a sequence on average below which the memory-efficient kernel is no slower (docs/experiments.md)


def attend(plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, backend: str = "auto") -> Tensor:
    """Attend as the plan says: softmax(q k^T / sqrt(E)) v over the keys that each row may see.

    Args:
        plan: the batch's plan.
        query: (N, H, E)
        key: (N, H, E)
        value: (N, H, E)
        backend: `auto`, `reference`, `padded` or `varlen`.

    Returns:
        (N, H, E)

    """
    if not len(query):
        return query  # a rank without examples, connected to the weights all the same
    if backend == "auto":
        backend = "varlen" if _takes_varlen(query) else "padded"
    if backend == "reference":
        return reference_attention(plan.dense_mask, query, key, value)
    return {"padded": _padded, "varlen": _varlen}[backend](plan, query, key, value)


def _takes_varlen(query: Tensor) -> bool:
    """Whether flash attention takes these rows: on CUDA, in half precision, heads of a width that it knows."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] in range(8, 257, 8)


def reference_attention(mask: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend over all rows under a dense mask: what every fast path must equal.

    Args:
        mask: (N, N) bool, True = may attend.
        query: (N, H, E)
        key: (N, H, E)
        value: (N, H, E)

    """
    scores = torch.einsum("qhe,khe->hqk", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khe->qhe", weights, value)


def _padded(plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Gather rows into padded cores of similar lengths; everything outside the cores stays ragged."""
    heads, width = query.shape[1:]
    queries = query.index_select(0, plan.padded_queries).split([len(core.query_rows) for core in plan.cores])
    lengths = [len(core.key_rows) for core in plan.cores]
    keys = key.index_select(0, plan.padded_keys).split(lengths)
    values = value.index_select(0, plan.padded_keys).split(lengths)
    attention = matmul_attention if query.dtype == torch.bfloat16 and not query.is_cuda else sdpa
    outputs = []
    for core, *parts in zip(plan.cores, queries, keys, values, strict=True):
        q, k, v = (rows.view(core.shape[0], -1, heads, width).transpose(1, 2) for rows in parts)
        outputs.append(attention(q, k, v, core.mask).transpose(1, 2).reshape(-1, heads, width))
    return torch.cat(outputs).index_select(0, plan.padded_places)


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend by torch's fused kernel: (S, H, Lq, E) and twice (S, H, Lk, E) -> (S, H, Lq, E); True = may attend."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend by two plain products, shapes as in `sdpa`.

    In bf16 on a processor torch's fused kernel takes 2.6 to 9.6 times as long from 8 to 512 keys; in fp32 it is the
    quicker one, and keeps less (`python -m benchmarks attention`).
    """
    key, value = key.contiguous(), value.contiguous()  # else a core of one sequence keeps the rows of all alive
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value


class _Gather(torch.autograd.Function):
    """Rows by their numbers, with a gradient that is gathered too.

    That of torch's own adds rows up one after the other, in an order that changes from run to run: 11% of a step.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, places: Tensor, starts: Tensor | None) -> Tensor:
        """(N, H, E), (M,) -> (M, H, E); row n stands at `places[starts[n]:starts[n + 1]]`, or once at `places[n]`."""
        ctx.save_for_backward(places, starts)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,), (places, starts) = gradients, ctx.saved_tensors
        if starts is None:
            return gradient.index_select(0, places), None, None, None
        summed = F.embedding_bag(places, gradient.flatten(1), starts, mode="sum")
        return summed.unflatten(1, gradient.shape[1:]), None, None, None


def _varlen(plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Run one of torch's variable-length kernels (CUDA, half precision), once for each call."""
    queries = _Gather.apply(query, plan.query_rows, plan.query_order, None)
    parts, outputs = queries.split([len(call.query_rows) for call in plan.calls]), []
    for number, (call, part) in enumerate(zip(plan.calls, parts, strict=True)):
        alone = call.key_rows is plan.query_rows  # the only call: its keys are all rows, once
        places = (plan.query_order, None) if alone else plan.key_places[number]
        keys, values = (_Gather.apply(rows, call.key_rows, *places) for rows in (key, value))
        outputs.append(_varlen_call(call, part, keys, values))
    return _Gather.apply(_joined(outputs), plan.query_order, plan.query_rows, None)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _varlen_call(call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend in one call, sequence after sequence; causal is aligned at the bottom right."""
    longest = int(call.query_lengths.max()), int(call.key_lengths.max())
    if call.key_lengths.mean() < SHORT and query.is_cuda:
        return _short_call(call, query, key, value, longest)
    from torch.nn.attention.varlen import varlen_attn

    causal = _causal_argument(varlen_attn, call.causal)
    attended = varlen_attn(query, key, value, call.query_offsets, call.key_offsets, *longest, **causal)
    assert isinstance(attended, Tensor), "no log-sum-exp was asked for"
    return attended


def _short_call(call: AttentionCall, query: Tensor, key: Tensor, value: Tensor, longest: tuple[int, int]) -> Tensor:
    """Attend by torch's memory-efficient kernel: at 56 rows a sequence a third of flash attention's time on an H100."""
    from_the_end = 2 if call.causal else 0
    offsets = call.query_offsets, call.key_offsets
    attended: Tensor = torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], None, *offsets, *longest, 0.0, from_the_end, True
    )[0]
    return attended[0]


def _causal_argument(varlen_attn: Callable[..., Any], causal: bool) -> dict[str, Any]:
    """Releases before 2.12 take `is_causal`, later ones a window."""
    if "is_causal" in inspect.signature(varlen_attn).parameters:
        return {"is_causal": causal}
    return {"window_size": (-1, 0) if causal else (-1, -1)}
