"""Rung 1, the formula."""


def forward(a, b, bias=None):
    c = a @ b
    return c if bias is None else c + bias


def sum_rows(x):
    return x.sum(axis=0)


def linear_backward(dy, x, weight, bias):
    dx = None if weight is None else dy @ weight
    dweight = None if x is None else dy.T @ x
    return dx, dweight, dy.sum(axis=0) if bias else None
