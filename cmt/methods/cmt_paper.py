"""CMT as the paper draws it: Θ, ψ, π, memory-aware objective, self-matching loss, top-k.

What the paper leaves open is ours: Θ is the base model with LoRA, memories and questions are
compared by the direction of their mean token, and how much decoding adjusts the logits is a
setting apart from the objective's (`decoding_alpha`).
"""

from __future__ import annotations

from dataclasses import replace

from cmt.methods.fitting import fit
from cmt.methods.materials import Materials
from cmt.methods.soft_method import SoftConfig, SoftMethod, frozen
from cmt.methods.soft_training import SoftTraining


class CmtPaper(SoftMethod):
    """k×d memories of the k best documents, aggregated and aligned."""

    @classmethod
    def build(cls, materials: Materials, config: SoftConfig) -> CmtPaper:
        """Train Θ, ψ and π on the training part, or load them from the state folder."""
        module = config.module(materials.base)
        training = SoftTraining(module, materials.training, config, seed=materials.seed)
        run = materials.fit_config(
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            documents=config.documents,
        )
        # how the bank is grouped and answers are decoded changes nothing of what is trained
        trained = replace(config, group=0, decoding_alpha=0.0)
        folder = materials.state_folder("cmt_paper", trained)
        fit(module, training.loss_of, run, folder, materials.base.device)
        frozen(module)
        return cls(module, config, materials.answers)
