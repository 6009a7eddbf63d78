"""Figures as published, to stand beside ours: never measured here, other base models.

EM and F1 in percent. The exact match of this line of work is the prefix EM of `metrics.py`.
Sources: CMT (arXiv 2412.07393), tables 1 and 2 and figures, as far as they could be had.
"""

from __future__ import annotations

MODELS = ("DistilGPT2 82M", "GPT2-Large 774M", "GPT2-XL 1.5B", "Llama-2-7B")

Pair = tuple[float, float]

PUBLISHED: dict[str, dict[str, tuple[Pair | None, ...]]] = {
    "streamingqa": {
        "Uniform fine-tuning": ((1.62, 3.76), (4.74, 7.00), (5.11, 7.48), (12.43, 13.54)),
        "Salient spans": ((1.44, 4.67), (4.86, 8.54), (5.40, 9.42), (13.33, 18.97)),
        "CaMeLS": ((1.62, 5.79), (5.35, 10.60), (6.55, 11.67), None),
        "MAC": ((5.59, 10.18), (7.25, 13.31), (8.99, 15.38), (14.29, 21.79)),
        "CMT": ((6.43, 12.32), (7.32, 13.43), (9.61, 16.48), (18.36, 25.98)),
    },
    "squad": {
        "Uniform fine-tuning": ((1.24, 2.54), (3.64, 4.97), (6.10, 6.78), (13.25, 17.01)),
        "Salient spans": ((1.03, 2.47), (4.03, 6.48), (4.55, 6.74), (13.74, 18.66)),
        "CaMeLS": ((1.47, 3.08), (4.97, 8.63), (6.70, 10.15), None),
        "MAC": ((2.01, 6.85), (6.43, 11.42), (7.10, 12.55), (15.07, 21.14)),
        "CMT": ((3.12, 7.59), (7.15, 12.45), (9.81, 12.85), (19.54, 25.50)),
    },
    "archivalqa": {
        "Uniform fine-tuning": ((4.86, 4.08), (7.66, 8.71), (8.61, 10.78), (18.53, 21.35)),
        "Salient spans": ((4.52, 3.76), (9.75, 11.19), (11.81, 14.11), (18.97, 22.75)),
        "CaMeLS": ((4.62, 6.19), (9.92, 12.41), (13.87, 15.74), None),
        "MAC": ((7.55, 10.58), (11.84, 15.26), (14.01, 17.12), (20.12, 23.90)),
        "CMT": ((8.15, 11.03), (12.28, 16.12), (14.55, 18.01), (21.73, 25.40)),
    },
}
"""By dataset and method: (EM, F1) for each of `MODELS`."""

ABLATION: dict[str, dict[str, Pair]] = {
    "streamingqa": {
        "CMT": (18.36, 25.98),
        "without memory-aware objective": (18.54, 23.71),
        "without self-matching": (17.87, 22.54),
        "without top-k aggregation": (16.43, 20.13),
    },
    "squad": {
        "CMT": (19.54, 25.50),
        "without memory-aware objective": (15.38, 22.77),
        "without self-matching": (17.97, 23.40),
        "without top-k aggregation": (18.35, 24.12),
    },
    "archivalqa": {
        "CMT": (21.73, 25.40),
        "without memory-aware objective": (20.89, 24.18),
        "without self-matching": (22.43, 25.68),
        "without top-k aggregation": (21.09, 23.99),
    },
}
"""Llama-2-7B, (EM, F1)."""

RETENTION: dict[str, dict[int, float]] = {
    "CMT": {200: 100, 400: 99, 600: 98, 800: 95, 1000: 94, 1200: 93},
    "MAC": {200: 100, 400: 95, 600: 92, 800: 90, 1000: 88, 1200: 85},
    "CaMeLS": {200: 100, 400: 90, 600: 88, 800: 85, 1000: 83, 1200: 80},
    "Uniform fine-tuning": {200: 100, 400: 92, 600: 84, 800: 80, 1000: 77, 1200: 76},
    "Salient spans": {200: 100, 400: 85, 600: 82, 800: 78, 1000: 73, 1200: 65},
}
"""Share of the accuracy at 200 documents kept; StreamingQA, Llama-2-7B, read off a plot."""

ROBUSTNESS: dict[str, dict[float, float]] = {
    "CMT": {0.0: 100, 0.2: 85, 0.4: 73, 0.6: 54, 0.8: 43, 1.0: 39},
    "MAC": {0.0: 100, 0.2: 67, 0.4: 51, 0.6: 46, 0.8: 38, 1.0: 18},
    "CaMeLS": {0.0: 100, 0.2: 53, 0.4: 30, 0.6: 28, 0.8: 16, 1.0: 8},
    "Uniform fine-tuning": {0.0: 100, 0.2: 40, 0.4: 25, 0.6: 17, 0.8: 13, 1.0: 5},
}
"""Share of accuracy kept, by unrelated documents as a share of the stream; read off a plot."""
