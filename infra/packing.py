"""Documents held out or cut into segments, and segments packed into as few rows as best fit finds."""

import hashlib

import numpy as np

HELD_OUT_SHARE, HELD_OUT_TOKENS = 0.01, 100_000
PACK_TOGETHER = 2**18  # segments that are packed into rows together


def hold_out(ends: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(documents to learn from, documents to validate on), the latter of at most about HELD_OUT_TOKENS.

    ends (documents): where each document's tokens end in the cache.
    """
    lengths, most = np.diff(ends, prepend=0), max(1, int(len(ends) * HELD_OUT_SHARE))  # documents
    drawn = np.random.default_rng(seed).choice(len(ends), min(most, HELD_OUT_TOKENS), replace=False)
    count = max(1, np.searchsorted(np.cumsum(lengths[drawn]), HELD_OUT_TOKENS))
    return np.delete(np.arange(len(ends), dtype=np.int32), drawn[:count]), np.sort(drawn[:count])


def cut(starts: np.ndarray, lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, lengths) of the segments of at most `row_length` positions into which documents are cut.

    [7], [20] in rows of 8 -> [7, 15, 23], [8, 8, 4]
    """
    count = -(-lengths // row_length)
    offset = (np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)) * row_length
    of_segments = np.minimum(np.repeat(lengths, count) - offset, row_length)
    return np.repeat(starts, count) + offset, of_segments.astype(np.int32)


def pack(lengths: np.ndarray, row_length: int, seed: int, together: int = PACK_TOGETHER):
    """Best fit, the longest first: each segment goes into the fullest row that still has room for it.

    lengths (segments) -> (order, first_segment): row r holds the segments order[first_segment[r] :
    first_segment[r + 1]]. Segments of one length are shuffled first, so that neighbours in the file do not
    share a row.
    """
    shuffled = np.arange(len(lengths), dtype=np.int32)
    np.random.default_rng(seed).shuffle(shuffled)
    counts = []
    for begin in range(0, len(lengths), together):
        chosen = shuffled[begin : begin + together]  # a view: shuffled becomes the order
        by_length = chosen[np.argsort(-lengths[chosen], kind="stable")]
        row_of_segment = best_fit(lengths[by_length], row_length)
        chosen[:] = by_length[np.argsort(row_of_segment, kind="stable")]
        counts.append(np.bincount(row_of_segment))
    return shuffled, np.concatenate([[0], np.cumsum(np.concatenate(counts))])


def best_fit(lengths: np.ndarray, row_length: int) -> np.ndarray:
    """The row of each segment, the longest first: [6, 5, 3, 2] in rows of 8 -> [0, 1, 1, 0].

    All segments of one length are placed at a time: a row takes as many of them as it has room for.
    """
    rows_with = [[] for _ in range(row_length + 1)]  # by free positions
    row_of_segment, done, count = np.empty(len(lengths), dtype=np.int32), 0, 0
    sizes, of_size = np.unique(-lengths, return_counts=True)
    for length, left in zip((-sizes).tolist(), of_size.tolist(), strict=True):
        free = length
        while left:
            while free < row_length and not rows_with[free]:
                free += 1
            each = free // length
            wanted = -(-left // each)
            if free < row_length:
                rows = rows_with[free][-wanted:][::-1]
                del rows_with[free][-wanted:]
            else:  # no row has room: new ones
                rows = list(range(count, count + wanted))
                count += wanted
            placed = min(left, each * len(rows))
            row_of_segment[done : done + placed] = np.repeat(np.array(rows, dtype=np.int32), each)[:placed]
            in_last = placed - each * (len(rows) - 1)
            rows_with[free - each * length] += rows[:-1]
            rows_with[free - in_last * length].append(rows[-1])
            done, left = done + placed, left - placed
    return row_of_segment


def hash_arrays(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
