"""Rung 1, the formula."""


def forward(a, b, bias=None):
    c = a @ b
    return c if bias is None else c + bias


def sum_rows(x):
    return x.sum(axis=0)
