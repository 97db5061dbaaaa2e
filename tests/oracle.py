"""The method in plain NumPy float64, written from the equations of DESIGN and nothing else: the specification."""

import numpy as np

F64 = np.float64


def l2(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def axis_windows(length, crop, stride):
    count = max(length - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, length) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


def bilinear_matrix(source, target):
    """[target source]: half-pixel centres, taps clamped at the ends, no antialias."""
    matrix = np.zeros((target, source), F64)
    for i in range(target):
        x = max((i + 0.5) * source / target - 0.5, 0.0)
        low = min(int(x), source - 1)
        high = min(low + 1, source - 1)
        matrix[i, low] += 1 - (x - low)
        matrix[i, high] += x - low
    return matrix


def resample_tokens(values, side):
    """[W n C] on a square grid -> [W side*side C]."""
    windows, n, width = values.shape
    source = round(n**0.5)
    matrix = bilinear_matrix(source, side)
    grid = values.reshape(windows, source, source, width)
    return np.einsum("yi,xj,wijc->wyxc", matrix, matrix, grid).reshape(windows, side * side, width)


def centred_keys(features):
    """Unit rows of features [N D] less their mean: the keys of the calibration "centred"."""
    return l2(features - features.mean(0))


def look(similarity, method):
    """s' = eta + (1 - eta) s with eta = 0.3 under the calibration "centred"."""
    return 0.3 + 0.7 * similarity if method.calibration == "centred" else similarity


def anchors(keys, rho, iterations, first=None, width=None, seen=lambda similarity: similarity):
    """Proxy anchors P [N D] and counts m [N] (DESIGN 3.1); first [N D] replaces K as the first query.

    With a width the mask is a sigmoid around rho, and a row that sums to less than one is filled up with itself.
    seen: similarities as they are compared with rho.
    """
    queries = keys if first is None else first
    count = None
    for _ in range(max(iterations, 1)):
        if width is not None:
            mask = 0.5 + 0.5 * np.tanh((seen(queries @ keys.T) - rho) / width / 2)
            mask[np.diag_indices(len(mask))] += np.maximum(1 - mask.sum(1), 0)
            count = mask.sum(1)
            queries = l2(mask @ keys / count[:, None]) if iterations else queries
            continue
        mask = seen(queries @ keys.T) > rho
        empty = ~mask.any(1)
        mask[empty, empty.nonzero()[0]] = True
        count = mask.sum(1)
        if iterations:
            queries = l2(mask @ keys / count[:, None])
    return queries, count


def attend(keys, values, windows, method, first=None):
    """out [N C] of DESIGN 3.1 and 3.2 over one buffer; method has the fields of MethodConfig."""
    keys, values = keys.astype(F64), values.astype(F64)
    queries, count = keys, None
    if method.proxy_anchors or method.dynamic_scale is not None:
        width = method.mask_temperature
        numbers = method.anchor_threshold, method.anchor_iterations, first, width
        anchored, count = anchors(keys, *numbers, lambda similarity: look(similarity, method))
        queries = anchored if method.proxy_anchors else keys
    similarity = look(queries @ keys.T, method)
    mean = np.maximum(similarity.mean(1, keepdims=True), 0) if method.row_mean else similarity.mean()
    beta = method.shift if method.dynamic_shift is None else 1 + method.dynamic_shift * np.log(1 + windows)
    gamma = method.scale if method.dynamic_scale is None else 1 + method.dynamic_scale / count[:, None]
    logits = gamma * (similarity - beta * mean)
    if not method.masking:
        return softmax(logits / method.temperature) @ values
    if method.mask_temperature is not None:
        kept = np.logaddexp(0, -logits / method.mask_temperature)  # -log sigmoid
        return softmax(logits / method.temperature - kept) @ values
    keep = logits >= np.minimum(logits.max(1, keepdims=True), 0)
    return softmax(np.where(keep, logits / method.temperature, -np.inf)) @ values


def pooled(keys, values, cutoff, queries=None):
    """CLIP-DINOiser's average [N C] of values over one buffer, weighted by the cosines from the cutoff on."""
    keys, values = keys.astype(F64), values.astype(F64)
    weights = (keys if queries is None else queries) @ keys.T
    weights = np.where(weights >= cutoff, weights, 0)
    return weights @ values / (weights.sum(1, keepdims=True) + 1e-6)


def attend_merged(keys, values, pixels, windows, method, first=None):
    """attend where the tokens of each pixel are one, of their mean key and value, that stands as often as they are."""
    _, place, counts = np.unique(pixels, return_inverse=True, return_counts=True)
    mean = (place == np.arange(len(counts))[:, None]) / counts[:, None]
    copies = np.repeat(np.arange(len(counts)), counts)
    keys, values = (mean @ keys.astype(F64))[copies], (mean @ values.astype(F64))[copies]
    first = None if first is None else (mean @ first.astype(F64))[copies]
    return attend(keys, values, windows, method, first)[np.searchsorted(copies, place)]


def stitch(token_logits, grid, canvas, crop, stride, size):
    """[W S Q] token logits -> [Q h w]: bilinear to the window, average overlaps, bilinear to the image's size."""
    height, width = canvas
    side = round(token_logits.shape[1] ** 0.5)
    up = bilinear_matrix(side, crop)
    total = np.zeros((token_logits.shape[2], height, width), F64)
    count = np.zeros((height, width))
    boxes = [
        (t, b, le, r) for t, b in axis_windows(height, crop, stride) for le, r in axis_windows(width, crop, stride)
    ]
    assert len(boxes) == len(token_logits) == grid[0] * grid[1]
    for logits, (top, bottom, left, right) in zip(token_logits, boxes, strict=True):
        pixels = np.einsum("yi,xj,ijq->qyx", up, up, logits.reshape(side, side, -1))
        above, before = (crop - (bottom - top)) // 2, (crop - (right - left)) // 2
        pixels = pixels[:, above : above + bottom - top, before : before + right - left]
        total[:, top:bottom, left:right] += pixels
        count[top:bottom, left:right] += 1
    mean = total / count
    return np.einsum("yi,xj,qij->qyx", bilinear_matrix(height, size[0]), bilinear_matrix(width, size[1]), mean)
