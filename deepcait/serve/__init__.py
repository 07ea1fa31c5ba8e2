"""The HTTP service and its page: one model, one inference queue, strict limits."""
