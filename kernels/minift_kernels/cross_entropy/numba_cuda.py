"""Rungs 3 and 4, the first versions for a GPU, in Python: a kernel is what one thread does.

cross_entropy.cu goes on from there.
"""

import math
from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace
from minift_kernels.cross_entropy.cuda_c import checked_targets
from minift_kernels.numba_device import block_max, block_sum

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

THREADS = 32
"""In a block; for `Shared` a power of two. (Numba's simulator starts a real thread for each.)"""


class Naive:
    """Rung 3, one thread a row, each sum a loop of its own."""

    def forward(self, logits, *others, **options):
        return _forward(_naive_forward, -(-len(logits) // THREADS), logits, *others, **options)

    def backward(self, dlosses, *others, **options):
        return _backward(_naive_backward, -(-len(dlosses) // THREADS), dlosses, *others, **options)


class Shared:
    """Rung 4, one block a row. Threads read neighbouring columns, and meet in shared memory."""

    def forward(self, logits, *others, **options):
        return _forward(_shared_forward, len(logits), logits, *others, **options)

    def backward(self, dlosses, *others, **options):
        return _backward(_shared_backward, len(dlosses), dlosses, *others, **options)


naive, shared = Naive(), Shared()


def _forward(kernel, blocks, logits, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0):
    xp = array_namespace(logits)
    targets, weights = _prepare(logits, targets, class_weights, ignore_index)
    losses, logsumexp = xp.empty(len(logits), np.float32), xp.empty(len(logits), np.float32)
    options = np.int64(ignore_index), np.float32(label_smoothing)
    arguments = (gpu.contiguous(logits), targets, weights, *options, losses, logsumexp)
    kernel.launch((blocks,), (THREADS,), arguments)
    return losses, logsumexp


def _backward(
    kernel,
    blocks,
    dlosses,
    logits,
    logsumexp,
    targets,
    class_weights=None,
    ignore_index=-100,
    label_smoothing=0.0,
):
    targets, weights = _prepare(logits, targets, class_weights, ignore_index)
    dlosses, logits, logsumexp = map(gpu.contiguous, (dlosses, logits, logsumexp))
    dlogits = array_namespace(logits).empty_like(logits)
    options = weights.sum().reshape(1), np.int64(ignore_index), np.float32(label_smoothing)
    arguments = (dlosses, logits, logsumexp, targets, weights, *options, dlogits)
    kernel.launch((blocks,), (THREADS,), arguments)
    return dlogits


def _prepare(logits, targets, class_weights, ignore_index):
    """The targets as int64, and a weight for each class."""
    targets = checked_targets(targets, ignore_index, logits.shape[1])
    if class_weights is None:
        return targets, array_namespace(logits).ones(logits.shape[1], np.float32)
    return targets, gpu.contiguous(class_weights)


# -- naive ---------------------------------------------------------------------------------------------------


@gpu.numba_kernel
def _naive_forward(logits, targets, weights, ignore_index, smoothing, losses, logsumexp):
    r = cuda.grid(1)  # this thread's number in the whole grid
    if r < logits.shape[0]:  # the last block has threads to spare
        largest = logits[r, 0]
        for c in range(logits.shape[1]):
            largest = max(largest, logits[r, c])
        total = np.float32(0)
        for c in range(logits.shape[1]):
            total += math.exp(logits[r, c] - largest)
        log_total = math.log(total)
        logsumexp[r] = largest + log_total
        loss = np.float32(0)
        target = targets[r]
        if target != ignore_index:
            loss = np.float32(np.nan)  # for what is no class
            if 0 <= target < logits.shape[1]:
                # Not logsumexp - logit: where both are large, the small log_total would be rounded away.
                loss = weights[target] * (largest - logits[r, target] + log_total)
            loss *= np.float32(1) - smoothing
            if smoothing > 0:
                of_all = np.float32(0)
                for c in range(logits.shape[1]):
                    of_all += weights[c] * (largest - logits[r, c] + log_total)
                loss += smoothing * of_all / np.float32(logits.shape[1])
        losses[r] = loss


@gpu.numba_kernel
def _naive_backward(
    dlosses, logits, logsumexp, targets, weights, all_weights, ignore_index, smoothing, dlogits
):
    # losses = sum_c pull_c (logsumexp - logits_c): each pull lifts its own logit, and all of them weigh on p.
    r = cuda.grid(1)
    if r < logits.shape[0]:
        target = targets[r]
        dloss = dlosses[r]
        target_pull = np.float32(0)
        if target == ignore_index:
            dloss = np.float32(0)
        elif 0 <= target < logits.shape[1]:
            target_pull = (np.float32(1) - smoothing) * weights[target]
        else:
            dloss = np.float32(np.nan)
        smoothing_pull = smoothing / np.float32(logits.shape[1])
        all_pulls = target_pull + smoothing_pull * all_weights[0]
        for c in range(logits.shape[1]):
            pull = smoothing_pull * weights[c]
            if c == target:
                pull += target_pull
            dlogits[r, c] = dloss * (all_pulls * math.exp(logits[r, c] - logsumexp[r]) - pull)


# -- shared --------------------------------------------------------------------------------------------------


@gpu.numba_kernel
def _shared_forward(logits, targets, weights, ignore_index, smoothing, losses, logsumexp):
    partial = cuda.shared.array(THREADS, np.float32)  # one number a thread, seen by the whole block
    r, t = cuda.blockIdx.x, cuda.threadIdx.x
    largest = np.float32(-np.inf)
    for c in range(t, logits.shape[1], THREADS):
        largest = max(largest, logits[r, c])
    largest = block_max(largest, partial)

    total = np.float32(0)
    for c in range(t, logits.shape[1], THREADS):
        total += math.exp(logits[r, c] - largest)
    log_total = math.log(block_sum(total, partial))

    of_all = np.float32(0)
    if smoothing > 0:
        for c in range(t, logits.shape[1], THREADS):
            of_all += weights[c] * (largest - logits[r, c] + log_total)
    of_all = block_sum(of_all, partial)
    if t == 0:
        logsumexp[r] = largest + log_total
        loss = np.float32(0)
        target = targets[r]
        if target != ignore_index:
            loss = np.float32(np.nan)
            if 0 <= target < logits.shape[1]:
                loss = weights[target] * (largest - logits[r, target] + log_total)
            loss *= np.float32(1) - smoothing
            loss += smoothing * of_all / np.float32(logits.shape[1])
        losses[r] = loss


@gpu.numba_kernel
def _shared_backward(
    dlosses, logits, logsumexp, targets, weights, all_weights, ignore_index, smoothing, dlogits
):
    r, t = cuda.blockIdx.x, cuda.threadIdx.x
    target = targets[r]
    dloss = dlosses[r]
    target_pull = np.float32(0)
    if target == ignore_index:
        dloss = np.float32(0)
    elif 0 <= target < logits.shape[1]:
        target_pull = (np.float32(1) - smoothing) * weights[target]
    else:
        dloss = np.float32(np.nan)
    smoothing_pull = smoothing / np.float32(logits.shape[1])
    all_pulls = target_pull + smoothing_pull * all_weights[0]
    for c in range(t, logits.shape[1], THREADS):
        pull = smoothing_pull * weights[c]
        if c == target:
            pull += target_pull
        dlogits[r, c] = dloss * (all_pulls * math.exp(logits[r, c] - logsumexp[r]) - pull)
