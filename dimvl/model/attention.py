"""The attention core: one softmax over regions and words, following the attention plan.

Three backends with equal outputs and gradients: the reference (a dense mask over all rows, as plain as possible),
padded (any device: rows are gathered into padded cores) and variable-length (CUDA).

Letters: N rows, P learned keys, S sequences, L longest length, H heads, E head width.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dimvl.model.plan import AttentionCall, AttentionPlan

SHORT = 192  # below this mean number of keys the memory-efficient kernel is at least as fast (docs/experiments.md)


def attend(plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, backend: str = "auto") -> Tensor:
    """Attend as planned: softmax(q k^T / sqrt(E)) v over the keys that each row may see.

    Args:
        plan: the plan of the batch.
        query: (N, H, E)
        key: (N + P, H, E), those of P learned keys last.
        value: (N + P, H, E)
        backend: `auto`, `reference`, `padded` or `varlen`.

    Returns:
        (N, H, E)

    """
    if not len(query):  # a rank without examples; the result still depends on the weights
        return query + 0 * (key.sum() + value.sum()) if len(key) else query
    if backend == "auto":
        is_half, width = query.dtype in (torch.bfloat16, torch.float16), query.shape[-1]
        takes_flash = query.is_cuda and is_half and width in range(8, 257, 8)
        backend = "varlen" if takes_flash else "padded"
    if backend == "reference":
        return reference_attention(plan.dense_mask, query, key, value)
    return {"padded": _padded, "varlen": _varlen}[backend](plan, query, key, value)


def reference_attention(mask: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend over all rows under a dense mask. Every fast path must equal this.

    Args:
        mask: (N, N + P) bool, True = may attend.
        query: (N, H, E)
        key: (N + P, H, E)
        value: (N + P, H, E)

    """
    scores = torch.einsum("qhe,khe->hqk", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khe->qhe", weights, value)


def _padded(plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Gather rows into padded cores of similar lengths; nothing outside the cores is padded."""
    heads, width = query.shape[1:]
    query_rows, key_rows = plan.padded_rows
    queries = query.index_select(0, query_rows).split([len(core.query_rows) for core in plan.cores])
    lengths = [len(core.key_rows) for core in plan.cores]
    keys, values = (rows.index_select(0, key_rows).split(lengths) for rows in (key, value))
    attention = matmul_attention if query.dtype == torch.bfloat16 and not query.is_cuda else sdpa
    outputs = []
    for core, *parts in zip(plan.cores, queries, keys, values, strict=True):
        q, k, v = (rows.view(core.shape[0], -1, heads, width).transpose(1, 2) for rows in parts)
        outputs.append(attention(q, k, v, core.mask).transpose(1, 2).reshape(-1, heads, width))
    return torch.cat(outputs).index_select(0, plan.padded_places)


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with torch's fused kernel: (S, H, Lq, E) and twice (S, H, Lk, E) -> (S, H, Lq, E); True = may attend."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def matmul_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with two plain products; shapes as in `sdpa`.

    In bf16 on a CPU torch's fused kernel takes 2.6 to 9.6 times as long for 8 to 512 keys. In fp32 the fused kernel is
    faster and keeps less for the backward pass (`python -m benchmarks attention`).
    """
    key, value = key.contiguous(), value.contiguous()  # otherwise a core of one sequence keeps all rows alive
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value


class _Gather(torch.autograd.Function):
    """Index rows, with a gradient that is gathered too.

    The gradient of torch's `index_select` adds rows one by one in an order that changes from run to run, and takes 11%
    of a step.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, places: Tensor, starts: Tensor | None) -> Tensor:
        """(rows, H, E), (M,) -> (M, H, E); row n goes to `places[starts[n]:starts[n + 1]]`, or only to `places[n]`."""
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
    """Run one of torch's variable-length kernels (CUDA, half precision) for each call of the plan."""
    queries = _Gather.apply(query, plan.query_rows, plan.query_order, None)
    parts, outputs = queries.split([len(call.query_rows) for call in plan.calls]), []
    for number, (call, part) in enumerate(zip(plan.calls, parts, strict=True)):
        is_only = call.key_rows is plan.query_rows  # then each row is a key exactly once
        places = (plan.query_order, None) if is_only else plan.key_places[number]
        keys, values = (_Gather.apply(rows, call.key_rows, *places) for rows in (key, value))
        outputs.append(_varlen_call(call, part, keys, values))
    joined = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return _Gather.apply(joined, plan.query_order, plan.query_rows, None)


def _varlen_call(call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend in one call, sequence by sequence; a causal mask is aligned at the bottom right."""
    longest = int(call.query_lengths.max()), int(call.key_lengths.max())
    if call.key_lengths.mean() < SHORT and query.is_cuda:
        return _short_call(call, query, key, value, longest)
    from torch.nn.attention.varlen import varlen_attn

    causal = _causal_argument(varlen_attn, call.causal)
    attended = varlen_attn(query, key, value, *call.offsets, *longest, **causal)
    assert isinstance(attended, Tensor), "no log-sum-exp was requested"
    return attended


def _short_call(call: AttentionCall, query: Tensor, key: Tensor, value: Tensor, longest: tuple[int, int]) -> Tensor:
    """Attend with torch's memory-efficient kernel: a third of flash attention's time at 56 rows per sequence (H100)."""
    mask_type = 2 if call.causal else 0  # 2: causal, aligned at the bottom right
    attended: Tensor = torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], None, *call.offsets, *longest, 0.0, mask_type, True
    )[0]
    return attended[0]


def _causal_argument(varlen_attn: Callable[..., Any], causal: bool) -> dict[str, Any]:
    """Torch before 2.12 takes `is_causal`, later releases take a window."""
    if "is_causal" in inspect.signature(varlen_attn).parameters:
        return {"is_causal": causal}
    return {"window_size": (-1, 0) if causal else (-1, -1)}
