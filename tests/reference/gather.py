def embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    """The rows; the options only concern the gradient, see :func:`embedding_backward`."""
    return weight[indices.long()]


def embedding_backward(grad, indices, num_weights, padding_idx, scale_grad_by_freq):
    """Each row's gradients added up in the order of the indices."""
    result = grad.new_zeros(int(num_weights), grad.size(-1))  # True is 1
    flat = indices.reshape(-1).tolist()
    for index, row in zip(flat, grad.reshape(len(flat), grad.size(-1)), strict=True):
        if index != padding_idx:
            result[index] += row / flat.count(index) if scale_grad_by_freq else row
    return result


def embedding_sparse_backward(grad, indices, num_weights, padding_idx, scale_grad_by_freq):
    """The rows that the indices name, sorted, and their gradients."""
    rows = indices.long().unique()
    rows = rows[rows != padding_idx]
    last = int(indices.max()) + 1 if indices.numel() else 0
    return rows, embedding_backward(grad, indices, last, padding_idx, scale_grad_by_freq)[rows]
