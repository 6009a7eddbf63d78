"""cmt: a frozen language model that learns documents (arXiv 2412.07393)."""
